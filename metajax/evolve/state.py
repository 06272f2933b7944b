"""What the loop is made of, what it carries from round to round, and what it reports."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks, interop
from metajax.evolve.curricula import Curriculum
from metajax.evolve.gates import Decision, Gate, HeldOut
from metajax.evolve.types import (
    Answers,
    Completions,
    Examples,
    Levels,
    Proposer,
    Solver,
    Tasks,
    Update,
    Verifier,
)
from metajax.trainer import TrainState
from metajax.types import Params


class EvolveState(NamedTuple):
    """All that the loop needs to go on, as arrays, so that a checkpoint can hold it.

    Attributes:
        train: θ_t, its optimizer's state, and what the update keeps beside it.
        key: the loop's random key; a round's keys are folded from it and the round's number.
        round: number of rounds that are over, int32 scalar.
        levels: first and last level of the next round, int32 ``[2]``.
        refusals: rounds in a row that were not accepted, int32 scalar.
        replay: the examples of all rounds, ``[rounds, n, ...]``: tokens as int16 or int32, and
            weights of 0 for rounds that were refused or are still to come. Zeros alone for rounds
            without a valid task.
    """

    train: TrainState
    key: jax.Array
    round: jax.Array
    levels: jax.Array
    refusals: jax.Array
    replay: Examples


class EvolveConfig(NamedTuple):
    """The parts of the loop; each can be replaced.

    Attributes:
        propose: proposes tasks.
        solve: answers them.
        verifier: decides which answers are trusted.
        update: f.
        gate: decides between θ_t and θ_{t+1}.
        curriculum: sets the levels.
        real: ``real(key) -> Examples``, real data for a round.
        held_out: ``held_out(levels) -> HeldOut``, always the same tasks for the same levels.
        oracle: ``oracle(tasks) -> Answers``, for the report alone; None if nobody knows.
        corrupt: ``corrupt(round, completions) -> completions``, applied before the verifier, for
            experiments with damaged labels; None for nothing.
    """

    propose: Proposer
    solve: Solver
    verifier: Verifier
    update: Update
    gate: Gate
    curriculum: Curriculum
    real: Callable[[jax.Array], Examples]
    held_out: Callable[[Levels], HeldOut]
    oracle: Callable[[Tasks], Answers] | None = None
    corrupt: Callable[[int, Completions], Completions] | None = None


class RoundReport(NamedTuple):
    """What a round did. Shares are in [0, 1].

    Attributes:
        round: its number, from 1 on.
        levels: of its tasks.
        proposals: number of texts that were proposed.
        valid: share of them that are tasks.
        unique: share that are tasks, new in this round and not held out.
        agreement: mean agreement of these.
        kept: share of the proposals with a weight above 0.
        label_accuracy: share of the kept labels that are right, by the oracle; None without one, or
            if nothing was kept.
        raw_accuracy: the same of all labels, before the verifier.
        decision: the gate's; None if nothing was kept, so that nothing was learned.
        accepted: whether θ_{t+1} was taken.
        uses_oracle: whether the verifier knows right answers.
        metrics: the update's, means over the last tenth of its steps.
        tokens: ``{"trained": ..., "generated": ...}``.
        seconds: by part.
        stopped: why the loop ends here; None if it goes on.
    """

    round: int
    levels: Levels
    proposals: int
    valid: float
    unique: float
    agreement: float
    kept: float
    label_accuracy: float | None
    raw_accuracy: float | None
    decision: Decision | None
    accepted: bool
    uses_oracle: bool
    metrics: Mapping[str, float]
    tokens: Mapping[str, int]
    seconds: Mapping[str, float]
    stopped: str | None = None


def init_state(
    config: EvolveConfig,
    params: Params,
    key: jax.Array,
    *,
    rounds: int,
    proposals: int,
    longest: int,
    vocab_size: int,
) -> EvolveState:
    """The state before the first round.

    Args:
        config: the loop's parts.
        params: θ_0, a model with some first knowledge.
        key: the random key.
        rounds: rounds that there is room for.
        proposals: tasks a round.
        longest: tokens of the longest text in the replay buffer; longer ones aren't learned from.
        vocab_size: number of tokens.

    Raises:
        ArgumentError: a number isn't a positive integer.
    """
    _checks.arrays("params", params, some=True)
    for name, value in (
        ("rounds", rounds),
        ("proposals", proposals),
        ("longest", longest),
        ("vocab_size", vocab_size),
    ):
        _checks.positive_int(name, value)
    interop._let_flax_store(key)
    train_key, loop_key = jax.random.split(key)
    shape = (rounds, proposals)
    replay = Examples(
        np.zeros((*shape, longest), np.int16 if vocab_size < 2**15 else np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.float32),
    )
    zero = jnp.zeros((), jnp.int32)
    levels = jnp.array(config.curriculum.first, jnp.int32)
    return EvolveState(config.update.init(params, train_key), loop_key, zero, levels, zero, replay)
