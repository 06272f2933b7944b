"""The character model: its text, its validation loss, and one tiny run that goes on."""

import io
import json
import urllib.error
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common
from experiments.language.shakespeare import config as options
from experiments.language.shakespeare import text as texts
from experiments.language.shakespeare import train
from metajax.data import DataNotFoundError
from metajax.errors import FileError
from metajax.lm import TokenBatch, next_token_loss
from metajax.models import Transformer

SPEECH = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak.\n\n"


@pytest.mark.slow
def test_a_tiny_run_and_a_resume(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(20 * SPEECH)
    sizes = ["--layers", "1", "--heads", "2", "--width", "16", "--length", "16", "--batch", "4"]
    steps = ["--steps", "6", "--log-every", "2", "--checkpoint-every", "4", "--validate-every", "4"]
    arguments = [*sizes, *steps, "--data", str(tmp_path / "text.txt")]
    out = tmp_path / "run"
    train.main([*arguments, "--out", str(out)])
    printed = capsys.readouterr().out
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "table.md").read_text() in printed
    assert (out / "samples.txt").read_text().count("----") == 2
    result = json.loads((out / "result.json").read_text())
    assert result["published"] is None  # for another text
    lines = common.read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert ["validation_loss" in line for line in lines] == [False, True, True]
    assert result["validation_loss"] == lines[-1]["validation_loss"] < lines[0]["loss"]
    assert all(line["characters_per_second"] > 0 for line in lines)

    # Without its last checkpoint, the run goes on from the one before, to the same numbers.
    for file in sorted((out / "checkpoints" / "6").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (out / "checkpoints" / "6").rmdir()
    train.main([*arguments, "--out", str(out), "--resume"])
    assert (
        json.loads((out / "result.json").read_text())["validation_loss"]
        == (result["validation_loss"])
    )


@pytest.mark.parametrize("n", [33, 40, 41, 42])
def test_the_validation_loss_counts_every_target_once(n):
    logits = jax.random.normal(jax.random.key(0), (7, 7))
    loss_fn = next_token_loss(lambda params, tokens, segment_ids=None: params[tokens])
    tokens = np.random.default_rng(0).integers(0, 7, n).astype(np.int32)
    ours = train.text_loss(loss_fn, tokens, length=8, batch=3)(logits)
    # A bigram's loss doesn't depend on where windows begin.
    whole, metrics = loss_fn(logits, TokenBatch(jnp.asarray(tokens)[None]))
    assert float(metrics["tokens"]) == n - 1
    assert ours == pytest.approx(float(whole), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_optimizers_update_every_parameter(optimizer):
    config = options.Config(optimizer=optimizer, steps=10)
    params = {
        "block_0": {"kernel": jnp.eye(3), "scale": jnp.ones(3)},
        "embed": {"embedding": jnp.ones((4, 3))},
    }
    chosen = options.optimizer_of(config)
    state = chosen.init(params)
    for _ in range(2):  # the first step's rate is 0
        updates, state = chosen.update(params, state, params)
    assert all(bool((leaf != 0).any()) for leaf in jax.tree.leaves(updates))


def test_both_forms_have_as_many_parameters():
    count = {}
    for form in ("llama", "gpt2"):
        model = Transformer(options.model_config(options.Config(form=form), 65))
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        count[form] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count["gpt2"] == pytest.approx(count["llama"], rel=0.01)


def test_the_text_is_downloaded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path))
    text = "First Citizen:\n" + "Speak. " * 150_000
    calls = []

    def urlopen(url, timeout):
        calls.append(url)
        return io.BytesIO(text.encode())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert texts.read_text(None) == texts.read_text(None) == text
    assert calls == [texts.URL]

    cached = tmp_path / "text" / "tinyshakespeare.txt"
    cached.write_text("First Citizen")
    with pytest.raises(DataNotFoundError, match=r"tinyshakespeare\.txt is not Shakespeare's plays"):
        texts.read_text(None)


def test_texts_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path))

    def urlopen(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(DataNotFoundError, match=r"no network.*--data FILE"):
        texts.read_text(None)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>"))
    with pytest.raises(DataNotFoundError, match="begin with '<html>'"):
        texts.read_text(None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataNotFoundError, match="there is no file"):
        texts.read_text(tmp_path / "nothing.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match=r"bytes\.txt can't be read"):
        texts.read_text(tmp_path / "bytes.txt")
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(common.RunError, match="5 characters is too short for windows of 64"):
        train.main(["--data", str(tmp_path / "short.txt"), "--out", str(tmp_path / "run")])


def test_wrong_values(capsys):
    for arguments in (["--layers", "0"], ["--rate", "-1"], ["--length", "1"]):
        with pytest.raises(SystemExit) as stop:
            train.main(arguments)
        assert stop.value.code == 2
    assert "length must be at least 2; got 1" in " ".join(capsys.readouterr().err.split())
