"""A language model that evolves itself: strings longer than any that it was taught.

python -m experiments.evolution.strings.train teaches a small transformer without positions to copy strings of 1 to 8
digits, then lets it go on alone: each round it is given prompts one digit longer, answers them,
keeps the answers that it can trust without knowing the right ones, and trains on them, on those of
the rounds before, and on the real data. θ_{t+1} is taken only if held-out tasks say that it isn't
worse. A control trains as many steps, of as many tokens, on the real data alone.

--task takes reverse or addition (of reversed numbers), --proposer model lets the model write the
prompts too, --curriculum accelerated takes two lengths a round where it can, and --filters none,
--gate none and --damage show what each part is there for. --size paper is the published size, for a
GPU.

An answer is kept if it ends, has the most common length and no doubtful token, and if the model
says the same when it is asked in other words (--views): with the digits renamed, or the operands
exchanged. That much is known of the tasks, and no answer to any of them.

Expected: 99.6 to 99.8 % of strings of 18 digits copied with seeds 0, 1 and 2, from 0.0 before the
first round; with --curriculum accelerated and 20 rounds 97.9 % of 38 (docs/self-evolution.md).

Source: Lee et al. 2025, "Self-Improving Transformers Overcome Easy-to-Hard and Length
Generalization Challenges" (arXiv 2502.01612), whose proposer is a program; the views, the filters
by the least token's probability and by the most common length, the gate, and the model's own
proposer are ours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import metajax
from experiments import common
from experiments.evolution import report, study
from experiments.evolution.strings.config import (
    LEVELS_A_ROUND,
    MICRO_ROWS,
    REACH,
    Config,
    Setting,
    optimizer_of,
    schedule_of,
    setting_of,
    size_of,
)
from experiments.evolution.strings.digits import operands_exchanged
from experiments.evolution.study import Trained
from metajax import evolve as ev
from metajax.files import write_atomically

HELD_OUT_SEED, TEST_SEED = 11, 2025
PROMPT_SHARE = 0.1
"""Share of the texts whose prompts a model learns that writes prompts itself."""


def real_data(setting: Setting, key: jax.Array, count: int) -> ev.Examples:
    """Strings of the real data's lengths, each as likely as another."""
    assert setting.config.base_levels is not None
    levels = range(1, setting.config.base_levels + 1)
    return ev.real_examples(setting.problem, key, levels, count)


def solver_of(setting: Setting, **options: Any) -> ev.Solver:
    """Greedy answers, shared between the devices."""
    chunk = size_of(setting.config).chunk
    return ev.solver(
        setting.model,
        answer_length=setting.problem.answer_length,
        end=setting.problem.end,
        chunk=chunk,
        mesh=metajax.task_mesh(chunk),
        **options,
    )


def update_of(setting: Setting, shares: Callable[[Any], np.ndarray]) -> ev.Update:
    """Fine-tuning on a mixture; the rate starts again each round."""
    config = setting.config
    assert config.rate is not None
    assert config.round_steps is not None
    assert config.rows is not None
    steps, rate = config.round_steps, config.rate
    stable = steps // 2 if config.task == "addition" else steps // 10
    once = schedule_of(rate, steps, stable)
    count = config.rows // MICRO_ROWS
    return ev.fine_tune(
        setting.apply,
        optimizer_of(ev.every_round(once, steps)),
        steps=steps,
        shares=shares,
        rows=config.rows,
        row_length=config.row_length,
        micro_batches=count,
        pool=size_of(config).pool,
        prompt_share=PROMPT_SHARE if config.proposer == "model" else 0.0,
        mesh=metajax.task_mesh(count),
    )


def parts_of(setting: Setting) -> ev.Parts:
    """The loop's parts."""
    config, problem = setting.config, setting.problem
    assert config.base_levels is not None
    assert config.proposals is not None
    assert config.least_yield is not None
    once = solver_of(setting)
    solve, verifier = once, ev.everything()
    if config.filters == "all":
        assert config.confidence is not None
        checks = [ev.must_end(), ev.most_common_length(), ev.confident(config.confidence)]
        if config.views:
            view = operands_exchanged() if config.task == "addition" else ev.renamed(0, 10)
            solve = ev.in_views(once, [view] * config.views)
            checks = [ev.majority_vote(1.0), *checks]
        verifier = ev.all_of(*checks)
    if config.proposer == "program":
        propose = ev.drawn_by_program(problem, count=config.proposals)
    else:
        propose = ev.written_by_model(
            setting.model, problem, count=config.proposals, mesh=metajax.task_mesh(512)
        )
    first = config.base_levels + 1
    curricula = {
        "one": ev.one_harder(first),
        "accelerated": ev.accelerated(first, at_least=config.least_yield, most=LEVELS_A_ROUND),
        "learnable": ev.most_learnable(first, reach=REACH),
    }

    def held_out(levels: ev.Levels) -> ev.HeldOut:
        recent = range(max(first, min(levels.first, levels.last - 1)), levels.last + 1)
        return ev.held_out_of(
            problem,
            jax.random.key(HELD_OUT_SEED),
            known=range(1, first),
            frontier=recent,
            each=256,
        )

    return ev.Parts(
        propose=propose,
        solve=solve,
        verifier=verifier,
        update=update_of(setting, ev.published_shares(config.base_levels)),
        gate=ev.no_worse(solve, verifier, known=once) if config.gate == "no_worse" else ev.always(),
        curriculum=curricula[config.curriculum],
        real=lambda key: real_data(setting, key, 2 * size_of(config).pool),
        held_out=held_out,
        oracle=problem.solve,
        tamper=None if config.damage == "none" else damage_of(config),
    )


