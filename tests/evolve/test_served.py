"""Answers from a server, beside what the same model here makes of them."""

import itertools
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from stand_in_server import StandIn, log_probs_of, serving

import metajax
from metajax import evolve as ev
from metajax import lm
from metajax.evolve._scoring import Scored
from metajax.evolve._server_checks import must_be_drawn_from
from metajax.evolve._server_requests import Answer
from metajax.evolve._server_texts import readings
from metajax.models import Transformer, TransformerConfig

END = 2
CONFIG = TransformerConfig.llama(
    vocab_size=24, width=16, n_layers=2, n_heads=2, max_length=64, scan=False
)
PROMPTS = [[1, 5, 6, 7], [1, 8], [9, 9, 9], [1, 4, 4]]
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model():
    network = Transformer(CONFIG)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    return network, jax.tree.map(lambda leaf: 3.0 * leaf, params)


@pytest.fixture
def stand_in(model):
    with serving(StandIn(*model)) as server:
        yield server


def tasks_of(prompts=PROMPTS, valid=(True, True, False, True)):
    width = max(map(len, prompts))
    rows = np.array([[0] * (width - len(prompt)) + prompt for prompt in prompts], np.int32)
    count = len(prompts)
    lengths = np.array([len(prompt) for prompt in prompts])
    return ev.Tasks(rows, lengths, np.full(count, 4), np.array(valid[:count]))


def solver(stand_in, **options):
    options = {"samples": 2, "temperature": 0.8} | options
    return ev.served(
        stand_in.url, stand_in.model, answer_length=lambda level: level, end=END, **options
    )


def factors_of(params, seed):
    return lm.lora.init(
        params, jax.random.key(seed), rank=2, targets=r"attention/(query|value)", b_std=0.5
    )


def by_hand(stand_in, found, lora=None):
    """The log-probabilities of all tokens, padded as ``found`` is."""
    expected = np.zeros_like(found.log_probs)
    for row, sample in np.argwhere(found.lengths > 0):
        tokens = found.tokens[row, sample, : found.lengths[row, sample]]
        expected[row, sample, : len(tokens)] = log_probs_of(
            stand_in.model, stand_in.params, lora, PROMPTS[row], tokens.tolist()
        )
    return expected


def completions_asked(stand_in):
    return [body for path, body in stand_in.asked if path.endswith("completions")]


def test_completions_are_the_servers(stand_in):
    solve = solver(stand_in)
    found = solve(stand_in.params, KEY, tasks_of())
    bodies = completions_asked(stand_in)
    # Two samples of each valid task, each with a seed of its own.
    assert sorted(body["prompt"] for body in bodies) == sorted(2 * [PROMPTS[i] for i in (0, 1, 3)])
    assert len({body["seed"] for body in bodies}) == 6
    assert {(body["model"], body["max_tokens"], body["temperature"]) for body in bodies} == {
        ("base", 6, 0.8)
    }
    assert all(body["stop_token_ids"] == [END] and body["ignore_eos"] for body in bodies)
    assert found.tokens.shape == (4, 2, 16)
    assert found.lengths[2].tolist() == [0, 0]
    assert found.lengths[[0, 1, 3]].min() >= 1
    inside = np.arange(16) < found.lengths[..., None]
    assert not found.tokens[~inside].any()
    np.testing.assert_allclose(found.log_probs, by_hand(stand_in, found), atol=1e-5)
    last = np.take_along_axis(found.tokens, np.maximum(found.lengths - 1, 0)[..., None], 2)[..., 0]
    assert (found.ended == ((last == END) & (found.lengths > 0))).all()
    again = solve(stand_in.params, KEY, tasks_of())
    np.testing.assert_array_equal(found.tokens, again.tokens)
    assert (solve(stand_in.params, jax.random.key(4), tasks_of()).tokens != found.tokens).any()
    assert solve.temperature == 0.8


def test_a_prefix_stands_before_each_prompt_and_its_score(stand_in):
    found = solver(stand_in, prefix=[1, 3, 7], score=True)(stand_in.params, KEY, tasks_of())
    sent = {tuple(body["prompt"]) for body in completions_asked(stand_in)}
    # The begin token stands once.
    assert sent == {(1, 3, 7, 5, 6, 7), (1, 3, 7, 8), (1, 3, 7, 4, 4)}
    tokens = found.tokens[1, 0, : found.lengths[1, 0]].tolist()
    expected = log_probs_of(stand_in.model, stand_in.params, None, [1, 3, 7, 8], tokens)
    np.testing.assert_allclose(found.log_probs[1, 0, : len(tokens)], expected, atol=1e-5)


