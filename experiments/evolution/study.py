"""What the studies of self-evolution share: base model, rounds, control, and their records."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import metajax
from experiments import common
from experiments.common import plots
from metajax import evolve as ev
from metajax import lm

Scores = Mapping[str, float]
ScoresOf = Callable[[Any], Scores]


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        params: its parameters.
        seconds: what the training took.
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


def real_mixture(kept: Sequence[bool]) -> np.ndarray:
    """The control's mixture: real data alone."""
    return np.array([1.0] + [0.0] * len(kept))


def base_model(
    run: common.Run,
    apply: metajax.losses.Apply,
    params: Any,
    optimizer: optax.GradientTransformation,
    real: ev.Examples,
    *,
    steps: int,
    rows: int,
    row_length: int,
    micro_batches: int,
    pool: int,
    prompt_share: float = 0.0,
) -> Trained:
    """Trains θ_0 on real data, in the run's folder ``base``."""
    key_rows, key_train = jax.random.split(jax.random.fold_in(jax.random.key(run.config.seed), 1))
    packed = ev.pack_mixture(
        ev.real_only(real),
        real_mixture([False]),
        key_rows,
        rows=pool,
        length=row_length,
        prompt_share=prompt_share,
    )
    trainer = metajax.meta_trainer(
        lm.supervised(lm.next_token_loss(apply)),
        optimizer,
        lm.as_episodes(lm.row_sampler(packed, batch=rows // micro_batches)),
        meta_batch=micro_batches,
        mesh=metajax.task_mesh(micro_batches),
    )
    tokens = round(rows * (row_length + 1) * float((packed.segments != 0).mean()))
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


def train_on_real_data(
    update: ev.Update,
    params: Any,
    real: Callable[[jax.Array], ev.Examples],
    *,
    rounds: int,
    seed: int,
    name: str = "control",
    after: Callable[[int, Any], None] | None = None,
) -> Trained:
    """Applies an update ``rounds`` times to real data alone.

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
            state, _, trained = update.update(state, ev.real_only(real(key)), key, 1.0)
            jax.block_until_ready(state.params)
            seconds += time.perf_counter() - started
            tokens += trained
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
    with common.locked(folder), common.Checkpoints(folder / "checkpoints") as checkpoints:
        restored = checkpoints.restore(_without(state, frozen)) if run.config.resume else None
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


class Outcome(NamedTuple):
    """What a study has trained.

    Attributes:
        base: θ_0.
        followed: the rounds.
        control: θ_0 trained on, with as many updates as the rounds', on real data alone; None if
            it wasn't asked for, or no round learned anything.
        control_records: its scores after each round's updates, if they were asked for.
    """

    base: Trained
    followed: Followed
    control: Trained | None
    control_records: list[dict[str, Any]]

    def models(self) -> dict[str, Any]:
        """Parameters by what tables call them."""
        found = {"round 0": self.base.params, "last round": self.followed.state.train.params}
        return found if self.control is None else found | {"control": self.control.params}


def evolve_and_control(
    run: common.Run,
    loop: ev.EvolveConfig,
    base: Trained,
    key: jax.Array,
    *,
    longest: int,
    vocab_size: int,
    scores: ScoresOf,
    control: Callable[[int], ev.Update],
    control_scores: bool = False,
    frozen: str | None = None,
) -> Outcome:
    """Runs the rounds, then the control.

    Args:
        run: its config has ``rounds``, ``proposals``, ``seed`` and ``control``.
        loop: the loop's parts.
        base: θ_0.
        key: the loop's random key.
        longest: tokens of the longest text.
        vocab_size: number of tokens.
        scores: of a model's parameters, after each round.
        control: ``control(rounds) -> Update``, which learns from real data alone.
        control_scores: whether the control is scored after each round's updates too.
        frozen: as for ``follow``.
    """
    config = run.config
    state = ev.init_state(
        loop,
        base.params,
        key,
        rounds=config.rounds,
        proposals=config.proposals,
        longest=longest,
        vocab_size=vocab_size,
    )
    followed = follow(run, loop, state, scores=scores, frozen=frozen)
    learned = sum(record.get("seconds_update") is not None for record in followed.records)
    if config.control == "no" or not learned:
        return Outcome(base, followed, None, [])
    records = [{"step": 0, **scores(base.params)}] if control_scores else []

    def record(number: int, params: Any) -> None:
        records.append({"step": number, **scores(params)})

    trained = train_on_real_data(
        control(learned),
        base.params,
        loop.real,
        rounds=learned,
        seed=config.seed,
        after=record if control_scores else None,
    )
    return Outcome(base, followed, trained, records)
