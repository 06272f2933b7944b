"""The table: which trainings its cells need, what it is made of, and that it goes on."""

import json
from pathlib import Path

import pytest

from experiments import common
from experiments.fewshot.omniglot import metric, train
from experiments.fewshot.omniglot import table as experiment


def config(tmp_path, **options):
    return experiment.Config(out=tmp_path / "table", **options)


def test_a_model_serves_several_cells(tmp_path):
    plan = experiment.trainings(config(tmp_path, methods="protonet,maml"))
    found = {training.folder: training.cells for training in plan}
    assert found == {
        "maml-fast-5way-seed0": ("5w1s", "5w5s"),
        "maml-fast-20way-seed0": ("20w1s", "20w5s"),
        "protonet-fast-1shot-seed0": ("5w1s", "20w1s"),
        "protonet-fast-5shot-seed0": ("5w5s", "20w5s"),
    }


def test_the_whole_table_has_forty_cells(tmp_path):
    plan = experiment.trainings(config(tmp_path, seeds=2))
    assert len({(t.method, t.seed, cell) for t in plan for cell in t.cells}) == 80
    assert len({t.folder for t in plan}) == len(plan) == 40


@pytest.mark.parametrize("training", experiment.trainings(experiment.Config(protocol="paper")))
def test_the_command_lines_are_accepted(training):
    module = metric if training.main is metric.main else train
    parsed = common.parse(module.Config, training.options, "", preset=module.preset)
    assert (parsed.protocol, parsed.seed) == ("paper", 0)


class FakeRuns:
    """Stands for both experiments: writes what their runs would leave, once for each call."""

    def __init__(self):
        self.made = []
        self.mean = 90.0

    def __call__(self, options):
        values = dict(zip(options[::2], options[1::2], strict=False))
        folder = Path(values["--out"])
        self.made.append((folder.name, "--resume" in options))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        metric = values["--method"] in experiment.METRIC.values()
        ways = [5, 20] if metric else [int(values["--n-way"])]
        shots = [int(values["--k-shot"])] if metric else [1, 5]
        self.mean += 1
        rows = [
            {
                "task": f"{way}-way {shot}-shot",
                "evaluation": "",
                "mean": self.mean,
                "ci95": 0.3,
                "paper": None,
                "episodes": int(values["--test-episodes"]),
                "inner_steps": 1,
                "query": 1,
                "transductive": transductive,
            }
            for way in ways
            for shot in shots
            for transductive in ([False] if metric else [True, True, False])
        ]
        result = {
            "rows": rows,
            "seconds": {"training": 75.0},
            "schedule": "of a test",
            "command": "python -m a.test",
            "training": {"steps": 1000, "seed": 0},
            "environment": {"device": "none", "cores": 2, "versions": {"jax": "0"}, "commit": None},
        }
        (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def fake(monkeypatch):
    fake = FakeRuns()
    monkeypatch.setattr(train, "main", fake)
    monkeypatch.setattr(metric, "main", fake)
    return fake


@pytest.mark.slow
def test_the_table_grows_and_makes_nothing_twice(tmp_path, fake, capsys):
    out = tmp_path / "table"
    options = ["--methods", "protonet", "--cells", "20w1s", "--out", str(out)]
    experiment.main(options)
    experiment.main(options)
    assert fake.made == [("protonet-fast-1shot-seed0", False)]
    lines = json.loads((out / "table.json").read_text())
    # the model is there, and so is its other cell
    assert [(line["method"], line["cell"]) for line in lines] == [
        ("protonet", "5w1s"),
        ("protonet", "20w1s"),
    ]
    assert lines[1]["not_transductive"] == [91.0, 0.3]
    assert lines[1]["transductive"] is None

    experiment.main(["--methods", "maml", "--cells", "5w5s", "--out", str(out)])
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "| MAML " in table
    assert "99.9 ± 0.1" in table
    assert "| 1 min 15 s " in table
    assert "98.8" in table
    assert (out / "table.png").stat().st_size < 100_000


@pytest.mark.slow
def test_seeds_are_averaged_and_their_intervals_joined(tmp_path, fake):
    out = tmp_path / "table"
    options = ["--methods", "maml", "--cells", "5w1s", "--seeds", "2", "--out", str(out)]
    experiment.main(options)
    line, _ = json.loads((out / "table.json").read_text())
    assert line["transductive"] == pytest.approx([91.5, 0.3 / 2**0.5])
    assert (line["seeds"], line["episodes"]) == (2, 2000)
    assert line["spread"] == pytest.approx(0.5**0.5)


def test_an_unfinished_run_is_resumed_and_more_episodes_are_tested(tmp_path, fake):
    out = tmp_path / "table"
    options = ["--methods", "maml", "--cells", "5w1s", "--out", str(out)]
    (out / "maml-fast-5way-seed0").mkdir(parents=True)
    (out / "maml-fast-5way-seed0" / "config.json").write_text("{}")
    experiment.main(options)
    experiment.main([*options, "--test-episodes", "50"])
    assert fake.made == [("maml-fast-5way-seed0", True)] * 2
