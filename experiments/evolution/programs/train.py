"""A language model that invents programs, and learns from what an interpreter makes of them.

A small transformer is taught programs of a single operation: what they give (deduction), which
input gives an output (abduction), which program explains examples (induction), and to write such
programs. Then it goes on alone. Each round it writes programs with inputs, and two of them are
joined into a longer one. It answers tasks about these several times, and the interpreter checks the
answers. It learns from the right ones, and to write the longer programs too, so that programs grow
up to four operations. θ_{t+1} is taken only if held-out tasks say that it isn't worse. The test is
on programs written by hand that neither it nor its control ever saw; the control trains as many
steps on the real data alone.

Expected, in about an hour of one core: held-out deduction from 12 to 26 %, the control at 12 to 13
(docs/self-evolution.md).

Source: Zhao et al. 2025, "Absolute Zero: Reinforced Self-play Reasoning with Zero Data" (arXiv
2505.03335), in miniature. There a large model writes Python and is trained by policy gradient; here
it writes a language in which every program ends, and is fine-tuned on its right answers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import metajax
from experiments import common
from experiments.evolution import study
from experiments.evolution.programs import language as pg
from experiments.evolution.programs import play, report
from experiments.evolution.programs.config import (
    MICRO_ROWS,
    TEST_SEED,
    Config,
    Setup,
    like_programs,
    optimizer_of,
    schedule_of,
    set_up,
)
from experiments.evolution.programs.tasks import (
    PROMPT_LENGTH,
    concatenate,
    real_tasks,
    take_rows,
    test_tasks,
    whole_texts,
)
from experiments.evolution.rounds import ScoresOf
from metajax import evolve as ev

HELD_OUT_SEED = 11
ROW_LENGTH = 64


def real_data(setup: Setup, key: jax.Array) -> ev.Examples:
    """Texts about the taught programs, of all kinds."""
    count, longest = setup.config.texts_taught, setup.config.longest
    tasks, answers = real_tasks(key, setup.taught, count, longest)
    return whole_texts(ev.as_examples(tasks, answers, np.ones(count)))


def base_data(setup: Setup) -> ev.Examples:
    """The base model's texts, drawn as a round's are, so that nothing more is compiled."""
    key = jax.random.fold_in(jax.random.key(setup.config.seed), 2)
    return concatenate([real_data(setup, part) for part in jax.random.split(key, 6)])


def solver(setup: Setup, **options: Any) -> ev.Solver:
    """Answers, shared between the devices; greedy without options."""
    return ev.model_solver(
        setup.model,
        answer_length=lambda level: pg.ANSWER_LENGTH,
        end=pg.EOS,
        chunk=256,
        mesh=metajax.task_mesh(256),
        **options,
    )


def writer(setup: Setup) -> Callable[[Any, jax.Array], play.Written]:
    """Samples programs with inputs."""
    config = setup.config
    return play.writer(
        setup.model,
        texts=config.texts,
        temperature=config.temperature,
        mesh=metajax.task_mesh(min(config.texts, 512)),
    )


def fine_tuning(setup: Setup, mixture: Callable[[Any], np.ndarray]) -> ev.Update:
    """Fine-tuning on a mixture; the rate starts again each round."""
    config = setup.config
    schedule = schedule_of(config.rate / 2, config.round_steps, config.round_steps // 2)
    micro_batches = config.rows // MICRO_ROWS
    tune = ev.fine_tune(
        setup.apply,
        optimizer_of(ev.every_round(schedule, config.round_steps)),
        steps=config.round_steps,
        mixture=mixture,
        rows=config.rows,
        row_length=ROW_LENGTH,
        micro_batches=micro_batches,
        pool=min(4096, config.round_steps * config.rows),
        mesh=metajax.task_mesh(micro_batches),
    )

    def update(state: Any, data: ev.TrainingData, key: jax.Array, scale: float = 1.0) -> Any:
        data = data._replace(
            real=whole_texts(data.real),
            past=tuple(map(whole_texts, data.past)),
            new=whole_texts(data.new),
        )
        return tune.update(state, data, key, scale)

    return tune._replace(update=update)


def held_out_tasks(setup: Setup) -> ev.HeldOut:
    """The gate's tasks: of programs as they are taught, and of longer ones."""
    config, groups = setup.config, []
    key = jax.random.key(HELD_OUT_SEED)
    count = config.gate_tasks
    known = take_rows(setup.taught, np.arange(count) % len(setup.taught.lengths))
    longer = like_programs(key, count, config.taught_operations + 1)
    for number, programs in enumerate((known, longer)):
        tasks = test_tasks(jax.random.fold_in(key, number), programs, 1, config.longest)
        # Half deduction, a quarter abduction, a quarter induction.
        parts = np.array_split(np.arange(len(programs.lengths)), 4)
        mixed = [np.concatenate(parts[:2]), *parts[2:]]
        groups.append(
            concatenate([take_rows(t, rows) for t, rows in zip(tasks, mixed, strict=True)])
        )
    none = ev.Answers(np.zeros((0, 1), np.int32), np.zeros(0, np.int32))
    return ev.HeldOut(groups[0], none, groups[1])


