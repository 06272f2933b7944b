"""The site: Sphinx reads these pages, runs the tutorials, and takes the reference from docstrings.

``make docs`` builds it into docs/_build/html. Decision 060 says why Sphinx.
"""

import importlib.metadata
import pathlib
import re

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
REPOSITORY = "https://github.com/metajax/metajax"

project = "metajax"
author = "The metajax authors"
copyright = author
release = version = importlib.metadata.version("metajax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "zh", "**/*.ipynb"]

html_theme = "furo"
html_title = "metajax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}
html_copy_source = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # README's parts begin below the first level

# A tutorial is run again only when its code has changed; an error in it ends the build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / "tutorials")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "notes_style")]
python_maximum_signature_line_length = 80
add_module_names = False


LISTS = {"decisions/README": "*", "results/README": "**"}
"""Pages that list those below them. GitHub shows them too, and knows no table of contents."""


def adapt_to_site(app, name, source):
    """Links to files that are no pages lead to the repository, and lists get their pages."""
    folder = (DOCS / name).parent

    def outside(match):
        target = (folder / match[1]).resolve()
        page = target.suffix in {".md", ".png"} and target.is_relative_to(DOCS)
        if page or not target.exists():
            return match[0]
        kind = "tree" if target.is_dir() else "blob"
        path = target.relative_to(ROOT).as_posix()
        return f"]({REPOSITORY}/{kind}/main/{path}{match[2] or ''})"

    source[0] = re.sub(r"\]\(((?!\w+:)[^)#\s]+)(#[^)\s]*)?\)", outside, source[0])
    if name in LISTS:
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{LISTS[name]}\n```\n"


def setup(app):
    app.connect("source-read", adapt_to_site)
