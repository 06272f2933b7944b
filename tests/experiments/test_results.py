"""The tables of docs/results are what the command makes of the JSON files beside them."""

import re

import pytest

from experiments.results.studies import STUDIES, files, page
from experiments.results.tables import FOLDER

PAGES = sorted(FOLDER.glob("*.md"))


@pytest.mark.parametrize("name", STUDIES)
def test_a_committed_table_is_what_the_command_writes(name):
    assert (FOLDER / f"{name}.md").read_text("utf-8") == page(STUDIES[name])


def test_every_result_is_in_one_table():
    """Those below a table of learners are what its table.json was made of."""
    used = [path for study in STUDIES.values() for path in files(study)]
    assert len(used) == len(set(used))
    found = {path.relative_to(FOLDER) for path in FOLDER.rglob("*.json")}
    tables = ("omniglot-table", "cifar-table")
    assert {path for path in found - set(used) if path.parts[0] not in tables} == set()


def test_every_file_is_data_or_is_linked():
    pages = [*PAGES, *FOLDER.parent.glob("*.md")]
    linked = {
        (each.parent / link.partition("#")[0]).resolve()
        for each in pages
        for link in re.findall(r"\]\(([^)\s]+)\)", each.read_text("utf-8"))
    }
    unused = [
        str(file.relative_to(FOLDER))
        for file in FOLDER.rglob("*.*")
        if file.is_file() and file.suffix not in (".json", ".jsonl") and file not in PAGES
        if file.resolve() not in linked
    ]
    assert unused == []
