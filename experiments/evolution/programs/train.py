"""A language model that invents programs, and learns from what an interpreter makes of them.

python -m experiments.evolution.programs.train teaches a small transformer programs of a single operation of
a small language: what one gives (deduction), for which input it gives that (abduction), which one
explains examples (induction), and to write such programs. Then it goes on alone. Each round it
writes programs with inputs; two of them are joined into a longer one than it was taught; it answers
tasks about these several times, and the interpreter says which answers are right. It learns from
these, and to write the longer programs too, so that the next round's get longer still, up to four
operations; θ_{t+1} is taken only if held-out tasks say that it isn't worse. It is measured on
programs written by hand that neither it nor its control ever saw; the control trains as many steps
on the real data alone.

Expected, in about an hour of one core: held-out deduction from 12 to 26 %, the control at 12 to 13
(docs/self-evolution.md).

Source: Zhao et al. 2025, "Absolute Zero: Reinforced Self-play Reasoning with Zero Data" (arXiv
2505.03335), in miniature. There a large model writes Python and is trained by policy gradient; here
it writes a language in which every program ends, and is fine-tuned on its right answers.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import metajax
from experiments import common
from experiments.evolution import study
from experiments.evolution.programs import kinds, play, report
from experiments.evolution.programs import language as pg
from experiments.evolution.programs.config import (
    MICRO_ROWS,
    TEST_SEED,
    Config,
    Setting,
    like_programs,
    optimizer_of,
    schedule_of,
    setting_of,
)
from metajax import evolve as ev

HELD_OUT_SEED = 11
ROW_LENGTH = 64


def real_data(setting: Setting, key: jax.Array) -> ev.Examples:
    """Texts about the taught programs, of all kinds."""
    count, longest = setting.config.texts_taught, setting.config.longest
    tasks, answers = kinds.real_tasks(key, setting.taught, count, longest)
    examples = ev.as_examples(tasks, answers, np.ones(count))
    return kinds.whole_texts(examples)


def first_data(setting: Setting) -> ev.Examples:
    """The base model's, drawn as a round's are, so that nothing more is compiled."""
    key = jax.random.fold_in(jax.random.key(setting.config.seed), 2)
    parts = [real_data(setting, own) for own in jax.random.split(key, 6)]
    return kinds.concatenated(parts)


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
    return play.writer(
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
    shares = ev.published_shares(config.taught_operations, config.floor)
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
        own = kinds.whole_texts
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
    known = kinds.rows(setting.taught, np.arange(count) % len(setting.taught.lengths))
    longer = like_programs(key, count, config.taught_operations + 1)
    for number, programs in enumerate((known, longer)):
        own = jax.random.fold_in(key, number)
        tasks = kinds.test_tasks(own, programs, 1, config.longest)
        # Half deduction, a quarter abduction, a quarter induction.
        parts = np.array_split(np.arange(len(programs.lengths)), 4)
        mixed = [np.concatenate(parts[:2]), *parts[2:]]
        groups.append(
            kinds.concatenated([kinds.rows(t, own) for t, own in zip(tasks, mixed, strict=True)])
        )
    none = ev.Answers(np.zeros((0, 1), np.int32), np.zeros(0, np.int32))
    return ev.HeldOut(groups[0], none, groups[1])


def parts_of(setting: Setting) -> ev.Parts:
    """The loop's parts."""
    config = setting.config
    sampled = solver_of(setting, samples=config.samples, temperature=config.temperature)
    held_out, shown = held_out_of(setting), config.unsolved == "shown"
    first = config.taught_operations + 1

    def one_more(levels: ev.Levels, yield_at: Any) -> ev.Levels:
        return ev.Levels(first, min(levels.last + 1, pg.MAX_OPERATIONS))

    return ev.Parts(
        propose=play.own_proposer(
            writer_of(setting), count=config.proposals, longest=config.longest
        ),
        solve=play.own_solver(sampled, config.samples, shown=shown),
        verifier=play.by_interpreter(config.weight, shown=shown),
        update=update_of(setting),
        gate=ev.no_worse(solver_of(setting), play.by_interpreter("right")),
        curriculum=ev.Curriculum(
            "an operation more after each accepted round", ev.Levels(first, first), one_more
        ),
        real=lambda key: real_data(setting, key),
        held_out=lambda levels: held_out,
    )


def scores_of(setting: Setting) -> study.ScoresOf:
    """``scores(params)``: accuracy on the programs that are measured on, by kind, and of deduction
    by the number of operations; and what share of the model's texts are programs, and new ones."""
    solve, write = solver_of(setting), writer_of(setting)

    def scores(params: Any) -> dict[str, float]:
        found = play.accuracies(solve, params, setting.tests, setting.config.test_inputs)
        record = {}
        for kind, values in found.items():
            record |= {kind: float(values.mean()), f"{kind}_ci95": report.interval(values)}
        for number in np.unique(setting.operations):
            own = found["deduction"][setting.operations == number]
            record[f"deduction_{number}"] = float(own.mean())
        written = write(params, jax.random.key(TEST_SEED))
        new = play.first_of_each(written.marks, written.usable)
        return record | {"texts_valid": float(written.valid.mean()), "texts_new": float(new.mean())}

    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Teaches, lets play, tests, and leaves everything in the run folder."""
    metajax.use_every_core()
    config = common.parse(Config, arguments, __doc__ or "")
    run = common.open_run("evolve-programs", config)
    setting = setting_of(config)
    common.create(run)
    assert config.steps is not None
    real = first_data(setting)
    base = study.base_model(
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
    followed = study.follow(
        run,
        parts,
        ev.start(
            parts,
            base.params,
            jax.random.fold_in(jax.random.key(config.seed), 3),
            rounds=config.rounds,
            proposals=config.proposals,
            longest=kinds.PROMPT_LENGTH + pg.ANSWER_LENGTH,
            vocab_size=len(pg.WORDS),
        ),
        scores=scores,
    )
    control = None
    if config.control == "yes":
        learned = sum(record.get("seconds_update") is not None for record in followed.records)
        control = study.control(
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
        name: play.accuracies(solve, params, setting.tests, config.test_inputs)
        for name, params in tested.items()
    }
    samples = report.examples_text(
        parts,
        followed.state.train.params,
        ev.Levels(config.taught_operations + 1, pg.MAX_OPERATIONS),
        config.samples,
    )
    text = report.write(
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
            "Taught": f"{len(setting.taught.lengths):,} programs of at most "
            f"{config.taught_operations} operations",
            "Kept": "what the interpreter finds right, as it may check any answer: an environment, "
            f"not answers known before (weight {config.weight}; deductions that no sample got "
            f"right {config.unsolved.replace('_', ' ')})",
        },
        samples=samples,
    )
    print(f"\n{samples}\n{text}\nEverything is in {run.path}.")


if __name__ == "__main__":
    common.guard(main)
