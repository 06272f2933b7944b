"""A language model that invents programs, and learns from what an interpreter makes of them.

python -m experiments.evolve_programs teaches a small transformer programs of one and two operations
of a small language: what one gives (deduction), for which input it gives that (abduction), which
one explains examples (induction), and to write such programs. Then it goes on alone. Each round it
writes programs with inputs; two of them are joined into a longer one than it was taught; it answers
tasks about these several times, and the interpreter says which answers are right. It learns from
what it sometimes gets right, the more the rarer; θ_{t+1} is taken only if held-out tasks say that
it isn't worse. It is measured on programs written by hand, up to four operations long, that neither
it nor its control ever saw; the control trains as many steps on the real data alone.

No run of the present settings has been measured yet; docs/self-evolution.md says what was tried.

Source: Zhao et al. 2025, "Absolute Zero: Reinforced Self-play Reasoning with Zero Data" (arXiv
2505.03335), in miniature. There a large model writes Python and is trained by policy gradient; here
it writes a language in which every program ends, and is fine-tuned on its right answers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments import evolve_model, program_play, program_report, program_tasks
from metajax import evolve as ev
from metajax import runs
from metajax.errors import ArgumentError
from metajax.evolve import programs as pg
from metajax.models import Transformer, TransformerConfig

TAUGHT = 2
"""Operations of the real data's programs, at most."""
HELD_OUT_SEED, TEST_SEED = 11, 2025
HARDER = ev.Levels(TAUGHT + 1, pg.MAX_OPERATIONS)
"""What is proposed from the second round on."""
MICRO_ROWS = 3
"""Rows that a core computes at a time."""
ROW_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class Config(runs.RunConfig):
    """Options of the experiment."""

    steps: int | None = 4000
    """Updates of the base model."""
    layers: int = 3
    """Blocks of the transformer, of width 128: 0.2 million parameters each."""
    rounds: int = 6
    """Rounds of self-play."""
    round_steps: int = 400
    """Updates of each."""
    proposals: int = 4096
    """Tasks of each round: five eighths deduction, an eighth of each other kind."""
    texts: int = 512
    """Programs with inputs that the model writes a round."""
    samples: int = 4
    """Answers to each task."""
    temperature: float = 1.0
    """What answers and programs are drawn at."""
    weight: Literal["learnable", "right"] = "learnable"
    """How much is learned from a task of which a share p > 0 of the answers is right: 1 - p, or
    all alike."""
    unsolved: Literal["shown", "left_out"] = "shown"
    """What becomes of a deduction that no sample got right: the interpreter's output is learned, or
    nothing."""
    floor: float = 0.3
    """Share of real data in what is trained on, at least."""
    rows: int = 24
    """Packed rows in an update, a multiple of 6."""
    rate: float = 2e-3
    """Muon's learning rate, and Adam's for what isn't a matrix; in the rounds half of it."""
    longest: int = 5
    """Digits of an input, at most."""
    taught: int = 8192
    """Random programs of which the real data is made, before those that are held out or degenerate
    are left out."""
    texts_taught: int = 8192
    """Texts of real data that a round draws from; the base model draws from six times as many."""
    test: Literal["held_out", "like"] = "held_out"
    """What is measured on: the programs written by hand, or random ones, by which settings were
    chosen."""
    test_inputs: int = 4
    """Inputs of each program that is measured on."""
    control: Literal["yes", "no"] = "yes"
    """Whether the control is trained."""
    gate_tasks: int = 1024
    """Held-out tasks of the gate, in each of its two groups."""

    may_differ: ClassVar[frozenset[str]] = runs.RunConfig.may_differ | {"test_inputs", "control"}

    def __post_init__(self) -> None:
        super().__post_init__()
        runs.check_positive(
            self, "layers", "rounds", "round_steps", "texts", "samples", "temperature", "rows",
            "rate", "longest", "taught", "texts_taught", "test_inputs",
        )  # fmt: skip
        if self.rows % (2 * MICRO_ROWS):
            raise ArgumentError(f"rows must be a multiple of {2 * MICRO_ROWS}; got {self.rows}")
        if self.proposals < 8 or self.proposals % 8:
            raise ArgumentError(
                f"proposals must be a multiple of 8, and at least that; got {self.proposals}"
            )
        if not 0 <= self.floor <= 1:
            raise ArgumentError(f"floor must be in [0, 1]; got {self.floor}")
        if self.longest > pg.MAX_LENGTH:
            raise ArgumentError(f"longest must be at most {pg.MAX_LENGTH}; got {self.longest}")
        if self.gate_tasks < 8:
            raise ArgumentError(f"gate_tasks must be at least 8; got {self.gate_tasks}")


