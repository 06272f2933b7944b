"""Lists the studies and runs one: ``python -m experiments demo``, or ``metajax demo``.

The Makefile is the one list of them: ``metajax NAME --steps 10`` runs what ``make NAME STEPS=10``
runs, in the environment that is there.
"""

import re
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

from metajax.files import read_text

MAKEFILE = Path(__file__).parent.parent / "Makefile"


class Study(NamedTuple):
    """A target of the Makefile that runs one module."""

    module: str
    options: tuple[str, ...]
    """Those that the target always passes."""
    purpose: str


def studies(makefile: str) -> dict[str, Study]:
    """The targets of a Makefile that run one module of experiments, by name.

    >>> makefile = "demo: x ## what it does\\n\\t$(RUN) -m experiments.demo --size 3 $(OPTIONS)\\n"
    >>> studies(makefile)
    {'demo': Study(module='experiments.demo', options=('--size', '3'), purpose='what it does')}
    """
    found = {}
    target = r"^([a-z0-9-]+):[^\n#]*## ([^\n]*)\n((?:\t[^\n]*\n)+)"
    for name, purpose, recipe in re.findall(target, makefile, re.M):
        runs = re.findall(r"-m (experiments[\w.]*)((?: --[a-z-]+ [\w,.-]+)*)", recipe)
        if len(runs) == 1:
            module, options = runs[0]
            plain = re.sub(r" \([^()]*=[^()]*\)", "", purpose)  # without variables of make
            found[name] = Study(module, tuple(options.split()), plain)
    return found


def main() -> None:
    """Runs the study that the first word names; without one, lists them."""
    known, words = studies(read_text(MAKEFILE)), sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print("Studies: metajax NAME runs one, metajax NAME --help lists its options.\n")
        for name, study in known.items():
            print(f"  {name:20}{study.purpose}")
    elif words[0] not in known:
        sys.exit(f"error: there is no study {words[0]!r}; metajax alone lists them.")
    else:
        study = known[words[0]]
        sys.argv = [words[0], *study.options, *words[1:]]
        runpy.run_module(study.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