def damage_of(config: Config) -> Callable[[int, ev.Attempts], ev.Attempts]:
    """Drops the middle token of every other answer, in round 3, or from round 3 on."""

    def damage(number: int, attempts: ev.Attempts) -> ev.Attempts:
        if number < 3 or (number > 3 and config.damage == "once"):
            return attempts
        tokens, log_probs, lengths, ended = (np.array(leaf) for leaf in attempts)
        hit = (np.arange(len(lengths)) % 2 == 0)[:, None] & (lengths > 2)
        place = np.arange(tokens.shape[-1])
        source = np.minimum(place + (place >= lengths[..., None] // 2), tokens.shape[-1] - 1)
        for leaf in (tokens, log_probs):
            short = np.take_along_axis(leaf, source, axis=-1)
            short[..., -1] = 0
            leaf[hit] = short[hit]
        return ev.Attempts(tokens, log_probs, lengths - hit, ended)

    return damage


def shown_levels(setting: Setting, most: int = 24) -> list[int]:
    """The lengths that are tested: all, or some that are as far from each other."""
    step = -(-setting.longest // most)
    known = setting.config.base_levels or 1
    return sorted({*range(setting.longest, 0, -step), 1, known})


def scores_of(setting: Setting, levels: Sequence[int], prompts: int) -> Callable[[Any], dict]:
    """``scores(params)``: exact match at each length, of prompts that are in no training."""
    problem = setting.problem
    tasks = report.test_tasks(problem, jax.random.key(TEST_SEED), levels, prompts)
    return report.scores_of(problem, solver_of(setting), tasks)


def control_of(setting: Setting, base: Trained, rounds: int) -> Trained:
    """The base model trained on, as many steps of as many tokens, on real data alone."""
    return study.on_real_data(
        update_of(setting, lambda kept: np.array([1.0] + [0.0] * len(kept))),
        base.params,
        lambda key: real_data(setting, key, 2 * size_of(setting.config).pool),
        rounds=rounds,
        seed=setting.config.seed,
    )


def examples_text(
    setting: Setting, parts: ev.Parts, params: Any, records: Sequence[dict[str, Any]]
) -> str:
    """Some of the model's own tasks and answers, from the easiest to the hardest."""
    assert setting.config.base_levels is not None
    last = int(records[-1].get("last_level", setting.config.base_levels))
    levels = sorted({1, setting.config.base_levels, last, last + 4})
    return report.examples_text(setting.problem, parts, params, levels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Teaches, evolves, tests, and leaves everything in the run folder."""
    metajax.use_every_core()
    setting = setting_of(common.parse(Config, arguments, __doc__ or ""))
    config = setting.config
    assert config.rows is not None
    assert config.rate is not None
    assert config.steps is not None
    assert config.rounds is not None
    assert config.proposals is not None
    run = common.open_run(f"evolve-{config.task}", config)
    common.create(run)
    size = size_of(config)
    real = real_data(setting, jax.random.key(config.seed + 2), size.real)
    base = study.base_model(
        run,
        setting.apply,
        setting.params,
        optimizer_of(schedule_of(config.rate, config.steps, config.steps // 2)),
        ev.real_alone(real),
        steps=config.steps,
        rows=config.rows,
        row_length=config.row_length,
        micro_batches=config.rows // MICRO_ROWS,
        prompt_share=PROMPT_SHARE if config.proposer == "model" else 0.0,
        pool=4 * size.pool,
    )
    parts = parts_of(setting)
    levels = shown_levels(setting)
    problem = setting.problem
    longest_text = problem.prompt_length(setting.longest) + problem.answer_length(setting.longest)
    followed = study.follow(
        run,
        parts,
        ev.start(
            parts,
            base.params,
            jax.random.key(config.seed + 3),
            rounds=config.rounds,
            proposals=config.proposals,
            longest=longest_text,
            vocab_size=problem.vocab_size,
        ),
        scores=scores_of(setting, levels, config.test_prompts // 8),
    )
    learned = sum(record.get("seconds_update") is not None for record in followed.records)
    control = None
    if config.control == "yes":
        control = control_of(setting, base, learned)
    final = scores_of(setting, levels, config.test_prompts)
    tested = {"round 0": final(base.params), "last round": final(followed.state.train.params)}
    if control is not None:
        tested["control"] = final(control.params)
    samples = examples_text(setting, parts, followed.state.train.params, followed.records)
    write_atomically(run.path / "tasks.txt", samples)
    report.draw_levels(run, followed.records, tested.get("control"), config.base_levels or 0)
    table = write_results(run, setting, followed, base, control, tested, parts.verifier)
    print(f"\n{samples}\n{table}\nEverything is in {run.path}.")


def write_results(
    run: common.Run,
    setting: Setting,
    followed: study.Followed,
    base: Trained,
    control: Trained | None,
    tested: dict[str, dict[str, float]],
    verifier: ev.Verifier,
) -> str:
    """Writes ``result.json`` and ``table.md``; returns the table."""
    config, phases = setting.config, {"base model": base}
    if control is not None:
        phases["control, after the base model"] = control
    posed = {"program": "a program (as published)", "model": "the model itself"}
    found = report.Found(
        followed,
        tested,
        prompts=config.test_prompts,
        first=config.base_levels or 1,
        phases=phases,
        facts={
            "Task": f"{config.task}, {config.test_prompts} prompts of each length, greedy, exact "
            "match",
            "Proposer": posed[config.proposer],
            "Kept": f"{verifier.name}; no oracle" if not verifier.uses_oracle else verifier.name,
            "Asked": f"each task once, and {config.views} times in other words"
            if config.views and config.filters == "all"
            else "each task once",
        },
    )
    return report.write_results(
        run,
        found,
        title=f"A model that evolves itself: {config.task}",
        module="experiments.evolution.strings.train",
    )


if __name__ == "__main__":
    common.guard(main)