class Setting(NamedTuple):
    """What a config comes to.

    Attributes:
        config: the config.
        model: the transformer.
        params: its initial parameters.
        apply: ``apply(params, tokens, segments=...)``.
        taught: the real data's programs.
        tests: tasks that are measured on, of each kind, ``test_inputs`` for each program.
        operations: of these programs, ``[programs]``.
    """

    config: Config
    model: Transformer
    params: Any
    apply: metajax.losses.Apply
    taught: pg.Programs
    tests: list[ev.Tasks]
    operations: np.ndarray


def setting_of(config: Config) -> Setting:
    """The model and the tasks of a config."""
    model = Transformer(
        TransformerConfig.llama(
            vocab_size=len(pg.WORDS), width=128, n_layers=config.layers, n_heads=4, mlp_width=344,
            max_length=256, scan=False,
        )
    )  # fmt: skip
    key = jax.random.key(config.seed)
    params, apply = metajax.from_linen(model, key, jnp.zeros((1, 2), jnp.int32))
    tested = pg.held_out_programs()
    if config.test == "like":
        tested = like_programs(jax.random.key(TEST_SEED), 256, 1)
    tests = program_tasks.test_tasks(
        jax.random.key(TEST_SEED), tested, config.test_inputs, config.longest
    )
    taught = program_tasks.taught_programs(jax.random.fold_in(key, 1), config.taught, TAUGHT)
    return Setting(config, model, params, apply, taught, tests, np.asarray(tested.lengths))


def like_programs(key: jax.Array, count: int, least: int) -> pg.Programs:
    """Random programs of ``least`` operations and more, as many of each, that may be learned
    from."""
    numbers = least + np.arange(2 * count) % (pg.MAX_OPERATIONS + 1 - least)
    drawn = pg.draw_programs(key, 2 * count, operations=numbers)
    return program_tasks.rows(drawn, np.flatnonzero(program_tasks.worth(drawn)[0])[:count])


