"""The workflows of GitHub may do little, end by themselves, and call what exists."""

import pathlib
import re
import tomllib

import pytest
import yaml
from test_docs import unknown_to_make

ROOT = pathlib.Path(__file__).parent.parent
WORKFLOWS = {
    file.name: yaml.safe_load(file.read_text(encoding="utf-8"))
    for file in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
}


def steps():
    return [s for flow in WORKFLOWS.values() for job in flow["jobs"].values() for s in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_it_reads_alone_but_where_it_publishes_and_has_an_end(name):
    flow = WORKFLOWS[name]
    assert flow["permissions"] == {"contents": "read"}
    assert "concurrency" in flow
    for job in flow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert ("permissions" in job) == ("environment" in job)  # people can guard an environment


def test_actions_are_pinned_to_a_major_version_and_keep_no_password():
    used = [step for step in steps() if "uses" in step]
    pinned = r"(actions/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v1)"
    assert [step["uses"] for step in used if not re.fullmatch(pinned, step["uses"])] == []
    checkouts = [step for step in used if step["uses"].startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_every_make_command_exists():
    lines = [line for step in steps() for line in step.get("run", "").splitlines()]
    assert len([line for line in lines if line.startswith("make ")]) > 5
    assert [*unknown_to_make(lines)] == []


def test_oldest_and_newest_python_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    tested = WORKFLOWS["ci.yml"]["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert [row["python"] for row in tested] == [named[0], named[-1]]
    assert project["requires-python"] == f">={named[0]}"
    assert [row["pins"] for row in tested] == ["-c constraints.txt", ""]
