"""A language model that evolves itself: strings longer than any that it was taught.

A small transformer without positions is taught to copy strings of 1 to 8 digits. Then it goes on
alone. Each round it gets prompts one digit longer, answers them, keeps the answers that it can
trust without knowing the right ones, and trains on them, on those of earlier rounds and on the real
data. θ_{t+1} is taken only if held-out tasks say that it isn't worse. A control trains as many
steps, of as many tokens, on the real data alone.

An answer is kept if it ends, has the most common length and no doubtful token, and if the model
gives it again when the task is posed in other words (--views): with the digits permuted, or the
operands swapped. That much is known of the tasks, and no answer to any of them.

--task takes reverse or addition (of reversed numbers). --proposer model lets the model write the
prompts too. --curriculum accelerated takes two lengths a round. --filters none, --gate none and
--damage show what each part is there for. --size paper is the published size, for a GPU.

Expected: 99.6 to 99.8 % of strings of 18 digits copied with seeds 0, 1 and 2, from 0.0 before the
first round; with --curriculum accelerated and 20 rounds 97.9 % of 38 (docs/self-evolution.md).

Source: Lee et al. 2025, "Self-Improving Transformers Overcome Easy-to-Hard and Length
Generalization Challenges" (arXiv 2502.01612), whose proposer is a program. The views, the filters
by the least likely token and by the most common length, the gate, and the model's own proposer are
ours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import metajax
from experiments import common
from experiments.evolution import report, study
from experiments.evolution.rounds import ScoresOf
from experiments.evolution.strings.config import (
    LEVELS_A_ROUND,
    MICRO_ROWS,
    SIZES,
    Config,
    Setup,
    optimizer_of,
    parse,
    schedule_of,
    set_up,
)
from experiments.evolution.strings.tasks import operands_swapped
from metajax import evolve as ev
from metajax.files import write_atomically

HELD_OUT_SEED, TEST_SEED = 11, 2025
PROMPT_SHARE = 0.1
"""Share of the texts whose prompts are targets too, for a model that proposes tasks."""


def real_data(setup: Setup, key: jax.Array, count: int) -> ev.Examples:
    """Strings of the real data's lengths, each as likely as another."""
    return ev.real_examples(setup.problem, key, range(1, setup.config.base_levels + 1), count)


def prompt_share(config: Config) -> float:
    """Share of the texts whose prompts are targets too."""
    return PROMPT_SHARE if config.proposer == "model" else 0.0


def solver(setup: Setup) -> ev.Solver:
    """Greedy answers, shared between the devices."""
    chunk = SIZES[setup.config.size].chunk
    return ev.model_solver(
        setup.model,
        answer_length=setup.problem.answer_length,
        end=setup.problem.end,
        chunk=chunk,
        mesh=metajax.task_mesh(chunk),
    )


def fine_tuning(setup: Setup, mixture: Callable[[Any], np.ndarray]) -> ev.Update:
    """Fine-tuning on a mixture; the rate starts again each round."""
    config = setup.config
    steps = config.round_steps
    stable = steps // 2 if config.task == "addition" else steps // 10
    schedule = ev.every_round(schedule_of(config.rate, steps, stable), steps)
    micro_batches = config.rows // MICRO_ROWS
    return ev.fine_tune(
        setup.apply,
        optimizer_of(schedule),
        steps=steps,
        mixture=mixture,
        rows=config.rows,
        row_length=config.row_length,
        micro_batches=micro_batches,
        pool=SIZES[config.size].pool,
        prompt_share=prompt_share(config),
        mesh=metajax.task_mesh(micro_batches),
    )


def loop_config(setup: Setup) -> ev.EvolveConfig:
    """The loop's parts."""
    config, problem = setup.config, setup.problem
    solve_once = solver(setup)
    solve, verifier = solve_once, ev.keep_all()
    if config.filters == "all":
        checks = [ev.must_end(), ev.most_common_length(), ev.confident(config.confidence)]
        if config.views:
            view = operands_swapped() if config.task == "addition" else ev.permuted_tokens(0, 10)
            solve = ev.solve_in_views(solve_once, [view] * config.views)
            checks = [ev.majority_vote(1.0), *checks]
        verifier = ev.all_of(*checks)
    if config.proposer == "program":
        propose = ev.program_proposer(problem, count=config.proposals)
    else:
        propose = ev.model_proposer(
            setup.model, problem, count=config.proposals, mesh=metajax.task_mesh(512)
        )
    gate = ev.accept_all()
    if config.gate == "non_inferior":
        gate = ev.non_inferior(solve, verifier, known=solve_once)
    first = config.base_levels + 1
    curriculum = ev.one_harder(first)
    if config.curriculum == "accelerated":
        curriculum = ev.accelerated(first, at_least=config.min_keep_rate, most=LEVELS_A_ROUND)

    def held_out(levels: ev.Levels) -> ev.HeldOut:
        recent = range(max(first, min(levels.first, levels.last - 1)), levels.last + 1)
        return ev.held_out_tasks(
            problem,
            jax.random.key(HELD_OUT_SEED),
            known=range(1, first),
            frontier=recent,
            each=256,
        )

    return ev.EvolveConfig(
        propose=propose,
        solve=solve,
        verifier=verifier,
        update=fine_tuning(setup, ev.published_mixture(config.base_levels)),
        gate=gate,
        curriculum=curriculum,
        real=lambda key: real_data(setup, key, 2 * SIZES[config.size].pool),
        held_out=held_out,
        oracle=problem.answer,
        corrupt=None if config.damage == "none" else damage(config),
    )