def optimizer_of(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Muon, which is ahead of AdamW here (docs/self-evolution.md), behind a bound on the gradient.

    Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/); steps as large as
    Adam's, as in Liu et al. 2025 (arXiv 2502.16982).
    """
    muon = optax.contrib.muon(rate, consistent_rms=0.2, adam_b2=0.98, weight_decay=0.01)
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def schedule_of(rate: float, steps: int, stable: int) -> optax.Schedule:
    """Warm-up over a twentieth, the rate up to the step ``stable``, then a decay to a fiftieth."""
    return evolve_model.warmup_stable_decay(
        rate, steps, warm=steps // 20, stable=stable, end=rate / 50
    )


def real_data(setting: Setting, key: jax.Array) -> ev.Examples:
    """Texts about the taught programs, of all kinds."""
    count, longest = setting.config.texts_taught, setting.config.longest
    tasks, answers = program_tasks.real_tasks(key, setting.taught, count, longest)
    examples = ev.as_examples(tasks, answers, np.ones(count))
    return program_tasks.whole_texts(examples)


def first_data(setting: Setting) -> ev.Examples:
    """The base model's, drawn as a round's are, so that nothing more is compiled."""
    key = jax.random.fold_in(jax.random.key(setting.config.seed), 2)
    parts = [real_data(setting, own) for own in jax.random.split(key, 6)]
    return program_tasks.concatenated(parts)


def solver_of(setting: Setting, **options: Any) -> ev.Solver:
    """Answers, shared between the devices; greedy without options."""
    return ev.solver(
        setting.model,
        answer_length=lambda level: pg.ANSWER_LENGTH,
        end=pg.EOS,
        chunk=256,
        mesh=metajax.task_mesh(256),
        **options,
    )


def writer_of(setting: Setting) -> Any:
    """What the model writes."""
    config = setting.config
    return program_play.writer(
        setting.model,
        texts=config.texts,
        temperature=config.temperature,
        mesh=metajax.task_mesh(min(config.texts, 512)),
    )


def update_of(setting: Setting, *, control: bool = False) -> ev.Update:
    """Fine-tuning on a mixture, or on real data alone; the rate starts again each round."""
    config = setting.config
    once = schedule_of(config.rate / 2, config.round_steps, config.round_steps // 2)
    count = config.rows // MICRO_ROWS
    shares = ev.published_shares(TAUGHT, config.floor)
    real_only = lambda kept: np.array([1.0] + [0.0] * len(kept))
    tune = ev.fine_tune(
        setting.apply,
        optimizer_of(ev.every_round(once, config.round_steps)),
        steps=config.round_steps,
        shares=real_only if control else shares,
        rows=config.rows,
        row_length=ROW_LENGTH,
        micro_batches=count,
        pool=min(4096, config.round_steps * config.rows),
        mesh=metajax.task_mesh(count),
    )

    def update(state: Any, data: ev.Data, key: jax.Array, scale: float = 1.0) -> Any:
        own = program_tasks.whole_texts
        data = data._replace(
            real=own(data.real), past=tuple(map(own, data.past)), new=own(data.new)
        )
        return tune.update(state, data, key, scale)

    return tune._replace(update=update)


def held_out_of(setting: Setting) -> ev.HeldOut:
    """The gate's tasks: of programs as they are taught, and of longer ones."""
    config, groups = setting.config, []
    key = jax.random.key(HELD_OUT_SEED)
    count = config.gate_tasks
    known = program_tasks.rows(setting.taught, np.arange(count) % len(setting.taught.lengths))
    for number, programs in enumerate((known, like_programs(key, count, TAUGHT + 1))):
        own = jax.random.fold_in(key, number)
        tasks = program_tasks.test_tasks(own, programs, 1, config.longest)
        # Half deduction, a quarter abduction, a quarter induction.
        parts = np.array_split(np.arange(len(programs.lengths)), 4)
        mixed = [np.concatenate(parts[:2]), *parts[2:]]
        groups.append(
            program_tasks.concatenated(
                [program_tasks.rows(t, own) for t, own in zip(tasks, mixed, strict=True)]
            )
        )
    none = ev.Answers(np.zeros((0, 1), np.int32), np.zeros(0, np.int32))
    return ev.HeldOut(groups[0], none, groups[1])


def parts_of(setting: Setting) -> ev.Parts:
    """The loop's parts."""
    config = setting.config
    sampled = solver_of(setting, samples=config.samples, temperature=config.temperature)
    held_out, shown = held_out_of(setting), config.unsolved == "shown"
    first = ev.Levels(TAUGHT + 1, TAUGHT + 1)
    return ev.Parts(
        propose=program_play.own_proposer(
            writer_of(setting), count=config.proposals, longest=config.longest
        ),
        solve=program_play.own_solver(sampled, config.samples, shown=shown),
        verifier=program_play.by_interpreter(config.weight, shown=shown),
        update=update_of(setting),
        gate=ev.no_worse(solver_of(setting), program_play.by_interpreter("right")),
        curriculum=ev.Curriculum("three operations, then up to four", first, lambda *_: HARDER),
        real=lambda key: real_data(setting, key),
        held_out=lambda levels: held_out,
    )


