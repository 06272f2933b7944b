"""What the loop is made of, what it carries from round to round, and what it reports."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.evolve.curricula import Curriculum
from metajax.evolve.gates import Decision, Gate, HeldOut
from metajax.evolve.types import (
    Answers,
    Attempts,
    Examples,
    Levels,
    Proposer,
    Solver,
    Tasks,
    Verifier,
)
from metajax.evolve.updates import Update
from metajax.trainer import TrainState
from metajax.types import Params


class Memory(NamedTuple):
    """The examples of all rounds, in arrays whose size is fixed from the start.

    Attributes:
        tokens: ``[rounds, n, width]``, int16 or int32.
        prompt: ``[rounds, n]``.
        lengths: ``[rounds, n]``.
        weights: ``[rounds, n]``; 0 of rounds that were refused, or are still to come.
    """

    tokens: np.ndarray
    prompt: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray


class EvolveState(NamedTuple):
    """All that the loop needs to go on, as arrays, so that it can be a checkpoint.

    Attributes:
        train: θ_t and its optimizer.
        key: the loop's random key; a round's are folded from it and the round's number.
        round: rounds that are over, int32 scalar.
        levels: first and last level of the next round, int32 ``[2]``.
        refusals: rounds in a row that brought nothing, int32 scalar.
        memory: what was learned from.
    """

    train: TrainState
    key: jax.Array
    round: jax.Array
    levels: jax.Array
    refusals: jax.Array
    memory: Memory


class Parts(NamedTuple):
    """What the loop is made of; each part can be another.

    Attributes:
        propose: poses tasks.
        solve: answers them.
        verifier: says what can be trusted.
        update: f.
        gate: decides between θ_t and θ_{t+1}.
        curriculum: how hard tasks are.
        real: ``real(key) -> Examples``, real data for a round.
        held_out: ``held_out(levels) -> HeldOut``, always the same tasks for the same levels. Of a
            level's frontier those of that very level, where there are any, tell the curriculum what
            its yield is.
        oracle: ``oracle(tasks) -> Answers``, for the report alone; None where nobody knows.
        tamper: ``tamper(round, attempts) -> attempts``, what happens to answers before they are
            verified, for experiments with damaged labels; None for nothing.
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
    tamper: Callable[[int, Attempts], Attempts] | None = None


class RoundReport(NamedTuple):
    """What a round did. Shares are in [0, 1].

    Attributes:
        round: its number, from 1 on.
        levels: of its tasks.
        proposals: how many texts were proposed.
        valid: share that are tasks.
        unique: share that are tasks which weren't there yet, in this round or held out.
        agreement: mean agreement of these.
        kept: share of the proposals with a weight above 0.
        label_accuracy: share of the kept labels that are right, as an oracle says; None without
            one, or where nothing is kept.
        raw_accuracy: share of all labels that are right, before the verifier; as above.
        decision: the gate's; None where nothing was kept, so that nothing was learned.
        accepted: whether θ_{t+1} was taken.
        uses_oracle: whether the verifier knows right answers.
        metrics: the update's, means over the round's last tenth.
        tokens: trained on, and generated: ``{"trained": ..., "generated": ...}``.
        seconds: by part.
        stopped: why the loop ends here; None where it goes on.
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


def start(
    parts: Parts,
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
        parts: the loop's.
        params: θ_0: the model that has gathered its first knowledge.
        key: the random key.
        rounds: for how many there is room.
        proposals: tasks a round.
        longest: tokens of the longest text that is remembered; longer ones aren't learned from.
        vocab_size: number of tokens.

    Raises:
        ArgumentError: a number isn't a positive integer.
    """
    _checks.instance("parts", parts, Parts, "Parts")
    _checks.arrays("params", params, some=True)
    _checks.key("key", key)
    vocab_size = _checks.positive_int("vocab_size", vocab_size)
    for name, value in (("rounds", rounds), ("proposals", proposals), ("longest", longest)):
        _checks.positive_int(name, value)
    train_key, own_key = jax.random.split(key)
    shape = (rounds, proposals)
    kind = np.int16 if vocab_size < 2**15 else np.int32
    memory = Memory(
        np.zeros((*shape, longest), kind),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.float32),
    )
    zero = jnp.zeros((), jnp.int32)
    levels = jnp.array(parts.curriculum.first, jnp.int32)
    train = parts.update.init(params, train_key)
    return EvolveState(train, own_key, zero, levels, zero, memory)
