"""Updates: what moves, what is asked for, the losses and gradients, and that a state is whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import no_compilation
from toys import COPY, solved

import metajax
from metajax import _marks, lm
from metajax import evolve as ev
from metajax.evolve.grpo import _advantages, _scored
from metajax.evolve.meta_step import _grouped
from metajax.evolve.rehearsal import rehearsed
from metajax.lm import lora
from metajax.models import Transformer, TransformerConfig
from metajax.trainer import episode_keys

PARAMS = {"table": 0.3 * jax.random.normal(jax.random.key(0), (14, 14)), "bias": jnp.zeros(14)}
MIXTURE = ev.published_mixture(2)


def apply(params, tokens, **_):
    """A bigram model."""
    return params["table"][tokens] + params["bias"]


def data_of(level=3, count=20, samples=1, seed=0):
    """Real data, and a round of right answers; further samples lack a digit."""
    real = ev.real_examples(COPY, jax.random.key(1), [1, 2], 40)
    tasks = COPY.draw(jax.random.key(seed), [level] * count)
    parts = [solved(COPY, tasks, wrong=() if s == 0 else range(count)) for s in range(samples)]
    completions = ev.Completions(
        *(np.concatenate(leaves, axis=1) for leaves in zip(*parts, strict=True))
    )
    verdict = ev.Verdict(np.zeros(count, int), np.ones(count), np.ones(count))
    rollouts = ev.Rollouts(tasks, completions, verdict)
    return ev.TrainingData(real, (), ev.labelled_examples(rollouts), rollouts)


def fine_tune(**options):
    options = {"steps": 3, "mixture": MIXTURE, "rows": 4, "row_length": 20} | options
    return ev.fine_tune(
        apply, optax.adamw(1e-2, weight_decay=0.1), micro_batches=2, pool=32, **options
    )


def grpo(**options):
    options = {"steps": 3, "batch": 8, "micro_batches": 2} | options
    return ev.grpo(apply, options.pop("optimizer", optax.adam(1e-2)), **options)


def meta_step(**options):
    learner = metajax.maml(lm.next_token_loss(apply), optax.sgd(0.1), steps=1)
    return ev.meta_step(learner, optax.adam(1e-2), **{"steps": 3, "meta_batch": 2} | options)


def written_before(params=PARAMS, count=16, length=12, seed=3):
    """Texts of the bigram model, with their log-probabilities."""
    rows = [jnp.zeros(count, int)]
    for key in jax.random.split(jax.random.key(seed), length):
        rows.append(jax.random.categorical(key, apply(params, rows[-1])))
    tokens = np.stack(rows, axis=1).astype(np.int32)
    return ev.Rehearsal(tokens, log_policy(params, tokens, 1.0).astype(np.float32))


def rehearsed_fine_tune(**options):
    return fine_tune(rehearsal=written_before(), **options)


UPDATES = {
    "fine-tuning": fine_tune,
    "fine-tuning with a rehearsal": rehearsed_fine_tune,
    "GRPO": grpo,
    "meta step": meta_step,
}


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("mesh", [None, metajax.task_mesh(2)], ids=["one", "shared"])
@pytest.mark.parametrize("name", UPDATES)
def test_an_update_learns_goes_on_and_leaves_the_old_state(name, mesh):
    update, data = UPDATES[name](mesh=mesh), data_of(samples=2)
    state = update.init(PARAMS, jax.random.key(0))
    new, metrics, tokens = update.update(state, data, jax.random.key(1), 1.0)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), PARAMS, new.params)
    assert all(jax.tree.leaves(moved))
    assert metrics["loss"].shape == (3,)
    assert tokens > 0
    assert int(new.step) == 3
    assert_equal(state.params, PARAMS)
    same, *_ = update.update(state, data, jax.random.key(1), 1.0)
    assert_equal(same.params, new.params)
    third, *_ = update.update(new, data, jax.random.key(2), 1.0)
    with no_compilation():
        update.update(third, data, jax.random.key(3), 0.5)
    still, *_ = update.update(state, data, jax.random.key(1), 0.0)
    assert_equal(still.params, PARAMS)


RESUMED = {
    "from the base": lambda: fine_tune(start="base"),
    "from the base, a part": lambda: fine_tune(start="base", trainable=lambda path: path == "bias"),
    "GRPO": lambda: grpo(kl=0.5),
    "GRPO, a part": lambda: grpo(kl=0.5, trainable=lambda path: path == "table"),
    "GRPO without divergence": lambda: grpo(kl=0.0, temperature=0.7),
    "fine-tuning": fine_tune,
    "fine-tuning with a rehearsal": rehearsed_fine_tune,
    "meta step": meta_step,
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_restored_state_goes_on_bit_for_bit_in_another_process(name):
    """As in a new process: the update is built again, and gets the arrays of the state alone."""
    data = data_of(samples=2)
    update = RESUMED[name]()
    state, *_ = update.update(update.init(PARAMS, jax.random.key(0)), data, jax.random.key(1))
    expected, metrics, _ = update.update(state, data, jax.random.key(2))
    other = jax.tree.map(lambda leaf: leaf + 1, PARAMS)
    structure = jax.tree.structure(RESUMED[name]().init(other, jax.random.key(9)))
    restored = structure.unflatten([jnp.array(leaf, copy=True) for leaf in jax.tree.leaves(state)])
    found, again, _ = RESUMED[name]().update(restored, data, jax.random.key(2))
    assert_equal(found.params, expected.params)
    assert_equal(again, metrics)


@pytest.mark.parametrize("build", [lambda: grpo(kl=0.5), lambda: fine_tune(start="base")])
def test_a_state_without_the_initial_parameters_is_named(build):
    update, data = build(), data_of(samples=2)
    optimizer = {"GRPO": lambda: grpo(kl=0.0)}.get(update.name, fine_tune)()
    with pytest.raises(ValueError, match=r"state\.optimizer_state has no initial_params"):
        update.update(optimizer.init(PARAMS, jax.random.key(0)), data, jax.random.key(1))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
def test_what_the_rollouts_say_of_their_probabilities_does_not_matter(temperature):
    """The policy is the model's own at the temperature, whatever log-probabilities came with it."""
    data, update = data_of(samples=2), grpo(temperature=temperature, kl=0.5)
    state = update.init(PARAMS, jax.random.key(0))
    expected, metrics, _ = update.update(state, data, jax.random.key(1))
    completions = data.rollouts.completions
    other = completions._replace(log_probs=completions.log_probs / temperature - 1)
    data = data._replace(rollouts=data.rollouts._replace(completions=other))
    found, again, _ = update.update(state, data, jax.random.key(1))
    assert_equal(found.params, expected.params)
    assert_equal(again, metrics)


