"""The command ``metajax``: what is here, and the studies of a checkout."""

import importlib.util
import runpy
import sys


def main() -> None:
    """Lists and runs the studies where they are, and says where they can be had otherwise."""
    if sys.argv[1:] == ["--version"]:
        print(sys.modules["metajax"].__version__)
    elif importlib.util.find_spec("experiments") is not None:
        runpy.run_module("experiments", run_name="__main__", alter_sys=True)
    else:
        sys.exit(
            "metajax is a library: import metajax in Python. Its studies (make demo, make omniglot "
            "and others) come with the repository, https://github.com/metajax/metajax."
        )


if __name__ == "__main__":
    main()
