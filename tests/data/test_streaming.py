"""Parts of a data set that is read as it is needed."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import no_compilation

import metajax
from metajax.data import episode_sampler, stream

LABELS = np.array([0] * 5 + [1] * 3 + [2] * 6 + [3] * 4 + [4] * 4)
ROWS = np.stack([np.arange(22.0), LABELS], axis=1)


def parts(count, **options):
    options = {"classes": 3, "per_class": 4} | options
    found = stream(ROWS.__getitem__, LABELS, **options)
    return [part for part, _ in zip(found, range(count), strict=False)]


def test_a_part_has_whole_classes_and_no_row_twice():
    seen = set()
    for part in parts(20):
        assert part.counts.tolist() == [4, 4, 4]
        classes = part.examples[:, 1].reshape(3, 4)
        assert (classes == classes[:, :1]).all()
        assert part.names == tuple(str(int(c)) for c in classes[:, 0])
        assert len(set(part.examples[:, 0])) == 12
        seen |= set(part.names)
    assert seen == {"0", "2", "3", "4"}, "class 1 has three examples"


def test_a_seed_and_a_number_give_a_part():
    whole = parts(5, seed=3)
    for one, other in zip(whole[2:], parts(3, seed=3, start=2), strict=True):
        np.testing.assert_array_equal(one.examples, other.examples)
    assert not np.array_equal(whole[0].examples, parts(1, seed=4)[0].examples)


def test_parts_are_read_before_they_are_asked_for():
    started = [threading.Event() for _ in range(4)]
    numbers = iter(range(4))

    def read(rows):
        started[next(numbers)].set()
        return ROWS[rows]

    found = stream(read, LABELS, classes=2, per_class=3, ahead=2)
    next(found)
    assert started[2].wait(10)
    assert not started[3].is_set()
    found.close()


def test_a_trainer_takes_all_parts_by_one_program():
    def sampler(part):
        return episode_sampler(part, n_way=2, k_shot=1, query=2)

    first, *others = parts(4)
    learner = metajax.prototypical(lambda w, x: x * w, n_way=2)
    trainer = metajax.meta_trainer(learner, optax.sgd(0.1), sampler(first), meta_batch=2)
    state, _ = trainer.run(trainer.init(jnp.ones(2), jax.random.key(0)), 3, sample=sampler(first))
    samplers = [sampler(part) for part in others]
    with no_compilation():
        for sample in samplers:
            state, metrics = trainer.run(state, 3, sample=sample)
    assert int(state.step) == 12
    assert jnp.isfinite(metrics["loss"]).all()


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="classes is 5, but only 4 of 5 have the 4 examples"):
        parts(1, classes=5)
    with pytest.raises(ValueError, match="ahead"):
        parts(1, ahead=0)
    with pytest.raises(ValueError, match=r"read must return 12 examples .* got shape \(3, 2\)"):
        next(stream(lambda rows: ROWS[:3], LABELS, classes=3, per_class=4))

    def broken(rows):
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        next(stream(broken, LABELS, classes=3, per_class=4))