def damage(config: Config) -> Callable[[int, ev.Completions], ev.Completions]:
    """Drops the middle token of every other answer, in round 3, or from round 3 on."""

    def corrupt(number: int, completions: ev.Completions) -> ev.Completions:
        if number < 3 or (number > 3 and config.damage == "once"):
            return completions
        tokens, log_probs, lengths, ended = (np.array(leaf) for leaf in completions)
        hit = (np.arange(len(lengths)) % 2 == 0)[:, None] & (lengths > 2)
        place = np.arange(tokens.shape[-1])
        source = np.minimum(place + (place >= lengths[..., None] // 2), tokens.shape[-1] - 1)
        for leaf in (tokens, log_probs):
            short = np.take_along_axis(leaf, source, axis=-1)
            short[..., -1] = 0
            leaf[hit] = short[hit]
        return ev.Completions(tokens, log_probs, lengths - hit, ended)

    return corrupt


def levels_to_test(setup: Setup, most: int = 24) -> list[int]:
    """The lengths that are tested: all, or ``most`` at equal distances."""
    step = -(-setup.longest // most)
    return sorted({*range(setup.longest, 0, -step), 1, setup.config.base_levels})


def scores_of(setup: Setup, levels: Sequence[int], prompts: int) -> ScoresOf:
    """``scores(params)``: exact match at each length, on prompts that are in no training."""
    tasks = report.test_tasks(setup.problem, jax.random.key(TEST_SEED), levels, prompts)
    return report.scores_of(ev.exact_match(setup.problem.answer), solver(setup), tasks)


def main(arguments: Sequence[str] | None = None) -> None:
    """Teaches, evolves, tests, and leaves everything in the run folder."""
    metajax.use_every_core()
    setup = set_up(parse(arguments, __doc__ or ""))
    config, size, problem = setup.config, SIZES[setup.config.size], setup.problem
    run = common.open_run(f"evolve-{config.task}", config)
    common.create(run)
    base = study.base_model(
        run,
        setup.apply,
        setup.params,
        optimizer_of(schedule_of(config.rate, config.steps, config.steps // 2)),
        real_data(setup, jax.random.key(config.seed + 2), size.real),
        steps=config.steps,
        rows=config.rows,
        row_length=config.row_length,
        micro_batches=config.rows // MICRO_ROWS,
        prompt_share=prompt_share(config),
        pool=4 * size.pool,
    )
    loop, levels = loop_config(setup), levels_to_test(setup)
    outcome = study.evolve_and_control(
        run,
        config,
        loop,
        base,
        jax.random.key(config.seed + 3),
        longest=problem.prompt_length(setup.longest) + problem.answer_length(setup.longest),
        vocab_size=problem.vocab_size,
        scores=scores_of(setup, levels, config.test_prompts // 8),
        control=lambda rounds: fine_tuning(setup, study.real_mixture),
    )
    scores = scores_of(setup, levels, config.test_prompts)
    tested = {name: scores(params) for name, params in outcome.models().items()}
    records, evolved = outcome.followed.records, outcome.followed.state.train.params
    last = int(records[-1].get("last_level", config.base_levels))
    shown = sorted({1, config.base_levels, last, last + 4})
    samples = report.examples_text(problem, ev.exact_match(problem.answer), loop, evolved, shown)
    write_atomically(run.path / "tasks.txt", samples)
    report.draw_levels(run, records, tested.get("control"), config.base_levels)
    table = report.write_results(
        run,
        outcome,
        title=f"A model that evolves itself: {config.task}",
        module="experiments.evolution.strings",
        columns=report.level_columns(tested, config.test_prompts, config.base_levels),
        rounds=report.rounds_table(records),
        tested=tested,
        facts={
            "Task": f"{config.task}, {config.test_prompts} prompts of each length, greedy, exact "
            "match",
            "Proposer": "a program (as published)"
            if config.proposer == "program"
            else "the model itself",
            "Kept": f"{loop.verifier.name}; no oracle",
            "Posed": f"each task once, and {config.views} times in other words"
            if config.views and config.filters == "all"
            else "each task once",
        },
    )
    common.finish(run.path, samples, table, then="docs/self-evolution.md says what to make of it.")
