"""The tutorials: each page has a notebook beside it, which says the same."""

import importlib.util
import pathlib

import pytest

jupytext = pytest.importorskip("jupytext")

DOCS = pathlib.Path(__file__).parent.parent / "docs"
spec = importlib.util.spec_from_file_location("notebooks", DOCS / "notebooks.py")
notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notebooks)
PAGES = notebooks.PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_is_what_its_page_gives(page):
    """If it isn't, run ``make notebooks``."""
    assert page.with_suffix(".ipynb").read_text(encoding="utf-8") == notebooks.notebook(page)


def test_no_notebook_is_without_a_page():
    assert {file.stem for file in (DOCS / "tutorials").glob("*.ipynb")} == {p.stem for p in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_opens_in_colab_and_installs_itself_there_alone(page):
    first, *cells = jupytext.read(page).cells
    assert f"/docs/tutorials/{page.stem}.ipynb)" in first.source
    assert "%pip install" in cells[0].source
    for cell in cells:
        assert ("%pip" in cell.source) == ("skip-execution" in cell.metadata.get("tags", []))


def test_links_of_a_notebook_lead_to_the_repository(tmp_path):
    page = tmp_path / "page.md"
    head = "---\njupytext:\n  text_representation:\n    format_name: myst\n---\n\n"
    code = "```{code-cell} ipython3\nf[0](x)\n```\n"
    page.write_text(f"{head}[a](../b.md#c) [d](https://e.f/g)\n\n{code}")
    text = notebooks.notebook(page)
    assert "[a](https://github.com/metajax/metajax/blob/main/docs/b.md#c)" in text
    assert "[d](https://e.f/g)" in text
    assert "f[0](x)" in text
