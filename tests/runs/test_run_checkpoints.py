"""Checkpoints: exact, and careful with what they did not write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_trainer import toy_state, toy_trainer

from metajax import runs


def leaves(state):
    return [
        np.asarray(jax.random.key_data(leaf) if "key" in str(leaf.dtype) else leaf)
        for leaf in jax.tree.leaves(state)
    ]


def trained(steps):
    return toy_trainer().run(toy_state(), steps)[0]


def damage(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"not a checkpoint")


def test_round_trip_is_bit_for_bit(tmp_path):
    state = trained(7)
    with runs.Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(7, state)
    with runs.Checkpoints(tmp_path / "new") as checkpoints:
        restored, step = checkpoints.restore(toy_state(seed=5))
    assert step == 7
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for before, after in zip(leaves(state), leaves(restored), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert jnp.issubdtype(restored.key.dtype, jax.dtypes.prng_key)
    assert jax.random.bits(restored.key) == jax.random.bits(state.key)


def test_other_dtypes_and_key_types(tmp_path):
    state = {
        "half": jnp.asarray([1.5, -2.0], jnp.bfloat16),
        "key": jax.random.key(3, impl="rbg"),
        "flags": jnp.asarray([True, False]),
        "nested": (jnp.int32(4), [jnp.uint8(7)]),
    }
    with runs.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, state)
        restored, _ = checkpoints.restore(jax.tree.map(jnp.copy, state))
    assert restored["half"].dtype == jnp.bfloat16
    assert restored["key"].dtype == state["key"].dtype
    for before, after in zip(leaves(state), leaves(restored), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_newest_two_are_kept(tmp_path):
    with runs.Checkpoints(tmp_path / "new") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, toy_state())
        assert checkpoints.latest() == 3
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["2", "3"]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path):
    with runs.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, trained(1))
        checkpoints.save(2, trained(2))
        damage(checkpoints.path(2))
    with runs.Checkpoints(tmp_path / "new") as checkpoints:
        with pytest.warns(UserWarning, match=str(checkpoints.path(2))):
            restored, step = checkpoints.restore(toy_state())
        assert step == int(restored.step) == 1
        checkpoints.save(2, trained(2))  # the damaged one is not in the way
        assert checkpoints.restore(toy_state())[1] == 2
    kept = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert kept == ["1", "2", "damaged-2"]


def test_all_damaged_is_an_error_and_nothing_is_deleted(tmp_path):
    with runs.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, trained(1))
        checkpoints.save(2, trained(2))
        damage(checkpoints.folder)
    with runs.Checkpoints(tmp_path / "new") as checkpoints:
        with (
            pytest.warns(UserWarning, match="cannot be read"),
            pytest.raises(runs.RunError, match=r"none of the checkpoints.*\[2, 1\]"),
        ):
            checkpoints.restore(toy_state())
        assert checkpoints.path(1).exists()
        assert checkpoints.path(2).exists()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (lambda: toy_state(size=4), r"\['w'\] is float32\[3\], not float32\[4\]"),
        (lambda: {"other": jnp.zeros(2)}, r"\['other'\] is missing"),
        (lambda: toy_state()._replace(optimizer_state=()), "is unknown"),
        (lambda: toy_state()._replace(step=jnp.zeros(())), "is int32"),
    ],
)
def test_a_foreign_checkpoint_is_an_error_and_stays(tmp_path, template, message):
    with runs.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, toy_state())
        with pytest.raises(runs.RunError, match=message) as error:
            checkpoints.restore(template())
        assert str(checkpoints.path(1)) in str(error.value)
        assert checkpoints.restore(toy_state())[1] == 1
