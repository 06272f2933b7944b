"""What the studies share: rounds that are stopped and resumed, and the control."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common
from experiments.evolution import rounds, study
from experiments.evolution.strings.tasks import digits
from metajax import evolve as ev
from metajax.trainer import TrainState

COPY = digits("copy")


def solve(params, key, tasks):
    """Right answers."""
    tokens, lengths = (np.asarray(leaf)[:, None] for leaf in COPY.answer(tasks))
    return ev.Completions(tokens, np.zeros(tokens.shape, np.float32), lengths, lengths > 0)


def counting():
    """An update whose parameters count rounds."""

    def update(state, data, key, scale):
        new = state._replace(params=state.params + scale, step=state.step + 1)
        return new, {"loss": jnp.zeros(3)}, 7

    init = lambda params, key: TrainState(params, (), key, jnp.zeros((), jnp.int32))
    return ev.Update("counting", init, update)


def loop():
    return ev.EvolveConfig(
        propose=ev.program_proposer(COPY, count=6),
        solve=solve,
        verifier=ev.must_end(),
        update=counting(),
        gate=ev.accept_all(),
        curriculum=ev.one_harder(3),
        real=lambda key: ev.real_examples(COPY, key, [1, 2], 4),
        held_out=lambda levels: ev.held_out_tasks(
            COPY, jax.random.key(9), known=range(1, 3), frontier=range(3, 4), each=5
        ),
    )


def begin(longest=20):
    return ev.init_state(
        loop(), jnp.zeros(()), jax.random.key(0), rounds=4, proposals=6, longest=longest,
        vocab_size=14,
    )  # fmt: skip


def test_a_signal_ends_the_run_after_its_round_and_it_goes_on_from_there(tmp_path, capsys):
    def follow(folder, *, stop_at=None, resume=False):
        def scores(params):
            if float(params) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return {"score": float(params)}

        run = common.Run("toy", folder, common.RunConfig(steps=1, out=folder, resume=resume))
        return rounds.follow(run, loop(), begin(), scores=scores)

    timeless = lambda followed: [
        {name: value for name, value in record.items() if not name.startswith("seconds")}
        for record in followed.records
    ]
    expected = follow(tmp_path / "whole")
    with pytest.raises(SystemExit) as left:
        follow(tmp_path / "halves", stop_at=2.0)
    assert left.value.code == 143
    assert "stopped after round 2; --resume" in capsys.readouterr().err
    lines = common.read_metrics(tmp_path / "halves" / "rounds" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    resumed = follow(tmp_path / "halves", resume=True)
    assert timeless(resumed) == timeless(expected)
    assert float(resumed.state.train.params) == float(expected.state.train.params) == 4.0


def test_the_state_of_a_loop_of_another_size_is_refused(tmp_path):
    with common.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, begin())
    with (
        common.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="another model"),
    ):
        checkpoints.restore(begin(longest=30))


def test_the_schedule_rises_stays_and_falls():
    rate = study.warmup_stable_decay(1.0, 100, warm=10, stable=50, end=0.1)
    np.testing.assert_allclose(
        [rate(step) for step in (0, 5, 10, 49, 75, 100)], [0, 0.5, 1, 1, 0.55, 0.1], rtol=1e-6
    )
