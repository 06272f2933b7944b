"""Several seeds as one program: each is the run that it would be alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments.fewshot import seeds


def draw(centres, key):
    """A task: one of the centres, with noise."""
    centre = centres[jax.random.randint(key, (), 0, len(centres))]
    noisy = lambda number: centre + 0.1 * jax.random.normal(jax.random.fold_in(key, number), (2,))
    return metajax.Episode(noisy(1), noisy(2))


def test_runs_together_are_the_runs_alone():
    sample = jax.tree_util.Partial(draw, jnp.array([[0.0, 1.0], [2.0, -1.0], [3.0, 3.0]]))
    loss = lambda params, target: jnp.sum((params["w"] - target) ** 2)
    learner = metajax.maml(loss, optax.sgd(0.1), steps=2)
    trainer = metajax.meta_trainer(learner, optax.adam(0.05), sample, meta_batch=4)
    params = [{"w": jnp.full(2, float(number))} for number in range(3)]
    keys = [jax.random.key(number) for number in range(3)]
    both, state = seeds.together(trainer, sample, params, keys)
    state, metrics = both.run(state, 20)
    state, more = both.run(state, 10)
    assert int(state.step) == 30
    assert metrics["loss"].shape == (20,)
    for number in range(3):
        alone, expected = trainer.run(trainer.init(params[number], keys[number]), 20)
        np.testing.assert_allclose(metrics[f"loss_{number}"], expected["loss"], rtol=1e-5)
        alone, expected = trainer.run(alone, 10)
        np.testing.assert_allclose(more[f"loss_{number}"], expected["loss"], rtol=1e-5)
        found = seeds.one_of(state.runs, number)
        np.testing.assert_allclose(found.params["w"], alone.params["w"], rtol=1e-5)
        assert (found.key == alone.key).all()


def test_scores_are_means_with_each_beside():
    score = seeds.scores_together(lambda params: {"accuracy": params["w"]}, 2)
    found = score({"w": np.array([0.25, 0.75])})
    assert found == {"accuracy": 0.5, "accuracy_0": 0.25, "accuracy_1": 0.75}