def loop_config(setup: Setup) -> ev.EvolveConfig:
    """The loop's parts."""
    config = setup.config
    sampled = solver(setup, samples=config.samples, temperature=config.temperature)
    held_out, shown = held_out_tasks(setup), config.unsolved == "shown"
    first = config.taught_operations + 1

    def one_more(levels: ev.Levels, keep_rate: Any) -> ev.Levels:
        return ev.Levels(first, min(levels.last + 1, pg.MAX_OPERATIONS))

    return ev.EvolveConfig(
        propose=play.proposer(writer(setup), count=config.proposals, longest=config.longest),
        solve=play.solver(sampled, config.samples, shown=shown),
        verifier=play.by_interpreter(config.weight, shown=shown),
        update=fine_tuning(setup, ev.published_mixture(config.taught_operations, config.floor)),
        gate=ev.non_inferior(solver(setup), play.by_interpreter("right")),
        curriculum=ev.Curriculum(
            "an operation more after each accepted round", ev.Levels(first, first), one_more
        ),
        real=lambda key: real_data(setup, key),
        held_out=lambda levels: held_out,
    )


def scores_of(setup: Setup) -> ScoresOf:
    """``scores(params)``: accuracy on the test programs, by kind, and of deduction by the number of
    operations; and what share of the model's texts are programs, and new ones."""
    solve, write = solver(setup), writer(setup)

    def scores(params: Any) -> dict[str, float]:
        found = play.accuracies(solve, params, setup.tests, setup.config.test_inputs)
        record = {}
        for kind, values in found.items():
            record |= {kind: float(values.mean()), f"{kind}_ci95": report.interval(values)}
        for number in np.unique(setup.operations):
            of_this_length = found["deduction"][setup.operations == number]
            record[f"deduction_{number}"] = float(of_this_length.mean())
        written = write(params, jax.random.key(TEST_SEED))
        new = play.first_of_each(written.marks, written.usable)
        return record | {"texts_valid": float(written.valid.mean()), "texts_new": float(new.mean())}

    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Teaches, lets play, tests, and leaves everything in the run folder."""
    metajax.use_every_core()
    config = common.parse(Config, arguments, __doc__ or "")
    run = common.open_run("evolve-programs", config)
    setup = set_up(config)
    common.create(run)
    base = study.base_model(
        run,
        setup.apply,
        setup.params,
        optimizer_of(schedule_of(config.rate, config.steps, config.steps // 2)),
        base_data(setup),
        steps=config.steps,
        rows=config.rows,
        row_length=ROW_LENGTH,
        micro_batches=config.rows // MICRO_ROWS,
        pool=min(16_384, config.steps * config.rows),
    )
    loop = loop_config(setup)
    outcome = study.evolve_and_control(
        run,
        config,
        loop,
        base,
        jax.random.fold_in(jax.random.key(config.seed), 3),
        longest=PROMPT_LENGTH + pg.ANSWER_LENGTH,
        vocab_size=len(pg.WORDS),
        scores=scores_of(setup),
        control=lambda rounds: fine_tuning(setup, study.real_mixture),
        control_scores=True,
    )
    solve = solver(setup)
    found = {
        name: play.accuracies(solve, params, setup.tests, config.test_inputs)
        for name, params in outcome.models().items()
    }
    samples = report.examples_text(
        loop,
        outcome.followed.state.train.params,
        ev.Levels(config.taught_operations + 1, pg.MAX_OPERATIONS),
        config.samples,
    )
    table = report.write(
        run,
        outcome,
        found,
        setup.operations,
        facts={
            "Test": f"{len(setup.operations)} programs "
            + ("written by hand" if config.test == "held_out" else "drawn at random")
            + f", {config.test_inputs} inputs each, greedy; mean over programs and its 95 % "
            "confidence interval; gains are on the same tasks",
            "Taught": f"{len(setup.taught.lengths):,} programs of at most "
            f"{config.taught_operations} operations",
            "Kept": "what the interpreter finds right; it may check any answer, and knows none "
            f"before (weight {config.weight}; deductions that no sample got right are "
            f"{config.unsolved.replace('_', ' ')})",
        },
        samples=samples,
    )
    common.finish(run.path, samples, table, then="docs/self-evolution.md says what to make of it.")
