"""The benchmark of several devices measures what it says."""

import json

import pytest

from experiments.benchmarks import devices
from experiments.benchmarks.workload import CELLS, Workload

TINY = Workload(tasks=2, n_way=3, image_size=5, features=4, form="mlp")


@pytest.mark.slow
def test_each_number_of_devices_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(CELLS, "MLP", TINY)
    config = devices.Config(cell="MLP", rounds=2, steps=1, out=tmp_path / "bench")
    table = devices.run(config)
    assert "| 1       |" in table
    assert "| 2       |" in table
    assert (config.out / "devices.md").read_text() == table
    result = json.loads((config.out / "devices.json").read_text())
    assert {name: len(found) for name, found in result["seconds"].items()} == {"1": 2, "2": 2}
