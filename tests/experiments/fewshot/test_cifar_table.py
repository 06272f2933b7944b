"""The table of CIFAR-FS and FC100: which trainings its cells need, and what it says of them."""

import json

import pytest

from experiments import common
from experiments.fewshot.cifar import config, train
from experiments.fewshot.cifar import table as experiment


def test_the_whole_table_has_a_model_for_each_cell_but_the_probes():
    plan = experiment.trainings(experiment.Config(seeds=2))
    assert len({(t.method, t.seed, cell) for t in plan for cell in t.cells}) == 2 * 9 * 4
    probes = [t for t in plan if t.method == "linear-probe" and t.seed == 0]
    assert [(t.folder, t.cells) for t in probes] == [
        ("cifar-fs-conv4-linear-probe-seed0", ("cifar-fs-1shot", "cifar-fs-5shot")),
        ("fc100-conv4-linear-probe-seed0", ("fc100-1shot", "fc100-5shot")),
    ]
    assert len({t.folder for t in plan}) == len(plan) == 2 * (8 * 4 + 2)


@pytest.mark.parametrize("body", ["conv4", "resnet12"])
def test_the_command_lines_are_accepted(body):
    for training in experiment.trainings(experiment.Config(body=body)):
        parsed = common.parse(config.Config, training.options, "", preset=config.preset)
        assert (parsed.body, parsed.method, parsed.seed) == (body, training.method, 0)
        assert f"{parsed.data_set}-{parsed.k_shot}shot" in training.cells


def test_a_cell_stands_beside_its_paper(tmp_path, monkeypatch):
    """Of a fake run with both kinds of rows."""

    def fake(options):
        values = dict(zip(options[::2], options[1::2], strict=True))
        row = {"task": f"5-way {values['--k-shot']}-shot", "ci95": 0.5, "episodes": 1000}
        result = {
            "rows": [
                row | {"mean": 60.0, "transductive": True},
                row | {"mean": 58.0, "transductive": False},
            ],
            "seconds": {"training": 75.0},
            "schedule": "of a test",
            "command": "python -m a.test",
            "training": {"steps": 1000, "seed": 0},
            "environment": {"device": "none", "cores": 2, "versions": {"jax": "0"}, "commit": None},
        }
        folder = tmp_path / "table" / "cifar-fs-conv4-maml-1shot-seed0"
        assert values["--out"] == str(folder)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(train, "main", fake)
    options = ["--methods", "maml", "--cells", "cifar-fs-1shot", "--out", str(tmp_path / "table")]
    experiment.main(options)
    (line,) = json.loads((tmp_path / "table" / "table.json").read_text())
    assert line["transductive"] == pytest.approx([60.0, 0.5])
    assert line["not_transductive"] == pytest.approx([58.0, 0.5])
    assert (line["paper"], line["source"]) == ("58.9 ± 1.9 (unchecked)", "Bertinetto et al. 2019")
    assert "# CIFAR-FS and FC100, four convolutions" in (tmp_path / "table/table.md").read_text()
