"""Checkpoints: exact, and careful with what they did not write."""

import errno
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_trainer import toy_state, toy_trainer

from experiments import common
from experiments.common import checkpoints as checkpoints_module
from experiments.common.disk import damage_in


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
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(7, state)
    with common.Checkpoints(tmp_path / "new") as checkpoints:
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
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, state)
        restored, _ = checkpoints.restore(jax.tree.map(jnp.copy, state))
    assert restored["half"].dtype == jnp.bfloat16
    assert restored["key"].dtype == state["key"].dtype
    for before, after in zip(leaves(state), leaves(restored), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_newest_two_are_kept(tmp_path):
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, toy_state())
        assert checkpoints.latest() == 3
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["2", "3"]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path):
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, trained(1))
        checkpoints.save(2, trained(2))
        damage(checkpoints.path(2))
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        with pytest.warns(UserWarning, match=str(checkpoints.path(2))):
            restored, step = checkpoints.restore(toy_state())
        assert step == int(restored.step) == 1
        checkpoints.save(2, trained(2))  # the damaged one is not in the way
        assert checkpoints.restore(toy_state())[1] == 2
    kept = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert kept == ["1", "2", "damaged-2"]


def test_a_folder_that_no_checkpoint_is_called_is_ignored_with_a_word(tmp_path):
    with common.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, trained(1))
        for name in ("0016", "٣", "+5", "notes"):
            (tmp_path / name).mkdir()
        with pytest.warns(UserWarning, match=r"is ignored: \+5, 0016, notes, ٣"):
            assert checkpoints.restore(toy_state())[1] == 1


