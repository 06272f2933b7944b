"""Any command line, and any content of a run's files."""

import contextlib
import dataclasses
import importlib
import io
import json

import pytest
from fuzzing import VALUES, changed, contained, damaged, examples
from hypothesis import given
from hypothesis import strategies as st

from experiments import common
from experiments.common import command_line, metrics

FLAGS = ["--steps", "--seed", "--out", "--resume", "--log-every", "--inner-rate", "--method"]
WORDS = st.sampled_from([*FLAGS, "5", "0", "-1", "nan", "1e3", "None", "--", "-", "True", "maml"])
ARGUMENTS = st.lists(
    # What begins with --tyro asks its shell completion to be written to a file.
    WORDS | st.text(max_size=12).filter(lambda word: not word.startswith("--tyro")),
    max_size=5,
)


def parsed(module, arguments):
    """The config, or the status that the program would end with."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return common.parse(
                module.Config, arguments, "", preset=getattr(module, "preset", None)
            )
        except SystemExit as stop:
            return stop.code


@pytest.mark.parametrize("name", ["fewshot.sinusoid", "fewshot.omniglot.train"])
def test_any_command_line_is_a_config_or_status_2(name, sandbox, monkeypatch):
    monkeypatch.setattr(command_line, "keep_compiled", lambda folder: None)
    module = importlib.import_module(f"experiments.{name}")

    @examples(12)
    @given(ARGUMENTS)
    def any_arguments(arguments):
        with contained(sandbox):
            config = parsed(module, arguments)
            if isinstance(config, int | str | None):  # an exit status
                assert config == (0 if {"-h", "--help"} & {*arguments} else 2)
            else:
                common.open_run("toy", config)

    any_arguments()


def test_any_config_file(sandbox):
    out = sandbox / "files" / "run"
    run = common.open_run("toy", common.RunConfig(steps=50, out=out))
    common.create(run)
    file = out / "config.json"
    content = file.read_bytes()
    paper = importlib.import_module("experiments.fewshot.omniglot.train").preset(protocol="paper")
    omniglot = dataclasses.replace(paper, out=out, resume=True, steps=50)
    saved = changed(json.loads(content)).map(lambda fields: json.dumps(fields).encode())

    @examples(50)
    @given(saved | damaged(content) | st.just(b"[" * 100_000))
    def any_content(content):
        file.write_bytes(content)
        for config in (dataclasses.replace(run.config, resume=True), omniglot):
            with contained(sandbox):
                common.open_run("toy", config)

    any_content()


def test_any_metrics_file(sandbox):
    file = sandbox / "files" / "metrics.jsonl"
    lines = [{"step": 10 * n, "loss": 0.5, "seconds": 1.0, "name": "é"} for n in range(1, 4)]
    whole = "".join(json.dumps(line) + "\n" for line in lines).encode()
    some = st.lists(changed(lines[0]) | VALUES, max_size=3).map(
        lambda values: "".join(json.dumps(value) + "\n" for value in values).encode()
    )

    @examples(80)
    @given(some | damaged(whole) | st.just(b'{"step": 1, "a": [1e999]}\n'))
    def any_content(content):
        file.write_bytes(content)
        with contained(sandbox):
            records = common.read_metrics(file)
            assert all(type(record["step"]) is int for record in records)
        with contextlib.suppress(common.RunError):
            kept = metrics.drop_after(file, 20)
            assert all(record["step"] <= 20 for record in kept)
            assert len(common.read_metrics(file)) == len(kept)

    any_content()
