"""The benchmark of generation, in small."""

import json
import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("torch", reason="it is what is compared with")
    pytest.importorskip("transformers", reason="it is what is compared with")

from experiments.benchmarks import generation
from metajax.models import TransformerConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's and transformers' own


@pytest.mark.slow
def test_all_programs_generate_the_same_tokens(tmp_path, monkeypatch):
    small = TransformerConfig.llama(vocab_size=64, width=32, n_layers=2, n_heads=4, n_kv_heads=2)
    monkeypatch.setattr(generation, "MODELS", {"small": small})
    config = generation.Config(
        models=("small",), batch=2, prompt_length=20, same=18, new_tokens=8, rounds=1, out=tmp_path
    )
    table = generation.run(config)
    result = json.loads((tmp_path / "generation.json").read_text())
    (row,) = result["rows"]
    assert row["agreeing_tokens"] == {generation.ONE: 1.0, generation.SHARED: 1.0}
    rates = row["tokens_a_second"]
    for program, ratio in row["ratio"].items():
        assert ratio == pytest.approx(rates[program] / rates[generation.PEER])
    assert row["torch_threads"] >= 1
    assert "| small |" in table
    assert (tmp_path / "generation.md").read_text() == table
    assert (tmp_path / "generation.png").exists()
