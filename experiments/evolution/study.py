"""What the experiments in self-evolution share: the base model, the rounds, and their records."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import metajax
from experiments import common
from experiments.common import plots
from metajax import lm
from metajax.evolve import EvolveState, Examples, Parts, RoundReport, Update, evolve, real_alone
from metajax.evolve.data import Data, rows_of
from metajax.files import write_atomically

Scores = Mapping[str, float]
ScoresOf = Callable[[Any], Scores]


class Trained(NamedTuple):
    """A model before its first round.

    Attributes:
        params: θ_0.
        seconds: what its training took.
        tokens: that it was trained on.
    """

    params: Any
    seconds: float
    tokens: int


def warmup_stable_decay(
    rate: float, steps: int, *, warm: int, stable: int, end: float
) -> optax.Schedule:
    """A rise over ``warm`` steps, ``rate`` up to the step ``stable``, then a fall to ``end``."""
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, warm),
            optax.constant_schedule(rate),
            optax.linear_schedule(rate, end, steps - stable),
        ],
        [warm, stable],
    )


def base_model(
    run: common.Run,
    apply: metajax.losses.Apply,
    params: Any,
    optimizer: optax.GradientTransformation,
    data: Data,
    *,
    steps: int,
    rows: int,
    row_length: int,
    micro_batches: int,
    prompt_share: float,
    pool: int,
) -> Trained:
    """Gathers the first knowledge: trains on real data, in the run's folder ``base``."""
    key_rows, key_train = jax.random.split(jax.random.fold_in(jax.random.key(run.config.seed), 1))
    packed = rows_of(
        data,
        np.array([1.0, 0.0]),
        key_rows,
        rows=pool,
        length=row_length,
        prompt_share=prompt_share,
    )
    draw = lm.row_sampler(packed, batch=rows // micro_batches)
    trainer = metajax.meta_trainer(
        lm.supervised(lm.next_token_loss(apply)),
        optimizer,
        lm.as_episodes(draw),
        meta_batch=micro_batches,
        mesh=metajax.task_mesh(micro_batches),
    )
    tokens = round(rows * (row_length + 1) * float((packed.segment_ids != 0).mean()))
    part = run._replace(name="base model", path=run.path / "base")
    fitted = common.fit(
        part,
        trainer,
        trainer.init(params, key_train),
        steps=steps,
        per_step={"tokens": tokens},
    )
    plots.training_curve(part.path / "training.png", fitted.metrics, adapts=False)
    return Trained(jax.device_get(fitted.state.params), fitted.seconds, tokens * steps)


def on_real_data(
    update: Update,
    params: Any,
    real: Callable[[jax.Array], Examples],
    *,
    rounds: int,
    seed: int,
    name: str = "control",
    after: Callable[[int, Any], None] | None = None,
) -> Trained:
    """Trains on real data alone, so many times as an update trains in a round.

    Args:
        update: such as ``metajax.evolve.fine_tune``.
        params: what it starts from.
        real: ``real(key) -> Examples``.
        rounds: how often.
        seed: of what is drawn.
        name: for the progress bar.
        after: ``after(number, params)``, called after each; its time doesn't count.
    """
    state, tokens, seconds = update.init(params, jax.random.key(seed)), 0, 0.0
    with common.progress(name, 0, rounds, unit="round") as bar:
        for number in range(rounds):
            started = time.perf_counter()
            key = jax.random.fold_in(jax.random.key(seed + 1), number)
            state, _, own = update.update(state, real_alone(real(key)), key, 1.0)
            jax.block_until_ready(state.params)
            seconds += time.perf_counter() - started
            tokens += own
            if after is not None:
                after(number + 1, state.params)
            bar.update(1)
    return Trained(state.params, seconds, tokens)


class Followed(NamedTuple):
    """What the rounds left.

    Attributes:
        state: after the last round.
        records: a line for each round, as in ``rounds/metrics.jsonl``.
        stopped: why the loop ended.
    """

    state: EvolveState
    records: list[dict[str, Any]]
    stopped: str


def follow(
    run: common.Run,
    parts: Parts,
    state: EvolveState,
    *,
    scores: ScoresOf,
    name: str = "rounds",
    patience: int = 3,
    fixed: str | None = None,
) -> Followed:
    """Runs the loop in the run's folder ``rounds``, from its last checkpoint if the run resumes.

    After each round the state is written, whole or not at all, and a line of metrics with
    ``scores(params)``; that of round 0 is of the model before. On Ctrl-C or SIGTERM the round is
    finished and written first.

    Args:
        run: whose folder it is.
        parts: the loop's.
        state: before the first round.
        scores: of a model's parameters.
        name: of the folder, and of the progress bar.
        patience: rounds in a row that may bring nothing.
        fixed: the entry of the parameters that no round changes, such as ``"params"`` beside
            ``"lora"``: it isn't written into checkpoints, and a resumed run takes the state's.
    """
    folder = run.path / name
    total = len(state.memory.weights)
    with common.locked(folder), common.Checkpoints(folder / "checkpoints") as checkpoints:
        restored = checkpoints.restore(_without(state, fixed)) if run.config.resume else None
        if restored is not None:
            state = _with_fixed(restored[0], state, fixed)
        done = int(state.round)
        with (
            common.MetricsLog(folder, step=done, tensorboard=run.config.tensorboard) as log,
            common.progress(name, done, total, unit="round") as bar,
            common.stop_requests("round") as stop,
        ):
            if restored is None:
                if not log.records:  # a kill may have come between the two
                    log.append(0, dict(scores(state.train.params)))
                checkpoints.save(0, _without(state, fixed))
            for after, report in evolve(parts, state, patience=patience):
                state = after
                started = time.perf_counter()
                record = flat(report) | dict(scores(state.train.params))
                record["seconds_test"] = time.perf_counter() - started
                log.append(report.round, record)
                log.sync()
                checkpoints.save(report.round, _without(state, fixed))
                bar.set_postfix(_shown(report), refresh=False)
                bar.update(1)
                if stop.received:
                    bar.close()
                    stop.leave(f"round {report.round}", run)
            stopped = log.records[-1].get("stopped") or "the loop had ended before"
            return Followed(state, list(log.records), stopped)


def _without(state: EvolveState, fixed: str | None) -> EvolveState:
    if fixed is None:
        return state
    own = {name: part for name, part in state.train.params.items() if name != fixed}
    return state._replace(train=state.train._replace(params=own))


def _with_fixed(state: EvolveState, before: EvolveState, fixed: str | None) -> EvolveState:
    if fixed is None:
        return state
    params = {**state.train.params, fixed: before.train.params[fixed]}
    return state._replace(train=state.train._replace(params=params))


class Control(NamedTuple):
    """What learned from real data alone.

    Attributes:
        trained: the model after it.
        records: a line for each round, as many as the loop's that learned; that of round 0 is of
            the base model.
    """

    trained: Trained
    records: list[dict[str, Any]]


def control(
    update: Update,
    base: Trained,
    real: Callable[[jax.Array], Examples],
    *,
    rounds: int,
    seed: int,
    scores: ScoresOf,
) -> Control:
    """The base model trained on, as many steps as the rounds', on real data alone."""
    records: list[dict[str, Any]] = [{"step": 0, **scores(base.params)}]

    def record(number: int, params: Any) -> None:
        records.append({"step": number, **scores(params)})

    trained = on_real_data(update, base.params, real, rounds=rounds, seed=seed, after=record)
    return Control(trained, records)


def flat(report: RoundReport) -> dict[str, Any]:
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


def _shown(report: RoundReport) -> dict[str, str]:
    level = f"{report.levels.last}"
    verdict = "accepted" if report.accepted else "refused" if report.decision else "nothing kept"
    return {"level": level, "kept": f"{report.kept:.0%}", "θ": verdict}


def rounds_table(records: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The columns of a table of rounds."""
    shown = [record for record in records if record["step"] > 0]
    share = lambda name: [
        "–" if record.get(name) is None else f"{100 * record[name]:.1f}" for record in shown
    ]
    return {
        "round": [str(record["step"]) for record in shown],
        "levels": [
            str(r["last_level"])
            if r["first_level"] == r["last_level"]
            else f"{r['first_level']}–{r['last_level']}"
            for r in shown
        ],
        "valid": share("valid"),
        "new": share("unique"),
        "right before the verifier": share("raw_accuracy"),
        "kept": share("kept"),
        "right of the kept": share("label_accuracy"),
        "gate, known": [_change(record, "known") for record in shown],
        "gate, frontier": [_change(record, "frontier") for record in shown],
        "θ": ["accepted" if record["accepted"] else "kept as it was" for record in shown],
    }


def _change(record: Mapping[str, Any], group: str) -> str:
    if f"{group}_before" not in record:
        return "–"
    return f"{100 * record[f'{group}_before']:.1f} → {100 * record[f'{group}_after']:.1f}"


def seconds_of(records: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each part over all rounds, from their lines."""
    found: dict[str, float] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith("seconds_"):
                found[name[8:]] = found.get(name[8:], 0.0) + value
    return found


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def replaced(config: Any, **defaults: Any) -> Any:
    """The config with defaults in place of what is None."""
    return dataclasses.replace(
        config, **{name: value for name, value in defaults.items() if getattr(config, name) is None}
    )