def scores_of(setting: Setting) -> evolve_model.ScoresOf:
    """``scores(params)``: accuracy on the programs that are measured on, by kind, and of deduction
    by the number of operations; and what share of the model's texts are programs, and new ones."""
    solve, write = solver_of(setting), writer_of(setting)

    def scores(params: Any) -> dict[str, float]:
        found = program_play.accuracies(solve, params, setting.tests, setting.config.test_inputs)
        record = {}
        for kind, values in found.items():
            record |= {kind: float(values.mean()), f"{kind}_ci95": program_report.interval(values)}
        for number in np.unique(setting.operations):
            own = found["deduction"][setting.operations == number]
            record[f"deduction_{number}"] = float(own.mean())
        written = write(params, jax.random.key(TEST_SEED))
        new = program_play.first_of_each(written.marks, written.usable)
        return record | {"texts_valid": float(written.valid.mean()), "texts_new": float(new.mean())}

    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Teaches, lets play, tests, and leaves everything in the run folder."""
    metajax.use_every_core()
    config = runs.parse(Config, arguments, __doc__ or "")
    run = runs.open_run("evolve-programs", config)
    setting = setting_of(config)
    runs.create(run)
    assert config.steps is not None
    real = first_data(setting)
    base = evolve_model.base_model(
        run,
        setting.apply,
        setting.params,
        optimizer_of(schedule_of(config.rate, config.steps, config.steps // 2)),
        ev.real_alone(real),
        steps=config.steps,
        rows=config.rows,
        row_length=ROW_LENGTH,
        micro_batches=config.rows // MICRO_ROWS,
        prompt_share=0.0,
        pool=min(16_384, config.steps * config.rows),
    )
    parts, scores = parts_of(setting), scores_of(setting)
    followed = evolve_model.follow(
        run,
        parts,
        ev.start(
            parts,
            base.params,
            jax.random.fold_in(jax.random.key(config.seed), 3),
            rounds=config.rounds,
            proposals=config.proposals,
            longest=program_tasks.PROMPT_LENGTH + pg.ANSWER_LENGTH,
            vocab_size=len(pg.WORDS),
        ),
        scores=scores,
    )
    control = None
    if config.control == "yes":
        learned = sum(record.get("seconds_update") is not None for record in followed.records)
        control = evolve_model.control(
            update_of(setting, control=True),
            base,
            lambda key: real_data(setting, key),
            rounds=learned,
            seed=config.seed,
            scores=scores,
        )
    tested = {"base model": base.params, "after self-play": followed.state.train.params}
    if control is not None:
        tested["control"] = control.trained.params
    solve = solver_of(setting)
    found = {
        name: program_play.accuracies(solve, params, setting.tests, config.test_inputs)
        for name, params in tested.items()
    }
    samples = program_report.examples_text(
        parts, followed.state.train.params, HARDER, config.samples
    )
    text = program_report.write(
        run,
        found,
        setting.operations,
        followed,
        base,
        control,
        facts={
            "Measured on": f"{len(setting.operations)} programs "
            + ("written by hand" if config.test == "held_out" else "drawn at random")
            + f", {config.test_inputs} inputs each, greedy; mean over programs and its 95 % "
            "confidence interval; gains are of the same tasks",
            "Taught": f"{len(setting.taught.lengths):,} programs of at most {TAUGHT} operations",
            "Kept": "what the interpreter finds right, as it may check any answer: an environment, "
            f"not answers known before (weight {config.weight}; deductions that no sample got "
            f"right {config.unsolved.replace('_', ' ')})",
        },
        samples=samples,
    )
    print(f"\n{samples}\n{text}\nEverything is in {run.path}.")


if __name__ == "__main__":
    runs.guard(main)
