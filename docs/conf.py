"""The site: Sphinx reads these pages, runs the tutorials, and takes the reference from docstrings.

``make docs`` builds it into docs/_build/html. Decision 060 says why Sphinx.
"""

import importlib.metadata
import os
import pathlib
import re

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
URLS = dict(
    line.split(", ") for line in importlib.metadata.metadata("metajax").get_all("Project-URL")
)
REPOSITORY = URLS["Source"]

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
nb_execution_in_temp = True
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


def with_links(text, *, written_in, page, source):
    """A text whose links lead to pages of this site, to the other language's, or to the repository.

    Args:
        text: Markdown.
        written_in: the folder of its file.
        page: the folder of the page that shows it.
        source: the folder of the pages of its language.
    """

    def lead(match):
        words, target, anchor = match[1], (written_in / match[2]).resolve(), match[3] or ""
        if not target.exists():
            return match[0]  # Sphinx says so
        if target.suffix not in {".md", ".png"} or not target.is_relative_to(DOCS):
            kind = "tree" if target.is_dir() else "blob"
            address = f"{REPOSITORY}/{kind}/main/{target.relative_to(ROOT).as_posix()}{anchor}"
            return f"[{words}]({address})"
        path = os.path.relpath(target, page)
        if (source.name == "zh") == target.is_relative_to(DOCS / "zh"):
            return f"[{words}]({path}{anchor})"
        return f'<a href="{path.removesuffix(".md")}.html{anchor}">{words}</a>'

    return re.sub(r"\[([^\]]*)\]\(((?!\w+:)[^)#\s]+)(#[^)\s]*)?\)", lead, text)


def on_page(app, name, content):
    """A page's own text, and the list of the pages below it."""
    folder, source = (pathlib.Path(app.srcdir) / name).parent, pathlib.Path(app.srcdir)
    content[0] = with_links(content[0], written_in=folder, page=folder, source=source)
    if name in LISTS:
        content[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{LISTS[name]}\n```\n"


def on_include(app, path, name, content):
    """README's parts, which are written in the folder above."""
    page, source = (pathlib.Path(app.srcdir) / name).parent, pathlib.Path(app.srcdir)
    content[0] = with_links(content[0], written_in=ROOT, page=page, source=source)


def setup(app):
    app.connect("source-read", on_page)
    app.connect("include-read", on_include)