def test_fine_tuning_from_the_base_forgets_the_rounds_before():
    update, data = fine_tune(start="base"), data_of()
    state = update.init(PARAMS, jax.random.key(0))
    first, *_ = update.update(state, data, jax.random.key(1), 1.0)
    moved = first._replace(params=jax.tree.map(lambda leaf: leaf + 1, first.params))
    again, *_ = update.update(moved._replace(step=state.step), data, jax.random.key(1), 1.0)
    assert_equal(again.params, first.params)


def test_a_rehearsal_costs_the_divergence_from_the_model_that_wrote_it():
    """Over many texts it is the divergence in closed form, and so is its gradient."""
    before = written_before(count=32_768, length=16)
    after = {"table": PARAMS["table"] + 0.2 * jax.random.normal(jax.random.key(6), (14, 14))}
    after["bias"] = PARAMS["bias"] + 0.1

    def exactly(params):
        logits = lambda params: jax.nn.log_softmax(apply(params, before.tokens[:, :-1]))
        old, new = logits(PARAMS), logits(params)
        return (jnp.exp(old) * (old - new)).sum(axis=-1).mean()

    nothing_learned = lambda params, batch: (jnp.zeros(()), {})
    loss_fn = rehearsed(nothing_learned, apply, 3.0)
    loss, metrics = loss_fn(after, {"rows": None, "rehearsal": before})
    assert float(metrics["rehearsal_kl"]) == pytest.approx(float(exactly(after)), rel=0.03)
    assert float(loss) == pytest.approx(3 * float(metrics["rehearsal_kl"]), rel=1e-6)
    gradient = jax.grad(lambda params: loss_fn(params, {"rows": None, "rehearsal": before})[0])
    exact = jax.grad(lambda params: 3 * exactly(params))(after)["table"]
    np.testing.assert_allclose(gradient(after)["table"], exact, atol=0.05 * float(abs(exact).max()))
    still = loss_fn(PARAMS, {"rows": None, "rehearsal": before})[0], gradient(PARAMS)["table"]
    np.testing.assert_allclose(still[0], 0, atol=1e-6)
    np.testing.assert_allclose(still[1], 0, atol=1e-5)


