"""Ways to learn from a round: what moves, what is asked for, and the losses' gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import no_compilation
from toys import COPY, attempts_of, solved

import metajax
from metajax import evolve as ev
from metajax import lm
from metajax.evolve.meta_step import grouped_of
from metajax.evolve.grpo import advantages, scored_of
from metajax.lm import lora
from metajax.models import Transformer, TransformerConfig

CONFIG = TransformerConfig.nope(
    vocab_size=14, width=16, n_layers=1, n_heads=2, max_length=64, scan=False
)
MODEL = Transformer(CONFIG)
PARAMS, APPLY = metajax.from_linen(MODEL, jax.random.key(0), jnp.zeros((1, 2), int))
SHARES = ev.published_mixture(2)


def data_of(level=3, count=20, samples=1, seed=0):
    """Real data, and a round of right answers; further samples lack a digit."""
    real = ev.real_examples(COPY, jax.random.key(1), [1, 2], 40)
    tasks = COPY.draw(jax.random.key(seed), [level] * count)
    parts = [solved(COPY, tasks, wrong=() if s == 0 else range(count)) for s in range(samples)]
    completions = ev.Completions(*(np.concatenate(leaves, axis=1) for leaves in zip(*parts, strict=True)))
    verdict = ev.Verdict(np.zeros(count, int), np.ones(count), np.ones(count))
    made = ev.Rollouts(tasks, completions, verdict)
    return ev.TrainingData(real, (), ev.data.examples_of(made), made)


def fine_tune(**options):
    options = {"steps": 3, "shares": SHARES, "rows": 4, "row_length": 20} | options
    return ev.fine_tune(
        APPLY, optax.adamw(1e-2, weight_decay=0.1), micro_batches=2, pool=32, **options
    )


def policy_gradient(**options):
    options = {"steps": 3, "batch": 8} | options
    return ev.grpo(APPLY, optax.adam(1e-2), micro_batches=2, **options)


def meta_step(**options):
    learner = metajax.maml(lm.next_token_loss(APPLY), optax.sgd(0.1), steps=1)
    return ev.meta_step(learner, optax.adam(1e-2), **{"steps": 3, "meta_batch": 2} | options)


UPDATES = {"fine-tuning": fine_tune, "policy gradient": policy_gradient, "meta step": meta_step}


def moved(before, after):
    return {
        path: bool((a != b).any())
        for path, a, b in zip(
            metajax.trees.leaf_paths(before),
            jax.tree.leaves(before),
            jax.tree.leaves(after),
            strict=True,
        )
    }


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [None, metajax.task_mesh(2)], ids=["one", "shared"])
@pytest.mark.parametrize("name", UPDATES)
def test_an_update_learns_goes_on_and_leaves_the_old_state(name, mesh):
    update, data = UPDATES[name](mesh=mesh), data_of(samples=2)
    state = update.init(PARAMS, jax.random.key(0))
    new, metrics, tokens = update.update(state, data, jax.random.key(1), 1.0)
    assert all(moved(PARAMS, new.params).values())
    assert metrics["loss"].shape == (3,)
    assert tokens > 0
    assert int(new.step) == 3
    jax.tree.map(np.testing.assert_array_equal, state.params, PARAMS)  # it can be returned to
    same, *_ = update.update(state, data, jax.random.key(1), 1.0)
    jax.tree.map(np.testing.assert_array_equal, same.params, new.params)
    third, *_ = update.update(new, data, jax.random.key(2), 1.0)
    with no_compilation():
        update.update(third, data, jax.random.key(3), 0.5)
    still, *_ = update.update(state, data, jax.random.key(1), 0.0)
    jax.tree.map(np.testing.assert_array_equal, still.params, PARAMS)


def test_what_is_not_trainable_stays():
    update = fine_tune(trainable=lambda path: path.startswith("head"))
    new, *_ = update.update(update.init(PARAMS, jax.random.key(0)), data_of(), jax.random.key(1))
    assert {path for path, is_new in moved(PARAMS, new.params).items() if is_new} == {"head/kernel"}


def test_low_rank_factors_learn_beside_weights_that_stay():
    variables = {
        "params": PARAMS,
        "lora": lora.init(PARAMS, jax.random.key(2), rank=2, targets="attention/.*/kernel"),
    }
    update = ev.fine_tune(
        MODEL.apply, optax.adamw(1e-2), steps=2, shares=SHARES, rows=4, row_length=20,
        micro_batches=2, pool=32, trainable=lora.is_factor,
    )  # fmt: skip
    state, *_ = update.update(
        update.init(variables, jax.random.key(0)), data_of(), jax.random.key(1)
    )
    changed = moved(variables, state.params)
    assert not any(is_new for path, is_new in changed.items() if path.startswith("params"))
    assert any(is_new for path, is_new in changed.items() if path.startswith("lora"))
    # What learned can answer.
    solve = ev.model_solver(MODEL, answer_length=COPY.answer_length, end=COPY.end)
    assert solve(
        state.params, jax.random.key(0), COPY.draw(jax.random.key(3), [2])
    ).ended.shape == (1, 1)


def test_fine_tuning_from_the_base_forgets_the_rounds_before():
    update, data = fine_tune(start="base"), data_of()
    state = update.init(PARAMS, jax.random.key(0))
    first, *_ = update.update(state, data, jax.random.key(1), 1.0)
    elsewhere = first._replace(params=jax.tree.map(lambda leaf: leaf + 1, first.params))
    again, *_ = update.update(elsewhere._replace(step=state.step), data, jax.random.key(1), 1.0)
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)


def test_advantages_are_rewards_beside_those_of_the_same_task():
    data = data_of(count=3, samples=4)
    made = data.newest
    expected = np.array([3, -1, -1, -1]) / np.sqrt(3)
    np.testing.assert_allclose(advantages(made), [expected] * 3)
    doubted = made._replace(verdict=made.verdict._replace(weight=np.array([1, 0, 1.0])))
    np.testing.assert_allclose(advantages(doubted), [expected, np.zeros(4), expected])
    scored, lengths, chances = scored_of(doubted, data.real, 0.25)
    assert (chances[4:8] == 0).all(), "what teaches nothing isn't drawn"
    np.testing.assert_allclose(chances[:12].sum(), 0.75)
    np.testing.assert_allclose(chances[12:].sum(), 0.25)
    assert scored.real.sum() == 12
    assert lengths[:2].tolist() == [9, 8]
    with pytest.raises(ValueError, match="solve must give at least 2, got 1"):
        scored_of(data_of().newest, data.real, 0.25)


@pytest.mark.slow
def test_the_anchor_is_what_the_update_started_from_whatever_the_micro_batches():
    data = data_of(count=7, samples=2)
    for micro_batches in (1, 4):
        update = ev.grpo(
            APPLY, optax.adam(1e-2), steps=2, batch=12, micro_batches=micro_batches, kl=0.1
        )
        state = update.init(PARAMS, jax.random.key(0))
        _, metrics, _ = update.update(state, data, jax.random.key(1), 1.0)
        assert float(metrics["kl"][0]) == pytest.approx(0, abs=1e-9)
        assert float(metrics["kl"][1]) > 1e-6


@pytest.mark.slow
def test_one_step_of_the_policy_gradient_is_that_of_its_definition():
    """On the answers as they were drawn ρ is 1: the gradient is −A ∇ log π, a mean over tokens."""
    data = data_of(count=2, samples=2)
    made = data.newest
    log_probs = []
    for tokens, padded, length in zip(made.completions.tokens, *made.tasks[:2], strict=True):
        prompt = np.asarray(padded)[-int(length) :]
        rows = np.concatenate([np.repeat(prompt[None], 2, axis=0), tokens], axis=1)
        logits = jax.nn.log_softmax(APPLY(PARAMS, jnp.array(rows[:, :-1])))
        found = jnp.take_along_axis(logits, jnp.array(rows)[:, 1:, None], axis=-1)[..., 0]
        log_probs.append(found[:, len(prompt) - 1 :])
    exact = np.array(log_probs) * (
        np.arange(made.completions.tokens.shape[-1]) < made.completions.lengths[..., None]
    )
    made = made._replace(completions=made.completions._replace(log_probs=exact.astype(np.float32)))
    data = data._replace(newest=made)
    scored, _, chances = scored_of(made, data.real, 1e-6)

    def definition(params):
        total = 0.0
        rows = jax.random.categorical(_draw_key(), jnp.log(chances), shape=(400,))
        for row in np.unique(np.asarray(rows)):
            share = float((rows == row).mean())
            tokens, mask = jnp.array(scored.tokens[row]), scored.mask[row][1:]
            logits = jax.nn.log_softmax(APPLY(params, tokens[None, :-1])[0])
            own = jnp.take_along_axis(logits, tokens[1:, None], axis=-1)[:, 0]
            total += share * scored.advantage[row] * jnp.where(mask, own, 0).sum()
        count = sum(
            float((rows == row).mean()) * scored.mask[row].sum()
            for row in np.unique(np.asarray(rows))
        )
        return -total / count

    update = ev.grpo(
        APPLY, optax.sgd(1.0), steps=1, batch=400, micro_batches=1, kl=0.0, real_share=1e-6
    )
    state = update.init(PARAMS, jax.random.key(4))
    new, *_ = update.update(state, data, jax.random.key(0), 1.0)
    gradient = jax.tree.map(lambda a, b: a - b, PARAMS, new.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5),
        gradient,
        jax.grad(definition)(PARAMS),
    )


def _draw_key():
    from metajax.trainer import episode_keys

    return episode_keys(jax.random.key(4), 0, 1)[0]


def test_episodes_of_the_meta_step_are_of_one_group_and_without_repetitions():
    data = data_of(count=12)
    grouped = grouped_of(data, np.asarray(data.newest.tasks.levels), 0.5)
    np.testing.assert_allclose(grouped.weights.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(grouped.weights[:12].sum(), 0.5, rtol=1e-6)
    assert (grouped.group[:12] == 3).all()
    assert set(grouped.group[12:].tolist()) == {-1 - 5, -1 - 7}
    nothing = data._replace(new=data.new._replace(weights=np.zeros(12, np.float32)))
    assert grouped_of(nothing, np.zeros(12), 0.5).weights[:12].sum() == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fine_tune(steps=0), "steps must be at least 1, got 0"),
        (lambda: fine_tune(rows=5), "rows must be a multiple of micro_batches=2, got 5"),
        (lambda: fine_tune(start="zero"), "start must be one of 'current', 'base'"),
        (lambda: policy_gradient(batch=7), "batch must be a multiple of micro_batches=2, got 7"),
        (lambda: policy_gradient(kl=-1.0), "kl must be at least 0 and finite, got -1.0"),
        (lambda: policy_gradient(real_share=0.0), "real_share must lie between 0 and 1, got 0.0"),
        (lambda: meta_step(real_share=1.0), "real_share must lie between 0 and 1, got 1.0"),
        (lambda: meta_step(support=0), "support must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_attempts_of_the_toys_are_what_they_say():
    completions = attempts_of([[[1, 13], [1, 2]]])
    assert completions.ended.tolist() == [[True, False]]
