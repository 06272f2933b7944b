"""Self-evolution of a checkpoint at a tiny size: every update, a resume, and what is never seen."""

import functools
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import common
from experiments.evolution.pretrained import random_checkpoint, tasks, train
from experiments.evolution.pretrained.config import Config, set_up
from metajax import evolve as ev
from metajax import lm
from metajax.models import Transformer, TransformerConfig

# As many sums in every chunk, so that few programs are compiled; and trusted for a single vote.
TINY = (
    "--steps", "1", "--rounds", "2", "--round-steps", "1", "--proposals", "16", "--samples", "2",
    "--agreement", "0.5", "--worked", "6", "--rank", "2", "--batch", "8", "--micro-batch", "8",
    "--chunk", "4", "--held-out", "4", "--test-prompts", "2", "--temperature", "1",
)  # fmt: skip
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    random_checkpoint.make(folder, characters=tasks.CHARACTERS, seed=1, layers=1)
    return folder


def lines(out):
    """The rounds' metrics without what depends on the clock."""
    return [
        {name: value for name, value in record.items() if not name.startswith("seconds")}
        for record in common.read_metrics(out / "rounds" / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_random_weights_evolve_and_a_resumed_run_gives_the_same_bits(tmp_path, capsys, monkeypatch):
    make = functools.partial(random_checkpoint.make, layers=1)
    monkeypatch.setattr(random_checkpoint, "make", make)
    out = tmp_path / "run"
    options = [*TINY, "--gate", "none", "--out", str(out)]
    train.main(options)
    printed, table = capsys.readouterr().out, (out / "table.md").read_text()
    assert table in printed
    assert "random weights" in table
    assert "the scores mean nothing" in table
    assert "no oracle" in table
    assert (out / "tasks.txt").read_text().count(" + ") == 4 * 5
    assert (out / "lengths.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((out / "result.json").read_text())
    assert set(result["tested"]) == {"round 0", "last round", "control"}
    assert set(result["tokens"]) == {"worked examples", "rounds", "control"}
    before = lines(out)
    assert [line["step"] for line in before] == [0, 1, 2]
    assert all(line["kept"] > 0 and line["accepted"] for line in before[1:])

    model, _ = lm.load_pretrained(out / "checkpoint", scan=False)
    first, last = (
        lm.load_adapters(out / name, config=model.config) for name in ("base/adapters", "adapters")
    )
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first, last)
    assert any(jax.tree.leaves(moved))
    peft = json.loads((out / "adapters" / CONFIG).read_text())
    assert peft["peft_type"] == "LORA"
    assert peft["r"] == 2
    assert set(peft["target_modules"]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    folder = out / "rounds" / "checkpoints"
    with ocp.StandardCheckpointer() as checkpointer:
        names = checkpointer.restore(folder.absolute() / "2").keys()
    assert any(name.startswith(".train.params['lora']") for name in names)
    assert not any("['params']" in name for name in names), "base weights aren't stored again"
    weights = (out / "adapters" / WEIGHTS).read_bytes()

    # Without its last checkpoint, the run goes on from the one before, to the same bits.
    shutil.rmtree(folder / "2")
    (out / "adapters" / WEIGHTS).unlink()
    train.main([*options, "--resume", "--control", "no"])
    assert lines(out) == before
    assert (out / "adapters" / WEIGHTS).read_bytes() == weights


@pytest.mark.slow
@pytest.mark.parametrize("update", ["grpo", "maml"])
def test_the_other_updates_of_a_checkpoint_that_is_there(checkpoint, tmp_path, update):
    out = tmp_path / "run"
    train.main(
        [*TINY, "--rounds", "1", "--checkpoint", str(checkpoint), "--update", update,
         "--control", "no", "--out", str(out)]
    )  # fmt: skip
    table = (out / "table.md").read_text()
    assert "random" not in table
    assert str(checkpoint.parent) not in table
    records = lines(out)
    assert all("metrics_loss" in record for record in records[1:])
    assert all("known_before" in record for record in records[1:])
    assert not (out / "checkpoint").exists()
    assert json.loads((out / "adapters" / CONFIG).read_text())["base_model_name_or_path"] == str(
        checkpoint
    )
    trained = json.loads((out / "result.json").read_text())["tokens"]
    assert trained["rounds"] > 0


def sums_setup(checkpoint, **options):
    config = Config(
        checkpoint=checkpoint, rounds=2, held_out=8, test_prompts=16, worked=20, rank=2, **options
    )
    run = common.Run("evolve-pretrained", checkpoint, config)
    return set_up(run, config)


@pytest.mark.slow
def test_tested_and_held_out_sums_are_never_learned_from(checkpoint):
    setup = sums_setup(checkpoint)
    loop = train.loop_config(setup)
    tested = ev.fingerprints(setup.tests)
    held_out = [loop.held_out(ev.Levels(level, level)) for level in (3, 4)]
    held_out = np.concatenate([ev.fingerprints(part) for both in held_out for part in both[::2]])
    worked = setup.worked
    assert len(worked.tokens) == 20
    texts = {setup.problem.show(row)[3:].split("</s>")[0] for row in worked.tokens}
    assert len(texts) == 20
    for text in texts:
        prompt, found = text[: text.index("=") + 1], text[text.index("=") + 1 :]
        assert found == tasks.answer(prompt)
        assert tasks.read(prompt) in (1, 2)
    prompts = [
        ev.Tasks(row[None, :size], np.array([size]), None, None)
        for row, size in zip(worked.tokens, worked.prompt, strict=True)
    ]
    marks = np.concatenate([ev.fingerprints(prompt) for prompt in prompts])
    assert not np.isin(marks, [*tested, *held_out]).any()
    proposed = loop.propose(None, jax.random.key(0), ev.Levels(1, 2))
    assert np.isin(ev.fingerprints(proposed), tested).any()
    valid = jax.tree.map(lambda leaf: np.asarray(leaf)[proposed.valid], proposed)
    assert not np.isin(ev.fingerprints(valid), tested).any()


def test_a_verifier_that_knows_is_said_to(checkpoint):
    setup = sums_setup(checkpoint, verifier="exact")
    loop = train.loop_config(setup)
    assert loop.verifier.uses_oracle
    assert "it asks an oracle" in train.facts(setup, loop)["Kept"]


def test_sums_are_written_answered_and_read():
    rng = np.random.default_rng(0)
    for level in (1, 2, 30):
        for _ in range(20):
            text = tasks.write(rng, level)
            assert tasks.read(text) == level
            first, second = map(int, text[:-2].split(" + "))
            assert tasks.answer(text) == f" {first + second}"
    for text in ("1 + 22 =", "01 + 22 =", "1+2=", "1 + 2 = ", "a + b =", ""):
        assert tasks.read(text) is None


def no_end(folder):
    (folder / "tokenizer_config.json").write_text("{}")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def no_digits(folder):
    random_checkpoint.make(folder, characters="ab", seed=0)


def short(folder):
    random_checkpoint.make(folder, characters=tasks.CHARACTERS, seed=0, max_length=32)


def fewer_tokens(folder):
    config = TransformerConfig.llama(vocab_size=5, width=8, n_layers=1, n_heads=2)
    params = Transformer(config).init(jax.random.key(0), np.zeros((1, 2), int))["params"]
    lm.save_pretrained(folder, config, params)


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (shutil.rmtree, {}, "checkpoint: .* is no folder"),
        (no_end, {}, "checkpoint: end must be given: the tokenizer names no token"),
        (no_tokenizer, {}, r"checkpoint: .* has no tokenizer\.json"),
        (no_digits, {}, "checkpoint: write must give prompts that the tokenizer keeps"),
        (fewer_tokens, {}, "checkpoint: vocab_size must be at least the tokenizer's 15, got 5"),
        (short, {}, "takes 32 tokens; with base_levels=2 and rounds=2 up to 48"),
        (None, {"rank": 40}, "rank: rank must be at most the sides of the matrices, got 40"),
        (None, {"base_levels": 1, "test_prompts": 2000}, "worked: no sum of up to base_levels=1"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(checkpoint, tmp_path, damage, options, message):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    if damage is not None:
        damage(folder)
    defaults = {"checkpoint": folder, "rounds": 2, "test_prompts": 2, "held_out": 2, "rank": 2}
    config = Config(**defaults | options)
    with pytest.raises(common.RunError, match=message):
        set_up(common.Run("name", tmp_path, config), config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agreement": 1.5}, "agreement must be above 0 and at most 1; got 1.5"),
        ({"held_out": 1}, "held_out must be at least 2; got 1"),
        ({"samples": 1}, "samples must be at least 2, to be compared; got 1"),
        (
            {"samples": 1, "verifier": "exact", "update": "grpo"},
            "samples must be at least 2",
        ),
        ({"batch": 6}, "batch must be a multiple of 4; got 6"),
        ({"batch": 12, "update": "maml"}, "batch must be a multiple of 8; got 12"),
        ({"proposals": 7, "update": "maml"}, "proposals must be at least 8; got 7"),
        ({"worked": 0}, "worked must be above zero; got 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