BIG = {"w": np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)}
"""An array so large that Orbax keeps it in a file of its own, whose bytes it doesn't check."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_every_flipped_byte_is_noticed(tmp_path):
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, BIG)
    folder = checkpoints.path(1)
    assert damage_in(folder) is None
    assert max(path.stat().st_size for path in files(folder)) > 30_000
    rng = np.random.default_rng(1)
    for path in files(folder):
        content = path.read_bytes()
        for position in rng.choice(len(content), min(len(content), 40), replace=False):
            damaged = bytearray(content)
            damaged[position] ^= 1 << rng.integers(8)
            path.write_bytes(bytes(damaged))
            assert damage_in(folder) is not None, (path, position)
        path.write_bytes(content)
    assert damage_in(folder) is None


def flip(folder):
    path = max(files(folder), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(folder):
    path = max(files(folder), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


HARM = {
    "a flipped bit": flip,
    "a truncated file": truncate,
    "a missing file": lambda folder: (folder / "_METADATA").unlink(),
    "a missing list": lambda folder: (folder / "SHA256SUMS").unlink(),
    "an empty list": lambda folder: (folder / "SHA256SUMS").write_text(""),
    "a foreign file": lambda folder: (folder / "notes.txt").write_text("mine"),
    "an empty folder": lambda folder: [path.unlink() for path in files(folder)],
}


@pytest.mark.parametrize("harm", HARM)
def test_whatever_is_damaged_the_one_before_is_used(tmp_path, harm):
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, BIG)
        checkpoints.save(2, {"w": 2 * BIG["w"]})
    HARM[harm](checkpoints.path(2))
    before = files(checkpoints.folder)
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        with pytest.warns(UserWarning, match=str(checkpoints.path(2))):
            restored, step = checkpoints.restore(BIG)
        assert step == 1
        np.testing.assert_array_equal(restored["w"], BIG["w"])
        assert files(checkpoints.folder) == before  # reading changes nothing
        checkpoints.save(2, {"w": 2 * BIG["w"]})
        assert checkpoints.restore(BIG)[1] == 2
    assert names(tmp_path / "new") == ["1", "2", "damaged-2"]


def test_a_second_damaged_checkpoint_of_a_step_is_set_aside_too(tmp_path):
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, BIG)
        for _ in range(2):
            checkpoints.save(2, BIG)
            flip(checkpoints.path(2))
            with pytest.warns(UserWarning, match="cannot be read"):
                checkpoints.restore(BIG)
        checkpoints.save(2, BIG)
    assert names(tmp_path / "new") == ["1", "2", "damaged-2", "damaged-2-2"]


def test_what_kills_left_unfinished_goes_with_the_next_checkpoint(tmp_path):
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, BIG)
        checkpoints.save(2, BIG)
        (checkpoints.folder / "unfinished-3").mkdir()
        (checkpoints.folder / "unfinished-3.orbax-checkpoint-tmp").mkdir()
        assert checkpoints.restore(BIG)[1] == 2
        checkpoints.save(4, BIG)
    assert names(tmp_path / "new") == ["2", "4"]


def test_a_full_disk_is_an_error_in_words_and_costs_no_checkpoint(tmp_path, monkeypatch):
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, BIG)
        checkpoints.save(2, BIG)

        def full(folder):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(checkpoints_module, "write_digests", full)
            with pytest.raises(
                common.RunError, match=r"new/3 .*No space left.*Free some.*--resume"
            ):
                checkpoints.save(3, BIG)
        assert names(tmp_path / "new") == ["1", "2"]
        assert checkpoints.restore(BIG)[1] == 2
        checkpoints.save(3, BIG)
        assert checkpoints.restore(BIG)[1] == 3


def test_a_write_that_the_system_refuses_midway_is_an_error_in_words(tmp_path):
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, BIG)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(common.RunError, match=r"new/2 cannot be written: File too large"):
                checkpoints.save(2, BIG)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert names(tmp_path / "new") == ["1"]
        checkpoints.save(2, BIG)
        assert checkpoints.restore(BIG)[1] == 2


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(common.RunError, match="Not a directory"):
        common.Checkpoints(tmp_path / "file" / "new")


def test_all_damaged_is_an_error_and_nothing_is_deleted(tmp_path):
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, trained(1))
        checkpoints.save(2, trained(2))
        damage(checkpoints.folder)
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        with (
            pytest.warns(UserWarning, match="cannot be read"),
            pytest.raises(common.RunError, match=r"none of the checkpoints.*\[2, 1\]"),
        ):
            checkpoints.restore(toy_state())
        assert checkpoints.path(1).exists()
        assert checkpoints.path(2).exists()


def test_a_first_checkpoint_that_was_cut_short_counts_as_none(tmp_path, monkeypatch):
    def killed(folder):
        raise KeyboardInterrupt  # leaves all as it is, like a kill

    with common.Checkpoints(tmp_path / "new") as checkpoints:
        with monkeypatch.context() as patched:
            patched.setattr(checkpoints_module, "write_digests", killed)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save(1, BIG)
        assert names(tmp_path / "new") == ["unfinished-1"]
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(BIG) is None
        checkpoints.save(1, BIG)
        assert checkpoints.restore(BIG)[1] == 1
    assert names(tmp_path / "new") == ["1"]


def test_a_damaged_checkpoint_that_training_has_not_reached_again_is_not_in_the_way(tmp_path):
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, BIG)
        checkpoints.save(9, BIG)
        flip(checkpoints.path(9))
        checkpoints.save(2, BIG)
        assert checkpoints.latest() == 2
        assert checkpoints.restore(BIG)[1] == 2
    assert names(tmp_path / "new") == ["1", "2", "damaged-9"]


def test_a_first_checkpoint_that_was_damaged_later_is_an_error(tmp_path):
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, BIG)
        flip(checkpoints.path(1))
        with (
            pytest.warns(UserWarning, match="cannot be read"),
            pytest.raises(common.RunError, match=r"none of the checkpoints.*\[1\]"),
        ):
            checkpoints.restore(BIG)


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
    with common.Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(1, toy_state())
        with pytest.raises(common.RunError, match=message) as error:
            checkpoints.restore(template())
        assert str(checkpoints.path(1)) in str(error.value)
        assert checkpoints.restore(toy_state())[1] == 1
