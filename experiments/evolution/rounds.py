"""The rounds of a run: resumed, scored, recorded and written after each."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments import common
from metajax import evolve as ev

Scores = Mapping[str, float]
ScoresOf = Callable[[Any], Scores]


class Followed(NamedTuple):
    """What the rounds left.

    Attributes:
        state: after the last round.
        records: a line for each round, as in ``rounds/metrics.jsonl``.
        stopped: why the loop ended.
    """

    state: ev.EvolveState
    records: list[dict[str, Any]]
    stopped: str


def follow(
    run: common.Run,
    loop: ev.EvolveConfig,
    state: ev.EvolveState,
    *,
    scores: ScoresOf,
    frozen: str | None = None,
) -> Followed:
    """Runs the loop in the run's folder ``rounds``, from its last checkpoint if the run resumes.

    After each round a checkpoint is written, and a line of metrics with ``scores(params)``; that of
    round 0 is of the model before. On Ctrl-C or SIGTERM the round is finished and written first.

    Args:
        run: whose folder it is.
        loop: the loop's parts.
        state: before the first round.
        scores: of a model's parameters.
        frozen: the entry of the parameters that never changes, such as ``"params"`` beside
            ``"lora"``. It isn't written to checkpoints; a resumed run takes that of ``state``.
    """
    folder = run.path / "rounds"
    total = len(state.replay.weights)
    with common.locked(folder), common.Checkpoints(folder / "checkpoints", run=run) as checkpoints:
        restored = checkpoints.resume(_without(state, frozen))
        if restored is not None:
            state = _with(restored[0], state, frozen)
        done = int(state.round)
        with (
            common.MetricsLog(folder, step=done, tensorboard=run.config.tensorboard) as log,
            common.progress("rounds", done, total, unit="round") as bar,
            common.stop_requests("round") as stop,
        ):
            if restored is None:
                if not log.records:  # a kill may have come between the two
                    log.append(0, dict(scores(state.train.params)))
                checkpoints.save(0, _without(state, frozen))
            for after, report in ev.evolve(loop, state):
                state = after
                started = time.perf_counter()
                record = _record(report) | dict(scores(state.train.params))
                record["seconds_test"] = time.perf_counter() - started
                log.append(report.round, record)
                log.sync()
                checkpoints.save(report.round, _without(state, frozen))
                bar.set_postfix(_summary(report), refresh=False)
                bar.update(1)
                if stop.received:
                    bar.close()
                    stop.leave(f"round {report.round}", run)
            stopped = log.records[-1].get("stopped") or "the loop had ended before"
            return Followed(state, list(log.records), stopped)


def _without(state: ev.EvolveState, frozen: str | None) -> ev.EvolveState:
    if frozen is None:
        return state
    learned = {name: part for name, part in state.train.params.items() if name != frozen}
    return state._replace(train=state.train._replace(params=learned))


def _with(state: ev.EvolveState, before: ev.EvolveState, frozen: str | None) -> ev.EvolveState:
    if frozen is None:
        return state
    params = {**state.train.params, frozen: before.train.params[frozen]}
    return state._replace(train=state.train._replace(params=params))


def _record(report: ev.RoundReport) -> dict[str, Any]:
    """A report as one line of numbers and words."""
    record = report._asdict()
    decision, levels = record.pop("decision"), record.pop("levels")
    record |= {"first_level": levels.first, "last_level": levels.last}
    del record["round"]
    for name in ("metrics", "tokens", "seconds"):
        record |= {f"{name}_{key}": value for key, value in record.pop(name).items()}
    if decision is not None:
        for group in decision.before:
            record[f"{group}_before"] = decision.before[group]
            record[f"{group}_after"] = decision.after[group]
            record[f"{group}_change_at_least"] = decision.lowest[group]
        record["decision"] = decision.reason
    return record


def _summary(report: ev.RoundReport) -> dict[str, str]:
    """For the progress bar."""
    verdict = "accepted" if report.accepted else "refused" if report.decision else "nothing kept"
    return {"level": str(report.levels.last), "kept": f"{report.kept:.0%}", "θ": verdict}