def test_a_rehearsal_keeps_a_model_near_what_it_was():
    divergence, others = {}, written_before(seed=8)
    for weight in (None, 1.0, 30.0):
        options = {} if weight is None else {"rehearsal_weight": weight}
        update = (fine_tune if weight is None else rehearsed_fine_tune)(steps=40, **options)
        state, *_ = update.update(
            update.init(PARAMS, jax.random.key(0)), data_of(), jax.random.key(1)
        )
        loss_fn = rehearsed(lambda params, batch: (0.0, {}), apply, 1.0)
        divergence[weight] = float(loss_fn(state.params, {"rows": None, "rehearsal": others})[0])
    assert divergence[30.0] < 0.5 * divergence[1.0] < 0.5 * divergence[None]


def test_real_data_without_weight_is_refused():
    data, update = data_of(), fine_tune()
    nothing = data._replace(real=data.real._replace(weights=0 * data.real.weights))
    with pytest.raises(ValueError, match=r"data\.real must have an example of a weight above 0"):
        update.update(update.init(PARAMS, jax.random.key(0)), nothing, jax.random.key(1))


def test_what_is_not_trainable_stays():
    update = fine_tune(trainable=lambda path: path == "bias")
    new, *_ = update.update(update.init(PARAMS, jax.random.key(0)), data_of(), jax.random.key(1))
    assert_equal(new.params["table"], PARAMS["table"])
    assert (new.params["bias"] != 0).any()


@pytest.mark.ci
@pytest.mark.slow
def test_low_rank_factors_learn_beside_weights_that_stay():
    config = TransformerConfig.nope(
        vocab_size=14, width=16, n_layers=1, n_heads=2, max_length=64, scan=False
    )
    model = Transformer(config)
    params, _ = metajax.from_linen(model, jax.random.key(0), jnp.zeros((1, 2), int))
    factors = lora.init(params, jax.random.key(2), rank=2, targets="attention/.*/kernel")
    variables = {"params": params, "lora": factors}
    update = ev.fine_tune(
        model.apply, optax.adamw(1e-2), steps=2, mixture=MIXTURE, rows=4, row_length=20,
        micro_batches=2, pool=32, trainable=lora.is_factor,
    )  # fmt: skip
    state, *_ = update.update(
        update.init(variables, jax.random.key(0)), data_of(), jax.random.key(1)
    )
    assert_equal(state.params["params"], params)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params["lora"], factors)
    assert any(jax.tree.leaves(moved))
    solve = ev.model_solver(model, answer_length=COPY.answer_length, end=COPY.end)
    tasks = COPY.draw(jax.random.key(3), [2])
    assert solve(state.params, jax.random.key(0), tasks).ended.shape == (1, 1)


def test_advantages_are_rewards_compared_with_those_of_the_same_task():
    data = data_of(count=3, samples=4)
    rollouts = data.rollouts
    expected = np.array([3, -1, -1, -1]) / np.sqrt(3)
    np.testing.assert_allclose(_advantages(rollouts), [expected] * 3)
    verdict = rollouts.verdict._replace(weight=np.array([1, 0, 1.0]))
    doubted = rollouts._replace(verdict=verdict)
    np.testing.assert_allclose(_advantages(doubted), [expected, np.zeros(4), expected])
    scored, lengths, chances = _scored(doubted, data.real, 0.25)
    assert (chances[4:8] == 0).all(), "what teaches nothing isn't drawn"
    np.testing.assert_allclose(chances[:12].sum(), 0.75)
    np.testing.assert_allclose(chances[12:].sum(), 0.25)
    assert scored.real.sum() == 12
    assert lengths[:2].tolist() == [9, 8]
    with pytest.raises(ValueError, match="solve must give at least 2, got 1"):
        _scored(data_of().rollouts, data.real, 0.25)


def log_policy(params, tokens, temperature):
    """Log-probability of each token but the first, in float64."""
    table, bias = (np.asarray(params[name], np.float64) for name in ("table", "bias"))
    logits = (table[tokens[:, :-1]] + bias) / temperature
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]


def grpo_loss(params, old, anchor, texts, *, temperature, kl, clip=0.2):
    """The loss of the docstring and the estimate of the divergence, in float64."""
    mask, real = texts.mask[:, 1:], texts.real[:, None]
    new, before, first = (log_policy(p, texts.tokens, temperature) for p in (params, old, anchor))
    ratio, advantage = np.exp(new - before), texts.advantage[:, None].astype(np.float64)
    gain = np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
    divergence = np.exp(first - new) - (first - new) - 1
    imitation = -log_policy(params, texts.tokens, 1.0)
    losses = np.where(real, imitation, kl * divergence - gain)
    sampled = mask & ~real
    return losses[mask].mean(), divergence[sampled].mean()


