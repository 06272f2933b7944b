"""Writes the tables of docs/results from the JSON files beside them: ``make results``.

A page is made from its study's JSON alone, and a test holds the committed pages to it. For a new
run, copy its ``result.json`` into a folder that one of the study's patterns finds.
"""

from experiments import common
from experiments.results.studies import STUDIES, files, page
from experiments.results.tables import FOLDER
from metajax.files import write_atomically


def main() -> None:
    """Writes every page."""
    for name, study in STUDIES.items():
        write_atomically(FOLDER / f"{name}.md", page(study))
        print(f"{name}.md: {len(files(study))} results")


if __name__ == "__main__":
    common.guard(main)
