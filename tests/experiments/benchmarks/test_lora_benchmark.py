"""The benchmark of low-rank adaptation, in small."""

import json
import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("torch", reason="it is what is compared with")
    pytest.importorskip("transformers", reason="it is what is compared with")
    pytest.importorskip("peft", reason="it is what is compared with")

from experiments.benchmarks import lora
from metajax.models import TransformerConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's, transformers' and peft's own


@pytest.fixture(autouse=True)
def small(monkeypatch):
    model = TransformerConfig.llama(
        vocab_size=32, width=16, n_layers=2, n_heads=2, mlp_width=24, scan=False
    )
    monkeypatch.setattr(lora, "MODEL", model)
    cells = {
        "few": lora.Cell(2, 5, 2),
        "all": lora.Cell(1, 6, 1, lora.ALL),
        "answers": lora.Cell(2, 8, 1, answer=3, vocabulary=40),
    }
    monkeypatch.setattr(lora, "CELLS", cells)


@pytest.mark.slow
def test_both_adapt_with_the_same_losses(tmp_path):
    config = lora.Config(
        cells=tuple(lora.CELLS), tasks=3, peer_tasks=2, steps=3, rank=2, rate=0.03, rounds=1,
        out=tmp_path,
    )  # fmt: skip
    table = lora.run(config)
    rows = json.loads((tmp_path / "lora.json").read_text())["rows"]
    assert [row["cell"] for row in rows] == [cell.name for cell in lora.CELLS.values()]
    for row in rows:
        assert max(row["differences"].values()) < 1e-5
        before, last = row["losses"]
        assert last < before
        ours, theirs = (
            min(median for name, median in row["medians"].items() if name.startswith(library))
            for library in ("metajax", "peft")
        )
        assert row["ratio"] == pytest.approx(theirs / ours)
    assert (tmp_path / "lora.md").read_text() == table
    assert (tmp_path / "lora.png").exists()


@pytest.mark.slow
def test_other_losses_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lora.lm, "save_pretrained", _save_another(lora.lm.save_pretrained))
    config = lora.Config(cells=("few",), tasks=1, peer_tasks=1, steps=1, rank=2, out=tmp_path)
    with pytest.raises(ValueError, match=r"2 × 5 tokens.*differ by .* more than tolerance=0\.0001"):
        lora.run(config)


def _save_another(save):
    def saved(folder, config, params):
        scale = {"scale": 2 * params["norm"]["scale"]}
        save(folder, config, {**params, "norm": scale})

    return saved


def test_products_are_counted():
    # Kernels of a block 4 · 16² + 3 · 16 · 24, of the head 16 · 32; all forward and back, but not
    # back to the input of the first block's query, key and value.
    kernels = 2 * (4 * 256 + 3 * 384) + 512
    config = lora.Config(cells=("few",), tasks=3, peer_tasks=1, steps=4)
    wanted = 2 * (3 * 4 * 2 * 5) * (2 * kernels - 3 * 256) / 1e9
    assert lora.gigaflops(config, lora.CELLS["few"]) == pytest.approx(wanted)
    kernels = 2 * (4 * 256 + 3 * 384) + 3 / 8 * 16 * 40  # the head of three tokens in eight
    wanted = 2 * (3 * 4 * 2 * 8) * (2 * kernels - 3 * 256) / 1e9
    assert lora.gigaflops(config, lora.CELLS["answers"]) == pytest.approx(wanted)
