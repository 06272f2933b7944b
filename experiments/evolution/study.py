"""What the studies of self-evolution share: base model, rounds and control."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np
import optax

import metajax
from experiments import common
from experiments.common import plots
from experiments.evolution.rounds import Followed, ScoresOf, follow
from metajax import evolve as ev
from metajax import lm


@dataclasses.dataclass(frozen=True)
class StudyConfig(common.RunConfig):
    """Options that the studies share."""

    steps: int = 1000
    """Updates before the first round."""
    rounds: int = 10
    """Rounds of self-evolution."""
    round_steps: int = 300
    """Updates of each round."""
    proposals: int = 2048
    """Tasks of each round."""
    rate: float = 1e-3
    """The learning rate."""
    control: Literal["yes", "no"] = "yes"
    """Whether the control is trained: as many updates, on real data alone."""

    may_differ: ClassVar[frozenset[str]] = common.RunConfig.may_differ | {"control"}

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "rounds", "round_steps", "proposals", "rate")


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
        lm.as_episodes(lm.row_sampler(lm.with_places(packed), batch=rows // micro_batches)),
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
    config: StudyConfig,
    loop: ev.EvolveConfig,
    base: Trained,
    key: jax.Array,
    *,
    longest: int,
    vocab_size: int,
    scores: ScoresOf,
    control: Callable[[int], ev.Update] | None = None,
    control_scores: bool = False,
    frozen: str | None = None,
) -> Outcome:
    """Runs the rounds, then the control.

    Args:
        run: the run.
        config: its options.
        loop: the loop's parts.
        base: θ_0.
        key: the loop's random key.
        longest: tokens of the longest text.
        vocab_size: number of tokens.
        scores: of a model's parameters, after each round.
        control: ``control(rounds) -> Update``, which learns from real data alone; without one
            there is no control.
        control_scores: whether the control is scored after each round's updates too.
        frozen: as for ``follow``.
    """
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
    if control is None or config.control == "no" or not learned:
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