def test_grpo_is_its_definition_in_float64_at_the_temperature_of_sampling():
    """In the second round, where anchor, old policy and new policy are three."""
    data, kl, temperature = data_of(count=6, samples=2), 0.5, 0.7
    options = {
        "batch": 24, "micro_batches": 1, "kl": kl, "real_share": 0.3, "temperature": temperature,
        "optimizer": optax.sgd(1.0),
    }  # fmt: skip
    one, two = grpo(steps=1, **options), grpo(steps=2, **options)
    start = one.init(PARAMS, jax.random.key(4))
    middle, first, _ = one.update(start, data, jax.random.key(0))
    after, *_ = one.update(middle, data, jax.random.key(0))
    _, metrics, _ = two.update(middle, data, jax.random.key(0))
    scored, _, chances = _scored(data.rollouts, data.real, 0.3)

    def texts_at(step):
        key = episode_keys(jax.random.key(4), step, 1)[0]
        rows = jax.random.categorical(key, jnp.log(chances), shape=(24,))
        texts = jax.tree.map(lambda leaf: leaf[np.asarray(rows)], scored)
        assert 0 < texts.real.sum() < 24
        return texts

    assert float(first["kl"][0]) == pytest.approx(0, abs=1e-6)
    common = {"temperature": temperature, "kl": kl}
    for number, params in enumerate((middle.params, after.params)):
        loss, divergence = grpo_loss(params, middle.params, PARAMS, texts_at(1 + number), **common)
        assert float(metrics["loss"][number]) == pytest.approx(loss, rel=1e-4, abs=1e-5)
        assert float(metrics["kl"][number]) == pytest.approx(divergence, rel=1e-3)
        assert divergence > 1e-4
    texts, table = texts_at(1), np.asarray(middle.params["table"], np.float64)
    gradient = np.asarray(middle.params["table"] - after.params["table"])
    for place in np.ndindex(*table.shape):
        losses = []
        for sign in (1, -1):
            moved = table.copy()
            moved[place] += sign * 1e-5
            params = {"table": moved, "bias": middle.params["bias"]}
            losses.append(grpo_loss(params, middle.params, PARAMS, texts, **common)[0])
        difference = (losses[0] - losses[1]) / 2e-5
        assert gradient[place] == pytest.approx(difference, rel=1e-3, abs=1e-5)


def test_tasks_of_the_meta_step_are_of_one_group():
    data = data_of(count=12)
    grouped = _grouped(data, np.asarray(data.rollouts.tasks.levels), 0.5)
    np.testing.assert_allclose(grouped.weights.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(grouped.weights[:12].sum(), 0.5, rtol=1e-6)
    assert (grouped.group[:12] == 3).all()
    assert set(grouped.group[12:].tolist()) == {-1 - 5, -1 - 7}
    nothing = data._replace(new=data.new._replace(weights=np.zeros(12, np.float32)))
    assert _grouped(nothing, np.zeros(12), 0.5).weights[:12].sum() == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fine_tune(steps=0), "steps must be at least 1, got 0"),
        (lambda: fine_tune(rows=5), "rows must be a multiple of micro_batches=2, got 5"),
        (lambda: fine_tune(start="zero"), "start must be one of 'current', 'base'"),
        (lambda: fine_tune(rehearsal_weight=0.0), "rehearsal_weight must be a positive finite"),
        (lambda: grpo(batch=7), "batch must be a multiple of micro_batches=2, got 7"),
        (lambda: grpo(kl=-1.0), "kl must be at least 0 and finite, got -1.0"),
        (lambda: grpo(temperature=0.0), "temperature must be a positive finite number"),
        (lambda: meta_step(real_share=1.0), "real_share must lie between 0 and 1, got 1.0"),
        (lambda: meta_step(support=0), "support must be at least 1, got 0"),
    ],
)
def test_bad_values_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", UPDATES)
def test_logits_at_the_answers_alone_change_nothing(name, monkeypatch):
    data, found = data_of(samples=2), []
    plain, asked = apply, []

    def at_places(params, tokens, *, at=None, **options):
        asked.append(at is not None)
        logits = plain(params, tokens, **options)
        return logits if at is None else jnp.take_along_axis(logits, at[:, :, None], axis=1)

    for model in (plain, _marks.marked(at_places, at_places=True)):
        monkeypatch.setitem(globals(), "apply", model)
        options = {"row_length": 64} if name.startswith("fine-tuning") else {}
        update = UPDATES[name](**options)
        state = update.init(PARAMS, jax.random.key(0))
        found.append(update.update(state, data, jax.random.key(1), 1.0))
    assert any(asked)
    assert all(asked) or "rehearsal" in name, "every token of a rehearsal counts"
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6),
        (found[1][0].params, found[1][1:]),
        (found[0][0].params, found[0][1:]),
    )