def test_only_tasks_that_are_valid_are_sent(stand_in):
    found = solver(stand_in)(stand_in.params, KEY, tasks_of(valid=[False] * 4))
    assert not stand_in.asked
    assert not found.lengths.any()


@pytest.mark.parametrize("server_gives", [True, False])
def test_the_model_scores_where_it_should(stand_in, server_gives):
    stand_in.log_probs = server_gives
    found = solver(stand_in, score=server_gives)(stand_in.params, KEY, tasks_of())
    assert all(("logprobs" in body) != server_gives for body in completions_asked(stand_in))
    np.testing.assert_allclose(found.log_probs, by_hand(stand_in, found), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_each_rounds_adapter_is_handed_over(stand_in, tmp_path, server):
    solve = solver(stand_in, server=server, adapters=tmp_path, samples=1)
    factors = [factors_of(stand_in.params, seed) for seed in range(3)]
    for lora in factors:
        params = {"params": stand_in.params, "lora": lora}
        for _ in range(2):  # nothing is loaded for the second time
            found = solve(params, KEY, tasks_of())
            np.testing.assert_allclose(found.log_probs, by_hand(stand_in, found, lora), atol=1e-5)
    loads = [body for path, body in stand_in.asked if path.endswith("/load_lora_adapter")]
    names = [body["lora_name"] for body in loads]
    assert len(set(names)) == len(names) == 3
    prefix = "base:" if server == "sglang" else ""
    asked = [body["model"] for body in completions_asked(stand_in)]
    assert asked == [prefix + name for name in names for _ in range(6)]
    # The two newest stay, on the server and in the folder.
    assert sorted(stand_in.adapters) == sorted(names[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
    # A new process, which goes on from there, finds its adapter loaded.
    resumed = solver(stand_in, server=server, adapters=tmp_path, samples=1)
    np.testing.assert_array_equal(resumed(params, KEY, tasks_of()).tokens, found.tokens)


def test_parameters_can_be_handed_over_in_another_way(stand_in):
    given = []

    def publish(params):
        given.append(params)
        stand_in.params = params
        return "base"

    solve = solver(stand_in, publish=publish)
    other = jax.tree.map(lambda leaf: 0.7 * leaf, stand_in.params)
    for params in (stand_in.params, other, other):
        found = solve(params, KEY, tasks_of())
        np.testing.assert_allclose(found.log_probs, by_hand(stand_in, found), atol=1e-5)
    assert len(given) == 2


@pytest.mark.slow
@pytest.mark.parametrize("gives", [True, False])
def test_an_adapter_that_is_not_served_is_noticed(stand_in, tmp_path, gives):
    stand_in.serves_base, stand_in.log_probs = True, gives
    factors = jax.tree.map(lambda leaf: 4.0 * leaf, factors_of(stand_in.params, 0))
    params = {"params": stand_in.params, "lora": factors}
    solve = solver(stand_in, samples=24, adapters=tmp_path)
    with pytest.raises(metajax.ServerError) as caught:
        solve(params, KEY, tasks_of())
    words = "log-probabilities aren't the model's" if gives else "doesn't draw from the model"
    assert words in str(caught.value)
    assert "the adapter of an earlier round" in str(caught.value)
    stand_in.serves_base = False
    solve(params, KEY, tasks_of())


def test_a_greedy_server_of_another_model_is_noticed(stand_in):
    stand_in.log_probs = False
    solve = solver(stand_in, temperature=None, samples=1)
    solve(stand_in.params, KEY, tasks_of())
    other = jax.tree.map(lambda leaf: leaf[::-1], stand_in.params)
    with pytest.raises(metajax.ServerError, match="doesn't draw from the model"):
        solve(other, KEY, tasks_of())


def test_log_probs_at_the_temperature_are_named(stand_in):
    stand_in.tempered = True
    with pytest.raises(metajax.ServerError, match=r"agree at the temperature.*RETURN_ORIGINAL"):
        solver(stand_in)(stand_in.params, KEY, tasks_of())
    solver(stand_in, score=True)(stand_in.params, KEY, tasks_of())


@pytest.mark.parametrize(("off", "read_otherwise"), [(0.0, 0.0), (0.0, 0.15), (3.0, 0.0)])
def test_what_is_drawn_from_a_model_passes_and_else_does_not(off, read_otherwise):
    """Tokens from a known distribution; ``off`` moves what they were drawn from."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 5, 30))
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    noise = rng.gumbel(size=logits.shape)
    drawn = (logits + off * rng.normal(size=logits.shape) + noise).argmax(axis=-1)
    chosen = np.take_along_axis(log_probs, drawn[..., None], axis=-1)[..., 0]
    chosen[rng.random(2000) < read_otherwise, 2] = -15.0
    mean = (np.exp(log_probs) * log_probs).sum(axis=-1)
    variance = (np.exp(log_probs) * log_probs**2).sum(axis=-1) - mean**2
    scored = Scored(chosen, chosen, mean, variance)
    answers = [Answer([row], None, True) for row in drawn]
    if off:
        with pytest.raises(metajax.ServerError, match=r"is -0\.\d+ nats a token.*2000 completions"):
            must_be_drawn_from(answers, scored, 0.01, "url")
        # Nothing is said where too many texts couldn't be read.
        unread = [answer._replace(exact=n % 3 > 0) for n, answer in enumerate(answers)]
        must_be_drawn_from(unread, scored, 0.01, "url")
    else:
        must_be_drawn_from(answers, scored, 1e-9, "url")


def test_a_request_is_tried_again(stand_in):
    stand_in.faults = [None, 429, 503, 500]
    found = solver(stand_in, name="base", workers=1)(stand_in.params, KEY, tasks_of())
    assert len(completions_asked(stand_in)) == 6
    assert found.lengths[[0, 1, 3]].min() >= 1


def test_a_server_that_never_answers_is_named(stand_in):
    stand_in.faults = [503] * 100
    with pytest.raises(metajax.ServerError, match=r"no answer in 3 tries.*503.*a fault") as caught:
        solver(stand_in, retries=2)(stand_in.params, KEY, tasks_of())
    assert caught.value.status == 503
    away = "http://127.0.0.1:9"
    with pytest.raises(metajax.ServerError, match="ConnectionRefused") as caught:
        ev.served(away, stand_in.model, answer_length=int, end=END, retries=0)(
            stand_in.params, KEY, tasks_of()
        )
    assert caught.value.status is None


def test_a_timeout_is_named(stand_in):
    stand_in.seconds = 1.0
    solve = solver(stand_in, name="base", timeout=0.1, retries=0)
    with pytest.raises(metajax.ServerError, match="timed out"):
        solve(stand_in.params, KEY, tasks_of())


def test_a_refusal_ends_all_at_once(stand_in):
    for options, words in (
        ({"name": "another"}, "404.*another does not exist"),
        ({"name": "base", "api_key": "wrong"}, "401"),
    ):
        stand_in.asked.clear()
        with pytest.raises(metajax.ServerError, match=words) as caught:
            solver(stand_in, workers=1, **options)(stand_in.params, KEY, tasks_of())
        assert "wrong" not in str(caught.value)
        assert len(stand_in.asked) <= 4  # of six


def test_requests_go_together_as_far_as_asked(stand_in):
    stand_in.seconds = 0.05
    solver(stand_in, name="base", workers=3, samples=4)(stand_in.params, KEY, tasks_of())
    assert 2 <= stand_in.most_together <= 3


def test_ctrl_c_ends_requests_that_wait(stand_in):
    stand_in.seconds = 20.0
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        solver(stand_in, name="base")(stand_in.params, KEY, tasks_of())
    assert time.perf_counter() - started < 5


@pytest.fixture(scope="module")
def tokenizer():
    """A token for each letter, "ab" and "</s>"; a text begins with "<s>"."""
    letters = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrst", "ab"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({each: n for n, each in enumerate(letters)}, [("a", "b")])
    )
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    template = "{% for m in messages %}{{ bos_token }}{{ m.content }}t{% endfor %}"
    return lm.HFTokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, {"default": template})


@pytest.mark.slow
@pytest.mark.parametrize("server", ["transformers", "openai", "chat"])
def test_a_server_that_takes_text_gives_the_same(stand_in, tokenizer, server):
    stand_in.tokenizer, stand_in.text_alone = tokenizer, True
    prompts = [[1, 5, 6, 22], [1, 8, 22], [9, 9, 22], [1, 5, 5, 22]]
    options = {"server": server, "tokenizer": tokenizer, "samples": 4}
    if server == "chat":
        ask = lambda text: [{"role": "user", "content": text[3:-1]}]
        options |= {"server": "openai", "chat": ask}
    tasks = tasks_of(prompts)
    found = solver(stand_in, **options)(stand_in.params, KEY, tasks)
    with_tokens = StandIn(stand_in.model, stand_in.params)
    with serving(with_tokens):
        same = solver(with_tokens, samples=4)(stand_in.params, KEY, tasks)
    paths = {path for path, _ in stand_in.asked if "models" not in path}
    assert paths == {"/v1/chat/completions" if server == "chat" else "/v1/completions"}
    # Other tokens only where the tokenizer would write "ab" in one piece, or special ones are lost.
    rows = zip(same.tokens.reshape(-1, 16), same.lengths.reshape(-1), strict=True)
    plain = np.array([_is_plain(row[:length].tolist()) for row, length in rows]).reshape(4, 4)
    assert plain[[0, 1, 3]].sum() >= 3
    for of_text, of_tokens in zip(found, same, strict=True):
        np.testing.assert_allclose(of_text[plain], of_tokens[plain], atol=1e-5)
    if server == "transformers":
        (fields,) = {tuple(sorted(body)) for body in completions_asked(stand_in)}
        assert fields == ("generation_config", "max_tokens", "model", "prompt", "seed")


def _is_plain(tokens):
    """Whether the tokenizer would write an answer's text by these tokens."""
    return not {0, 1} & {*tokens} and all(pair != (3, 4) for pair in itertools.pairwise(tokens))


def test_the_tokens_of_a_text_are_checked_by_their_number(tokenizer):
    assert readings(tokenizer, [1, 5], "abc", [2]) == ([[23, 5]], True)
    assert readings(tokenizer, [1, 5], "abc", []) == ([[23, 5]], True)
    assert readings(tokenizer, [1, 5], "abc", [3]) == ([[23, 5]], False)
    # The prompt's last letter would be merged with the answer's first one.
    assert readings(tokenizer, [1, 3], "bc", [2]) == ([[4, 5]], True)


def test_a_prompt_that_the_server_would_read_otherwise_is_named(stand_in, tokenizer):
    solve = solver(stand_in, server="openai", tokenizer=tokenizer)
    with pytest.raises(
        metajax.ArgumentError, match=r"prompt 'abc'.*\[1, 23, 5\], not \[1, 3, 4, 5\]"
    ):
        solve(stand_in.params, KEY, tasks_of([[1, 3, 4, 5]]))


def test_answers_that_are_none_are_named(stand_in, monkeypatch):
    broken = {
        "no completion": {"choices": []},
        "broke a completion off: 'abort'": {
            "choices": [{"finish_reason": "abort", "token_ids": [5]}]
        },
        "another model: it drew token 99": {
            "choices": [{"finish_reason": "stop", "token_ids": [99]}]
        },
        "no token_ids": {"choices": [{"finish_reason": "stop", "text": "a"}]},
        "no JSON: 'oops'": "oops",
    }
    for words, content in broken.items():
        monkeypatch.setattr(stand_in, "answer", lambda *_, content=content: (200, content))
        with pytest.raises(metajax.ServerError, match=words):
            solver(stand_in, name="base")(stand_in.params, KEY, tasks_of())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": None}, "samples=2 would all be the same"),
        ({"samples": 0}, "samples"),
        ({"temperature": -1.0}, "temperature"),
        ({"server": "ollama"}, "server must be one of"),
        ({"server": "openai"}, "tokenizer must be given"),
        ({"chat": lambda text: []}, "tokenizer must be given"),
        ({"adapters": "a", "publish": lambda params: "b"}, "give one of them"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"retries": -1}, "retries"),
        ({"timeout": 0.0}, "timeout"),
        ({"workers": 0}, "workers"),
    ],
)
def test_bad_options_are_named(stand_in, options, words):
    with pytest.raises(metajax.ArgumentError, match=words):
        solver(stand_in, **options)


def test_bad_tasks_and_parameters_are_named(stand_in):
    with pytest.raises(metajax.ArgumentError, match="url must be like"):
        ev.served("localhost:8000", stand_in.model, answer_length=int, end=END)
    params = {"params": stand_in.params, "lora": factors_of(stand_in.params, 0)}
    with pytest.raises(metajax.ArgumentError, match="adapters or publish must be given"):
        solver(stand_in)(params, KEY, tasks_of())
    with pytest.raises(metajax.ArgumentError, match="max_length=64, got 66"):
        solver(stand_in)(stand_in.params, KEY, tasks_of([[5] * 60]))
    stand_in.adapters["one"], stand_in.adapters["two"] = {}, {}
    assert solver(stand_in)(stand_in.params, KEY, tasks_of()).tokens.any()  # they are no models
