"""The training loop around ``trainer.run``: progress, metrics, checkpoints, stopping, resuming."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import processes
from experiments.common.best import Best
from experiments.common.checkpoints import Checkpoints
from experiments.common.config import RunError
from experiments.common.disk import locked
from experiments.common.folder import Run, create
from experiments.common.metrics import MetricsLog
from experiments.common.progress import progress, stop_requests
from metajax.errors import NonFiniteError

Validate = Callable[[Any], Mapping[str, float]]
"""``validate(params)``: named scores; the same parameters must give the same scores."""

BAD_IN_A_ROW = 100
"""A run ends where so many meta-steps in a row were undone, or had no finite loss: it learns
nothing."""


class Fitted(NamedTuple):
    """What a finished training run leaves.

    Attributes:
        state: the training state after the last meta-step.
        metrics: the lines of ``metrics.jsonl``, from the first meta-step on.
        seconds: time spent training, over all parts of a resumed run.
    """

    state: Any
    metrics: list[dict[str, Any]]
    seconds: float


def fit(
    run: Run,
    trainer: Any,
    state: Any,
    *,
    steps: int,
    validate: Validate | None = None,
    validate_every: int = 1000,
    per_step: Mapping[str, int] | None = None,
) -> Fitted:
    """Trains until ``steps`` meta-steps are done, from the run's last checkpoint if it resumes.

    One dispatch is ``log_every`` meta-steps (the last one may be shorter), at the same boundaries
    whether or not the run was interrupted: so that a killed and resumed run computes the very
    numbers of one that was not. On Ctrl-C or SIGTERM the dispatch is finished, a checkpoint
    written, and ``KeyboardInterrupt`` or ``SystemExit`` raised.

    No other process can use the run's folder meanwhile. Of the validated parameters the best are
    kept too, for ``best_params``.

    Where several processes run, all of them call it; the first writes and reads the files, and a
    signal to any of them stops all after the same dispatch.

    Where the trainer has a policy for what isn't finite (``non_finite`` of ``meta_trainer``), its
    counts are written as sums over the dispatch, and the other metrics are means over the
    meta-steps where they are finite. Under "raise" the last good state becomes a checkpoint.

    Args:
        run: from ``open_run``.
        trainer: has ``run(state, n) -> (state, metrics)``, ``metrics`` being a dictionary of
            ``[n]`` arrays with ``"loss"`` among them.
        state: the initial state, with ``params`` and ``step``; it is donated.
        steps: meta-steps in all.
        validate: scores the parameters now and then; written as ``validation_...``.
        validate_every: meta-steps between validations.
        per_step: what a meta-step gets through, such as ``{"tokens": 768}``; written, and shown, as
            ``tokens_per_second``. The first includes the compilation.

    Raises:
        NonFiniteError: the meta-loss, its gradient or a parameter is NaN or infinite; where the
            trainer has a policy, after ``BAD_IN_A_ROW`` meta-steps that were undone or whose loss
            isn't finite.
        RunError: a checkpoint cannot be used, the run's folder cannot be written, or another
            process is using it.
    """
    config = run.config
    create(run)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(run.path))
        checkpoints = stack.enter_context(Checkpoints(run.path / "checkpoints", run=run))
        if not config.resume and checkpoints.latest() is not None:
            raise RunError(
                f"out: another process has trained in {run.path} meanwhile. Name another folder"
                " with --out"
            )
        restored = checkpoints.resume(state)
        if restored is not None:
            state = restored[0]
        step = int(state.step)
        log = stack.enter_context(MetricsLog(run.path, step=step, tensorboard=config.tensorboard))
        bar = stack.enter_context(progress(run.name, step, steps))
        stop = stack.enter_context(stop_requests("dispatch"))
        best = None
        if validate is not None:
            best = stack.enter_context(Best(run, state.params))
        if restored is None:
            checkpoints.save(step, state)

        bad_in_a_row = 0
        while step < steps:
            before, started = step, time.perf_counter()
            count = min(config.log_every - step % config.log_every, steps - step)
            with _kept_if_not_finite(checkpoints):
                state, history = trainer.run(state, count)
            history = {name: np.asarray(value) for name, value in jax.device_get(history).items()}
            seconds = time.perf_counter() - started
            bad, undone = (history.pop(name, None) for name in ("non_finite", "undone"))
            if bad is None or undone is None:
                _check_finite(history, before, checkpoints)
            else:
                nothing = (undone > 0) | ~np.isfinite(history["loss"])
                bad_in_a_row = _in_a_row(nothing, bad_in_a_row, before, checkpoints)
            step += count

            means = np.mean if bad is None else _finite_mean
            values = {name: float(means(value)) for name, value in history.items()}
            rates = {f"{k}_per_second": v * count / seconds for k, v in (per_step or {}).items()}
            shown = {k: f"{values[k]:.4g}" for k in ("loss", "accuracy") if k in values}
            shown |= {name: f"{rate:,.0f}" for name, rate in rates.items()}
            if bad is not None and undone is not None:
                counts = {"non_finite": int(bad.sum()), "undone": int(undone.sum())}
                values |= counts
                shown |= {name: count for name, count in counts.items() if count}
            if validate is not None and _passes(before, step, validate_every, steps):
                scores = {key: float(v) for key, v in validate(state.params).items()}
                values |= {f"validation_{key}": score for key, score in scores.items()}
                # Before the checkpoint: from that a resumed run doesn't validate again.
                if best is not None:
                    best.offer(step, state.params, scores)
            values |= {"seconds": seconds, **rates}
            # Before the checkpoint: after a kill in between, the line is made again, not missing.
            log.append(step, values)
            received = processes.any_of(int(stop.received or 0))
            if _passes(before, step, config.checkpoint_every, steps) or received:
                _check_parameters(state.params, step, checkpoints)
                log.sync()
                checkpoints.save(step, state)
            bar.set_postfix(shown, refresh=False)
            bar.update(count)
            if received:
                bar.close()
                stop.received = signal.Signals(received)
                stop.leave(f"step {step}", run)
        records = processes.from_first(log.records)
    return Fitted(state, records, sum(record.get("seconds") or 0.0 for record in records))


def _passes(before: int, now: int, every: int, last: int) -> bool:
    return now // every > before // every or now == last


def _check_finite(history: dict[str, np.ndarray], before: int, checkpoints: Checkpoints) -> None:
    for name in ("loss", "grad_norm"):
        if name in history and not np.isfinite(history[name]).all():
            index = int(np.argmin(np.isfinite(history[name])))
            _stop_for(f"{name} is {history[name][index]}", before + index + 1, checkpoints)


def _finite_mean(value: np.ndarray) -> float:
    finite = value[np.isfinite(value)]
    return float(finite.mean()) if finite.size else float("nan")


def _in_a_row(bad: np.ndarray, so_far: int, before: int, checkpoints: Checkpoints) -> int:
    """How many meta-steps up to the last were bad one after another; too many end the run."""
    for index, count in enumerate(bad):
        so_far = so_far + 1 if count else 0
        if so_far >= BAD_IN_A_ROW:
            problem = f"so many meta-steps in a row were not finite: {so_far}"
            _stop_for(problem, before + index + 1, checkpoints)
    return so_far


@contextlib.contextmanager
def _kept_if_not_finite(checkpoints: Checkpoints) -> Iterator[None]:
    """Makes a checkpoint of the last good state that a NonFiniteError of the trainer brings."""
    try:
        yield
    except NonFiniteError as error:
        if error.state is not None:
            checkpoints.save(int(error.state.step), error.state)
        good = checkpoints.latest()
        kept = "" if good is None else f" A checkpoint of step {good}: {checkpoints.path(good)}."
        raise NonFiniteError(f"{error}{kept}", state=error.state, step=error.step) from error


def _check_parameters(params: Any, step: int, checkpoints: Checkpoints) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            name = jax.tree_util.keystr(path)
            _stop_for(f"the parameter {name} is no longer finite", step, checkpoints)


def _stop_for(problem: str, step: int, checkpoints: Checkpoints) -> None:
    good = checkpoints.latest()
    kept = "there is no checkpoint" if good is None else f"kept: {checkpoints.path(good)}"
    raise NonFiniteError(
        f"training stopped at step {step}: {problem}. The last good checkpoint is of step {good},"
        f" {kept}. Lower the inner or the outer learning rate, or clip the meta-gradient, in a new"
        " run"
    )
