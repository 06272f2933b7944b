"""Completions of ``transformers serve``, with a small trained Llama.

They need the folder of a Hugging Face checkpoint of stories260K in METAJAX_STORIES, and what
``pip install "transformers[serving]"`` brings.
"""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request

import jax
import numpy as np
import optax
import pytest

import metajax
from metajax import evolve as ev
from metajax import lm
from metajax.lm import lora

FOLDER = os.environ.get("METAJAX_STORIES", "")
NEEDED = ("fastapi", "openai", "peft", "torch", "transformers", "uvicorn")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="METAJAX_STORIES names no folder"),
    pytest.mark.skipif(bool(MISSING), reason=f"without {', '.join(MISSING)}"),
]
TEXTS = ["Once upon a time", "Tom and Sue went to the park. They", "The dog was sad because"]
NAMES = ["Amy", "Ben", "Lily", "Max", "Mia", "Sam", "Sue", "Tim", "Tom", "Zoe"]
LENGTH = 24


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as written:
        server = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", *words],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=written,
            stderr=written,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health"):
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def stories():
    model, params = lm.load_pretrained(FOLDER)
    return model, params, lm.load_tokenizer(FOLDER)


def tasks_of(tokenizer, texts=TEXTS):
    rows = [tokenizer.encode(text) for text in texts]
    width = max(map(len, rows))
    prompts = np.array([[0] * (width - len(row)) + row for row in rows], np.int32)
    lengths = np.array([len(row) for row in rows])
    return ev.Tasks(prompts, lengths, np.ones(len(rows), int), np.ones(len(rows), bool))


def solver(url, stories, **options):
    model, _, tokenizer = stories
    return ev.served(
        url,
        model,
        answer_length=lambda level: LENGTH,
        end=tokenizer.eos_id,
        slack=0,
        server="transformers",
        name=FOLDER,
        tokenizer=tokenizer,
        **options,
    )


def factors_of(params, seed, b_std=0.1):
    return lora.init(
        params, jax.random.key(seed), rank=4, targets=r"attention/(query|value)", b_std=b_std
    )


def greedy(stories, factors=None, params=None):
    """What the model here writes."""
    model, own, tokenizer = stories
    prompts = [tokenizer.encode(text) for text in TEXTS]
    return lm.generate(model, params or own, prompts, lora=factors, max_new_tokens=LENGTH)


def must_be(found, expected):
    np.testing.assert_array_equal(found.tokens[:, 0, :LENGTH], expected.tokens[:, 0])
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_allclose(
        found.log_probs[:, 0, :LENGTH], expected.log_probs[:, 0], rtol=1e-3, atol=1e-3
    )


def test_its_likeliest_tokens_are_the_models(url, stories):
    _, params, tokenizer = stories
    found = solver(url, stories)(params, jax.random.key(0), tasks_of(tokenizer))
    must_be(found, greedy(stories))


def test_it_serves_each_rounds_adapter(url, stories, tmp_path):
    _, params, tokenizer = stories
    solve = solver(url, stories, adapters=tmp_path)
    written = []
    for seed in range(2):
        factors = factors_of(params, seed)
        both = {"params": params, "lora": factors}
        found = solve(both, jax.random.key(0), tasks_of(tokenizer))
        must_be(found, greedy(stories, factors))
        written.append(found.tokens.tolist())
    assert written[0] != written[1]


def test_whole_parameters_can_be_published_as_a_folder(url, stories, tmp_path):
    model, params, tokenizer = stories

    def publish(params):
        lm.save_pretrained(tmp_path, model.config, params)
        return str(tmp_path)

    changed = lora.merge(params, factors_of(params, 2))
    solve = solver(url, stories, publish=publish)
    must_be(solve(changed, jax.random.key(0), tasks_of(tokenizer)), greedy(stories, params=changed))


def test_samples_are_the_models_and_another_models_are_refused(url, stories, tmp_path):
    import torch
    import transformers

    _, params, tokenizer = stories
    options = {"samples": 16, "temperature": 1.0, "workers": 1}
    tasks = tasks_of(tokenizer)
    found = solver(url, stories, **options)(params, jax.random.key(1), tasks)
    again = solver(url, stories, **options)(params, jax.random.key(1), tasks)
    np.testing.assert_array_equal(found.tokens, again.tokens)
    assert len({tuple(row) for row in found.tokens[0].tolist()}) > 8
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER)
    prompt = tokenizer.encode(TEXTS[0])
    for tokens, log_probs, length in zip(*(part[0] for part in found[:3]), strict=True):
        text = torch.tensor([[*prompt, *tokens[:length].tolist()]])
        with torch.no_grad():
            expected = theirs(text).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = expected.gather(1, text[0, len(prompt) :, None])[:, 0]
        np.testing.assert_allclose(log_probs[:length], expected, rtol=1e-3, atol=1e-3)
    # The server draws from the base, whose adapter it didn't get.
    stale = solver(url, stories, publish=lambda params: FOLDER, **options)
    both = {"params": params, "lora": factors_of(params, 1, b_std=0.5)}
    with pytest.raises(metajax.ServerError, match="doesn't draw from the model"):
        stale(both, jax.random.key(1), tasks)


def test_two_rounds_learn_from_what_it_draws(url, stories, tmp_path):
    model, params, tokenizer = stories
    problem = ev.text_problem(
        tokenizer,
        name="stories",
        write=lambda rng, level: f"{rng.choice(NAMES)} and {rng.choice(NAMES)} had {level}",
        answer=lambda prompt: ".",
        read=lambda text: int(text[-1]) if text[-1:].isdigit() else None,
        longest=lambda level: (40, LENGTH),
    )

    def verify(tasks, completions):
        rewards = np.array(
            [[float(tokenizer.decode(row).count("a") > 3) for row in rows]
             for rows in completions.tokens]
        )  # fmt: skip
        trusted = (rewards.max(axis=1) > 0).astype(np.float32)
        return ev.Verdict(rewards.argmax(axis=1), trusted, rewards.mean(axis=1), rewards)

    solve = solver(url, stories, samples=8, temperature=1.0, adapters=tmp_path)
    loop = ev.EvolveConfig(
        ev.program_proposer(problem, count=4),
        solve,
        ev.Verifier("the letter a", verify),
        ev.grpo(
            lora.frozen_base(model),
            optax.adam(3e-3),
            steps=4,
            batch=16,
            micro_batches=2,
            trainable=lora.is_factor,
        ),
        ev.accept_all(),
        ev.one_harder(3),
        real=lambda key: ev.real_examples(problem, key, range(1, 3), 16),
        held_out=lambda levels: ev.held_out_tasks(
            problem, jax.random.key(1), known=range(1, 3), frontier=range(3, 5), each=2
        ),
    )
    factors = lora.init(params, jax.random.key(0), rank=4, targets="attention")
    state = ev.init_state(
        loop,
        {"params": params, "lora": factors},
        jax.random.key(2),
        rounds=2,
        proposals=4,
        longest=96,
        vocab_size=model.config.vocab_size,
    )
    reports = [report for state, report in ev.evolve(loop, state)]
    assert [report.accepted for report in reports] == [True, True]
    # The base's first adapter is gone: the two of the second round are kept.
    assert len(list(tmp_path.iterdir())) == 2
    assert all(report.tokens["generated"] > 0 for report in reports)
