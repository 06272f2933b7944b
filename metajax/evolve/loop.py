"""The loop: propose, solve, verify, learn, and accept or go back. θ_{t+1} = f(θ_t, D_t)."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve.data import Data, Round, examples_of
from metajax.evolve.gates import held_out_marks
from metajax.evolve.proposers import without_repetitions
from metajax.evolve.solve import check_tasks, chosen
from metajax.evolve.state import EvolveState, Memory, Parts, RoundReport
from metajax.evolve.types import Attempts, Examples, Levels, Tasks, Verdict
from metajax.evolve.verifiers import is_right
from metajax.types import Params


def evolve(
    parts: Parts, state: EvolveState, *, patience: int = 3
) -> Iterator[tuple[EvolveState, RoundReport]]:
    """Yields state and report after each round, until there is no room for another one.

    A round: tasks are proposed, those that are held out or were proposed twice are left out, the
    model answers, the verifier says what to trust, the update makes θ_{t+1} of it and of all that
    was learned from before, and the gate takes it or stays with θ_t. A refused θ_{t+1} is gone,
    with its optimizer; its examples are kept, at weight 0, and the next attempt, from new proposals
    of the same levels, takes half the step. A round that keeps nothing learns nothing and doesn't
    advance.

    Args:
        parts: the loop's.
        state: from ``start``, or a checkpoint of one that was yielded: it then goes on bit for bit.
        patience: after so many rounds in a row that brought nothing the loop stops, and says so.

    Raises:
        ArgumentError: tasks, attempts or a verdict of the wrong shapes, or weights that aren't in
            [0, 1]. A round is checked before anything is learned from it.

    Source: the loop, Lee et al. 2025 (arXiv 2502.01612); the gate is ours.
    """
    patience = _checks.positive_int("patience", patience)
    _checks.instance("parts", parts, Parts, "Parts")
    _checks.instance("state", state, EvolveState, "an EvolveState, from start")
    capacity = len(state.memory.weights)
    while int(state.round) < capacity and int(state.refusals) < patience:
        state, report = _round(parts, state)
        if int(state.refusals) >= patience:
            reason = f"{patience} rounds in a row brought nothing"
            report = report._replace(stopped=reason)
        elif int(state.round) == capacity:
            report = report._replace(stopped=f"all {capacity} rounds are done")
        yield state, report


def _round(parts: Parts, state: EvolveState) -> tuple[EvolveState, RoundReport]:
    number = int(state.round) + 1
    levels = Levels(*(int(level) for level in state.levels))
    keys = jax.random.split(jax.random.fold_in(state.key, number), 6)
    clock = _Clock()
    held_out = parts.held_out(levels)

    proposed = parts.propose(state.train.params, keys[0], levels)
    count = state.memory.weights.shape[1]
    check_tasks(proposed, count, name="propose must return")
    tasks = without_repetitions(proposed, held_out_marks(held_out))
    clock.lap("propose")
    attempts = parts.solve(state.train.params, keys[1], tasks)
    if parts.tamper is not None:
        attempts = parts.tamper(number, attempts)
    _check_attempts(attempts, count)
    clock.lap("solve")
    verdict = parts.verifier.verify(tasks, attempts)
    weights = _checked_weights(verdict, count, np.shape(attempts.tokens)[1])
    made = Round(tasks, attempts, verdict)
    examples = _that_fit(examples_of(made), state.memory.tokens.shape[2])
    clock.lap("verify")

    trained, train, decision, metrics = 0, state.train, None, {}
    if examples.weights.any():
        data = Data(parts.real(keys[2]), _past(state), examples, made)
        scale = 0.5 ** int(state.refusals)
        new, history, trained = parts.update.update(state.train, data, keys[3], scale)
        metrics = _last(history)
        clock.lap("update")
        decision = parts.gate(state.train.params, new.params, keys[4], held_out)
        clock.lap("gate")
        if decision.accepted:
            train = new
    accepted = decision is not None and decision.accepted
    after = levels
    if accepted:
        after = parts.curriculum.next(levels, _yield_at(parts, train.params, keys[5]))
        clock.lap("curriculum")
    state = EvolveState(
        train,
        state.key,
        state.round + 1,
        jnp.array(after, jnp.int32),
        jnp.zeros((), jnp.int32) if accepted else state.refusals + 1,
        _remembered(state.memory, number - 1, examples, accepted),
    )
    valid, unique = np.asarray(proposed.valid), np.asarray(tasks.valid)
    raw, right = _accuracy(parts, made, weights)
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
        uses_oracle=parts.verifier.uses_oracle,
        metrics=metrics,
        tokens={"trained": trained, "generated": int(np.asarray(attempts.lengths).sum())},
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


def _check_attempts(attempts: Attempts, count: int) -> None:
    _checks.instance("what solve returns", attempts, Attempts, "Attempts")
    shapes = {name: np.shape(getattr(attempts, name)) for name in Attempts._fields}
    rows = shapes["tokens"][:2]
    wide = len(shapes["tokens"]) == 3 and shapes["log_probs"] == shapes["tokens"]
    if not wide or rows[0] != count or (shapes["lengths"], shapes["ended"]) != (rows, rows):
        raise ArgumentError(
            f"solve must return tokens and log_probs [{count}, samples, width], lengths and ended "
            f"[{count}, samples], got {shapes}."
        )


def _checked_weights(verdict: Verdict, count: int, samples: int) -> np.ndarray:
    _checks.instance("what verify returns", verdict, Verdict, "a Verdict")
    weights, choice = np.asarray(verdict.weight), np.asarray(verdict.choice)
    for name, own in zip(("choice", "weight", "agreement"), verdict, strict=True):
        if np.shape(own) != (count,):
            raise ArgumentError(f"verify must return {name}s [{count}], got shape {np.shape(own)}.")
    wrong = ~((weights >= 0) & (weights <= 1))
    if wrong.any():
        raise ArgumentError(f"verify must return weights in [0, 1], got {weights[wrong][0]}.")
    if choice.dtype.kind not in "iu" or choice.min() < 0 or choice.max() >= samples:
        raise ArgumentError(
            f"verify must return choices among the {samples} samples, got {_checks.shown(choice)}."
        )
    return weights


def _that_fit(examples: Examples, width: int) -> Examples:
    """Those that the memory has room for; the weights of longer ones are 0."""
    tokens = np.zeros((len(examples.tokens), width), np.int32)
    own = min(width, examples.tokens.shape[1])
    tokens[:, :own] = examples.tokens[:, :own]
    fits = examples.lengths <= width
    return examples._replace(tokens=tokens, weights=np.where(fits, examples.weights, 0))


def _past(state: EvolveState) -> tuple[Examples, ...]:
    rounds = int(state.round)
    return tuple(
        Examples(*(np.asarray(leaf[number]) for leaf in state.memory)) for number in range(rounds)
    )


def _remembered(memory: Memory, row: int, examples: Examples, accepted: bool) -> Memory:
    weights = examples.weights if accepted else np.zeros_like(examples.weights)
    leaves = []
    for leaf, new in zip(memory, examples._replace(weights=weights), strict=True):
        leaf = np.array(leaf)  # what was yielded before stays as it is
        leaf[row] = new
        leaves.append(leaf)
    return Memory(*leaves)


def _yield_at(parts: Parts, params: Params, key: jax.Array) -> Callable[[int], float]:
    def yield_at(level: int) -> float:
        own = jax.random.fold_in(key, level)
        tasks = _of_level(parts.held_out(Levels(level, level)).frontier, level)
        verdict = parts.verifier.verify(tasks, parts.solve(params, own, tasks))
        return float((np.asarray(verdict.weight) > 0).mean())

    return yield_at


def _of_level(tasks: Tasks, level: int) -> Tasks:
    """A level's tasks alone, or all where none is of it: easier ones beside them would tell of
    themselves."""
    own = np.asarray(tasks.levels) == level
    return jax.tree.map(lambda leaf: np.asarray(leaf)[own], tasks) if own.any() else tasks


def _accuracy(parts: Parts, made: Round, weights: np.ndarray) -> tuple[float | None, float | None]:
    """Right labels among all valid tasks, and among those that are kept."""
    if parts.oracle is None:
        return None, None
    label = chosen(made.attempts, made.verdict.choice)
    right = np.asarray(is_right(label, parts.oracle(made.tasks))[:, 0])
    valid = np.asarray(made.tasks.valid)
    kept = valid & (weights > 0)
    raw, of_kept = (float(right[rows].mean()) if rows.any() else None for rows in (valid, kept))
    return raw, of_kept


def _last(history: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, values in history.items():
        values = np.asarray(values)
        found[name] = float(values[-max(1, len(values) // 10) :].mean())
    return found
