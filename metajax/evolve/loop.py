"""The loop: propose, solve, verify, learn, and accept or go back. θ_{t+1} = f(θ_t, D_t)."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve._contracts import check_completions, check_tasks, check_verdict
from metajax.evolve.completions import chosen_completions, is_correct
from metajax.evolve.data import labelled_examples
from metajax.evolve.gates import held_out_fingerprints
from metajax.evolve.proposers import without_duplicates
from metajax.evolve.state import EvolveConfig, EvolveState, RoundReport
from metajax.evolve.types import Examples, Levels, Rollouts, Tasks, TrainingData
from metajax.parallel._processes import agreed
from metajax.types import Params

_SILENT = 3
"""Rounds in a row without a valid task after which the loop stops, whatever its patience."""


def evolve(
    config: EvolveConfig, state: EvolveState, *, patience: int = 3
) -> Iterator[tuple[EvolveState, RoundReport]]:
    """Runs rounds, and yields state and report after each, until there is no room for another.

    In a round tasks are proposed; duplicates and held-out ones are left out; the model answers; the
    verifier decides what to trust; the update makes θ_{t+1} from that and from everything learned
    before; the gate accepts it or stays with θ_t. A refused θ_{t+1} is gone, with its optimizer's
    state. Its examples are kept at weight 0, and the next round proposes new tasks of the same
    levels and takes half the step. A round that keeps nothing learns nothing and counts as refused.
    Three rounds in a row without a valid task end the loop.

    Several processes (``jax.distributed``) make the same calls with the same state. Each calls
    every part, and what a part gave the first process counts in all of them. So they decide alike,
    whatever a verifier's Python code does. The update trains on the devices of its mesh. A part
    that should run once, such as one that asks a server, wraps itself in
    ``metajax.parallel.from_first``.

    Args:
        config: the loop's parts.
        state: from ``init_state``, or any state that was yielded. A restored one goes on bit for
            bit.
        patience: number of refused rounds in a row after which the loop stops. The last report says
            why. A stopped state goes on once its ``refusals`` are set to 0.

    Raises:
        ArgumentError: tasks, completions or a verdict of wrong shapes, or weights that aren't in
            [0, 1]. A round is checked before anything is learned from it. Or the update is a policy
            gradient at another temperature than ``model_solver``'s.

    Source: the loop, Lee et al. 2025 (arXiv 2502.01612); the gate is ours.
    """
    _checks.positive_int("patience", patience)
    drawn_at = getattr(config.solve, "temperature", None)
    if None not in (drawn_at, config.update.temperature) and drawn_at != config.update.temperature:
        raise ArgumentError(
            f"temperature of update must be that of solve, {drawn_at}, got "
            f"{config.update.temperature}."
        )
    while _why_over(state, patience) is None:
        state, report = _round(config, state)
        yield state, report._replace(stopped=_why_over(state, patience))


def _why_over(state: EvolveState, patience: int) -> str | None:
    """Why there is no further round, or None."""
    rounds, refusals = int(state.round), int(state.refusals)
    # A round without a valid task left zeros alone.
    lengths = np.asarray(state.replay.lengths)[max(rounds - refusals, 0) : rounds]
    empty = ~np.any(lengths, axis=1)
    silent = int(np.cumprod(empty[::-1]).sum())
    if silent >= min(patience, _SILENT):
        return f"the proposer wrote no valid task in {silent} rounds in a row"
    if refusals >= patience:
        return f"{patience} rounds in a row brought nothing"
    capacity = len(state.replay.weights)
    return f"all {capacity} rounds are done" if rounds >= capacity else None


def _round(config: EvolveConfig, state: EvolveState) -> tuple[EvolveState, RoundReport]:
    number = int(state.round) + 1
    levels = Levels(*(int(level) for level in state.levels))
    keys = jax.random.split(jax.random.fold_in(state.key, number), 6)
    clock = _Clock()
    held_out = agreed(config.held_out(levels))

    proposed = agreed(config.propose(state.train.params, keys[0], levels))
    count = state.replay.weights.shape[1]
    check_tasks(proposed, count, name="propose must return")
    tasks = without_duplicates(proposed, held_out_fingerprints(held_out))
    clock.lap("propose")
    completions = agreed(config.solve(state.train.params, keys[1], tasks))
    if config.corrupt is not None:
        completions = config.corrupt(number, completions)
    check_completions(completions, count)
    clock.lap("solve")
    verdict = agreed(config.verifier.verify(tasks, completions))
    check_verdict(verdict, count, np.shape(completions.tokens)[1])
    rollouts = Rollouts(tasks, completions, verdict)
    examples = _that_fit(labelled_examples(rollouts), state.replay.tokens.shape[2])
    clock.lap("verify")

    trained, train, decision, metrics = 0, state.train, None, {}
    if examples.weights.any():
        data = TrainingData(agreed(config.real(keys[2])), _past(state), examples, rollouts)
        scale = 0.5 ** int(state.refusals)
        new, history, trained = config.update.update(state.train, data, keys[3], scale)
        metrics = _last(history)
        clock.lap("update")
        decision = agreed(config.gate(state.train.params, new.params, keys[4], held_out))
        clock.lap("gate")
        if decision.accepted:
            train = new
    accepted = decision is not None and decision.accepted
    next_levels = levels
    if accepted:
        keep_rate = _keep_rate(config, train.params, keys[5])
        next_levels = agreed(config.curriculum.next(levels, keep_rate))
        clock.lap("curriculum")
    if not np.any(tasks.valid):
        examples = jax.tree.map(np.zeros_like, examples)  # see _why_over
    state = EvolveState(
        train,
        state.key,
        state.round + 1,
        jnp.array(next_levels, jnp.int32),
        jnp.zeros((), jnp.int32) if accepted else state.refusals + 1,
        _remembered(state.replay, number - 1, examples, accepted),
    )
    valid, unique = np.asarray(proposed.valid), np.asarray(tasks.valid)
    raw, right = _accuracy(config, rollouts)
    return state, RoundReport(
        round=number,
        levels=levels,
        proposals=count,
        valid=float(valid.mean()),
        unique=float(unique.mean()),
        agreement=float(np.asarray(verdict.agreement)[unique].mean()) if unique.any() else 0.0,
        kept=float((examples.weights > 0).mean()),
        label_accuracy=right,
        raw_accuracy=raw,
        decision=decision,
        accepted=accepted,
        uses_oracle=config.verifier.uses_oracle,
        metrics=metrics,
        tokens={"trained": trained, "generated": int(np.asarray(completions.lengths).sum())},
        seconds=clock.laps,
    )


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def _that_fit(examples: Examples, width: int) -> Examples:
    """The examples as wide as the replay buffer; longer ones get weight 0."""
    tokens = np.zeros((len(examples.tokens), width), np.int32)
    shared = min(width, examples.tokens.shape[1])
    tokens[:, :shared] = examples.tokens[:, :shared]
    fits = examples.lengths <= width
    return examples._replace(tokens=tokens, weights=np.where(fits, examples.weights, 0))


def _past(state: EvolveState) -> tuple[Examples, ...]:
    return tuple(
        jax.tree.map(lambda leaf: np.asarray(leaf[number]), state.replay)  # noqa: B023
        for number in range(int(state.round))
    )


def _remembered(replay: Examples, row: int, examples: Examples, accepted: bool) -> Examples:
    def put(leaf, new):
        leaf = np.array(leaf)  # the state that was yielded before stays as it is
        leaf[row] = new
        return leaf

    weights = examples.weights if accepted else np.zeros_like(examples.weights)
    return jax.tree.map(put, replay, examples._replace(weights=weights))


def _keep_rate(config: EvolveConfig, params: Params, key: jax.Array) -> Callable[[int], float]:
    def keep_rate(level: int) -> float:
        tasks = _of_level(config.held_out(Levels(level, level)).frontier, level)
        completions = config.solve(params, jax.random.fold_in(key, level), tasks)
        verdict = config.verifier.verify(tasks, completions)
        return float((np.asarray(verdict.weight) > 0).mean())

    return keep_rate


def _of_level(tasks: Tasks, level: int) -> Tasks:
    """The tasks of this level, or all if there are none. Easier ones would raise the keep rate."""
    wanted = np.asarray(tasks.levels) == level
    return jax.tree.map(lambda leaf: np.asarray(leaf)[wanted], tasks) if wanted.any() else tasks


def _accuracy(config: EvolveConfig, rollouts: Rollouts) -> tuple[float | None, float | None]:
    """The share of right labels among all valid tasks, and among those that are kept."""
    if config.oracle is None:
        return None, None
    tasks, completions, verdict = rollouts
    labels = chosen_completions(completions, verdict.choice)
    right = np.asarray(is_correct(labels, config.oracle(tasks))[:, 0])
    valid = np.asarray(tasks.valid)
    kept = valid & (np.asarray(verdict.weight) > 0)
    raw, of_kept = (float(right[rows].mean()) if rows.any() else None for rows in (valid, kept))
    return raw, of_kept


def _last(history: Mapping[str, Any]) -> dict[str, float]:
    """Each metric's mean over the last tenth of the steps."""
    found = {}
    for name, values in history.items():
        values = np.asarray(values)
        found[name] = float(values[-max(1, len(values) // 10) :].mean())
    return found
