"""Writes each tutorial's notebook for Colab, tutorials/NAME.ipynb, anew from tutorials/NAME.md.

``make notebooks`` runs it. A notebook has no outputs. Its links lead to the repository, since a
notebook that is opened in Colab is alone.
"""

import re
from pathlib import Path
from urllib.parse import urljoin

import jupytext
import nbformat

TUTORIALS = Path(__file__).parent / "tutorials"
PAGES = sorted(set(TUTORIALS.glob("*.md")) - {TUTORIALS / "index.md"})
ADDRESS = "https://github.com/metajax/metajax/blob/main/docs/tutorials/"


def notebook(page: Path) -> str:
    """The notebook of a page, as it stands in its file."""
    made = jupytext.read(page, fmt="md:myst")
    del made.metadata["jupytext"]
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"  # jupytext's are random
        if cell.cell_type == "markdown":
            to_address = lambda link: f"]({urljoin(ADDRESS, link[1])})"
            cell.source = re.sub(r"\]\(([^)]+)\)", to_address, cell.source)
    return nbformat.writes(made) + "\n"


if __name__ == "__main__":
    for page in PAGES:
        page.with_suffix(".ipynb").write_text(notebook(page), encoding="utf-8")
