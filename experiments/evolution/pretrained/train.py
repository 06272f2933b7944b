"""A pretrained language model that evolves itself on tasks that it poses and a program checks.

    python -m experiments.evolution.pretrained --checkpoint gemma3-270m --family rules

The checkpoint is a Hugging Face folder or hub's id, a GGUF file, or gemma3-270m. Its weights stay
as they are, and low-rank factors of its attention and MLP matrices learn. In each round the model
reads a few worked examples and poses further tasks. It answers each several times, behind the same
kind of examples. A program checks the answers. The model learns what was right, one text behind
another, and some of its own tasks, so that it goes on posing them. Beside that it rehearses what
it wrote freely before. θ_{t+1} is taken only if held-out tasks say that it isn't worse. The factors
are saved as an adapter that peft reads.

--verifier vote asks nobody what is right: the most common answer is kept, if it ends. --curriculum
harder begins behind the worked examples' levels, with one level more a round. --update grpo,
dr-grpo and dapo learn by a policy gradient, with --shots 0 after --steps updates on the worked
examples; maml meta-learns. --damage once turns round 30 % of the checker's verdicts in the second
round.

The control has as many updates on the worked examples alone. Another family, --outside, is tested
before and after, and never learned from.

Without --checkpoint a small model of random weights is made. It shows that the parts work together,
on any machine, and learns nothing.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax
from experiments import common
from experiments.evolution import report, study
from experiments.evolution.pretrained.config import (
    GRPO,
    TASK_TEXTS,
    Config,
    Setup,
    Texts,
    first_levels,
    held_out_tasks,
    set_up,
    shown,
)
from experiments.evolution.wrong_checker import wrong_once
from metajax import evolve as ev
from metajax import lm
from metajax.files import read_json, write_atomically
from metajax.lm import lora


def mesh_of(count: int) -> Any:
    """The accelerators; None on a CPU, of which each core would hold the weights once more."""
    return None if jax.default_backend() == "cpu" else metajax.task_mesh(count)


def solver(setup: Setup, texts: Texts | None = None, **options: Any) -> ev.Solver:
    """Answers behind the shots; greedy ones without options."""
    chunk, texts = setup.config.chunk, texts or setup.texts
    return ev.model_solver(
        setup.model,
        answer_length=texts.answer_length,
        end=texts.problem.end,
        prefix=texts.shots,
        chunk=chunk,
        mesh=mesh_of(chunk),
        **options,
    )


def proposer(setup: Setup) -> ev.Proposer:
    """Poses tasks; those that are tested on aren't valid."""
    config, texts = setup.config, setup.texts
    rows = len(setup.worked.tokens)

    def examples(rng: np.random.Generator, levels: ev.Levels) -> list[int]:
        return shown(texts.problem, setup.worked, rng.permutation(rows)[: config.shots].tolist())

    if config.proposer == "program":
        propose = ev.program_proposer(texts.problem, count=config.proposals)
    else:
        propose = ev.few_shot_proposer(
            setup.model,
            texts.problem,
            texts.tokenizer,
            examples=examples,
            read=texts.family.read,
            count=config.proposals,
            max_new_tokens=texts.line_length(config.levels),
            attempts=config.attempts,
            otherwise=setup.variables,
            temperature=config.proposal_temperature,
            chunk=config.chunk,
            mesh=mesh_of(config.chunk),
        )
    tested = ev.fingerprints(setup.tests)
    return lambda params, key, levels: ev.without_duplicates(propose(params, key, levels), tested)


def fine_tuning(
    setup: Setup, steps: int, rate: Any, mixture: Callable[[Any], Any], **options: Any
) -> ev.Update:
    """Fine-tuning of the factors on a mixture."""
    config = setup.config
    micro_batches = parts_of(config.rows, config)
    return ev.fine_tune(
        lora.frozen_base(setup.model),
        optimizer_of(rate),
        steps=steps,
        mixture=mixture,
        rows=config.rows,
        row_length=config.row_length,
        micro_batches=micro_batches,
        pool=256,
        prompt_share=config.prompt_share,
        in_context=config.shots > 0,
        begin=setup.texts.problem.begin,
        rehearsal=setup.rehearsal,
        rehearsal_weight=config.rehearsal_weight,
        trainable=lora.is_factor,
        mesh=mesh_of(micro_batches),
        **options,
    )


def parts_of(count: int, config: Config) -> int:
    """The micro-batches of so many rows or answers."""
    return max(1, count // config.micro_batch)


def optimizer_of(rate: Any) -> optax.GradientTransformation:
    """AdamW, its gradient clipped."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))


def update_of(setup: Setup) -> ev.Update:
    """f, by the config's choice; the rate starts again each round."""
    config, steps = setup.config, setup.config.round_steps
    rate = ev.every_round(optax.linear_schedule(config.rate, config.rate / 10, steps), steps)
    options = {"steps": steps, "trainable": lora.is_factor}
    apply = lora.frozen_base(setup.model)
    if config.update in GRPO:
        micro_batches = parts_of(config.batch, config)
        variant: dict[str, Any] = GRPO[config.update]
        longest = float(setup.texts.answer_length(config.levels))
        return ev.grpo(
            apply,
            optimizer_of(rate),
            temperature=config.temperature,
            batch=config.batch,
            micro_batches=micro_batches,
            mesh=mesh_of(micro_batches),
            **{"normalise": longest} | variant,
            **options,
        )
    if config.update == "maml":
        learner = metajax.maml(
            lm.next_token_loss(apply),
            optax.sgd(config.inner_rate),
            steps=1,
            trainable=lora.is_factor,
        )
        tasks, half = config.batch // TASK_TEXTS, TASK_TEXTS // 2
        return ev.meta_step(
            learner,
            optimizer_of(rate),
            support=half,
            query=half,
            meta_batch=tasks,
            mesh=mesh_of(tasks),
            **options,
        )
    mixture = ev.published_mixture(config.base_levels)
    tuned = fine_tuning(setup, steps, rate, mixture, start=config.start)
    return ev.rejection_sampling(tuned) if config.update == "rejection" else tuned


def loop_config(setup: Setup) -> ev.EvolveConfig:
    """The loop's parts."""
    config, problem = setup.config, setup.texts.problem
    solve = solver(setup, samples=config.samples, temperature=config.temperature)
    verifier = ev.all_of(ev.majority_vote(config.agreement), ev.must_end())
    gate, corrupt = ev.non_inferior(solve, verifier), None
    if config.verifier == "check":
        check = setup.texts.family.check
        if config.damage == "once":
            check, corrupt = wrong_once(check, config.seed)
        # The rarer a right answer, the more its task counts. The gate takes one greedy answer.
        verifier = setup.texts.checker(check, weigh=ev.learnability)
        gate = ev.non_inferior(solver(setup), setup.texts.checker())
    levels = first_levels(config)
    return ev.EvolveConfig(
        propose=proposer(setup),
        solve=solve,
        verifier=verifier,
        update=update_of(setup),
        gate=ev.accept_all() if config.gate == "none" else gate,
        curriculum=ev.Curriculum("all levels in every round", levels, lambda levels, rate: levels)
        if config.curriculum == "all"
        else up_to(ev.one_harder(levels.first), config.levels),
        real=lambda key: setup.worked,
        held_out=lambda levels: held_out_tasks(config, problem, levels),
        corrupt=corrupt,
        oracle=problem.answer,
    )


def up_to(curriculum: ev.Curriculum, last: int) -> ev.Curriculum:
    """A curriculum that stays at a level."""

    def following(levels: ev.Levels, keep_rate: Callable[[int], float]) -> ev.Levels:
        return levels if levels.last >= last else curriculum.next(levels, keep_rate)

    return curriculum._replace(next=following)


def on_worked_examples(setup: Setup, steps: int, rounds: int) -> ev.Update:
    """``steps`` updates a round on the worked examples alone; the rate falls over all rounds."""
    rate = setup.config.rate
    schedule = optax.linear_schedule(rate, rate / 10, steps * rounds)
    return fine_tuning(setup, steps, schedule, study.real_mixture)


def base_model(setup: Setup, run: common.Run) -> study.Trained:
    """θ_0, after ``steps`` updates on the worked examples, where there are any; in the run's folder
    ``base``, from where a run resumes."""
    folder, config = run.path / "base", setup.config
    done = folder / "trained.json"
    if config.steps == 0:
        return study.Trained(setup.variables, 0.0, 0)
    if config.resume and done.exists():
        factors = lm.load_adapters(folder / "adapters", config=setup.model.config)
        numbers = read_json(done)
        return study.Trained({"params": setup.variables["params"], "lora": factors}, **numbers)
    steps = math.gcd(config.steps, 10)
    rounds = config.steps // steps
    base = study.train_on_real_data(
        on_worked_examples(setup, steps, rounds),
        setup.variables,
        lambda key: setup.worked,
        rounds=rounds,
        seed=config.seed,
        name="worked examples",
    )
    save_adapters(setup, folder / "adapters", base.params)
    write_atomically(done, json.dumps({"seconds": base.seconds, "tokens": base.tokens}) + "\n")
    return base


def save_adapters(setup: Setup, folder: Path, variables: Any) -> None:
    """Writes the factors as an adapter that peft reads."""
    lm.save_adapters(
        folder,
        variables["lora"],
        config=setup.model.config,
        base_model_name=str(setup.folder),
    )


def outside_scores(setup: Setup, params: Any) -> dict[str, float]:
    """What is tested at the beginning and the end alone: the other family behind its shots, and the
    own one without shots."""

    def share(texts: Texts, tasks: ev.Tasks) -> float:
        answers = solver(setup, texts)(params, jax.random.key(0), tasks)
        return float(report.is_right(texts.checker(), tasks, answers).mean())

    return {
        "outside": share(setup.outside, setup.outside_tests),
        "without_shots": share(setup.texts._replace(shots=[]), setup.tests),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    config = common.parse(Config, arguments, __doc__ or "")
    run = common.open_run(f"evolve-pretrained-{config.family}", config)
    setup = set_up(run, config)
    common.create(run)
    problem, loop = setup.texts.problem, loop_config(setup)
    scores = report.scores_of(setup.texts.checker(), solver(setup), setup.tests)
    outcome = study.evolve_and_control(
        run,
        config,
        loop,
        base_model(setup, run),
        jax.random.key(config.seed + 3),
        longest=problem.prompt_length(config.levels) + problem.answer_length(config.levels),
        vocab_size=problem.vocab_size,
        scores=scores,
        control=lambda rounds: on_worked_examples(setup, config.round_steps, rounds),
        frozen="params",
    )
    evolved = outcome.followed.state.train.params
    save_adapters(setup, run.path / "adapters", evolved)
    tested = {
        name: scores(params) | outside_scores(setup, params)
        for name, params in outcome.models().items()
    }
    samples = report.examples_text(
        problem, setup.texts.checker(), loop, evolved, setup.texts.family.levels
    )
    write_atomically(run.path / "tasks.txt", samples)
    records = outcome.followed.records
    report.draw_levels(run, records, tested.get("control"), config.base_levels, "level")
    table = report.write_results(
        run,
        outcome,
        title=f"A pretrained model that evolves itself: {problem.name}",
        module="experiments.evolution.pretrained",
        columns=columns(setup, tested),
        rounds=report.rounds_table(records),
        tested=tested,
        facts=facts(setup, loop),
        base="worked examples",
    )
    then = "peft and lm.load_adapters read adapters/. --family takes other tasks."
    common.finish(run.path, samples, table, then=then)


def columns(setup: Setup, tested: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """Right answers by level, of all, without shots, and of the other family."""
    config, levels = setup.config, setup.texts.family.levels
    found = report.level_columns(tested, config.test_prompts, 1, "level")
    total, others = len(levels) * config.test_prompts, config.outside_prompts
    found["level"] += ["all", "all, without shots", f"outside: {setup.outside.family.name}"]
    for name, scores in tested.items():
        mean = float(np.mean([scores[f"exact_{level}"] for level in levels]))
        found[f"{name}, %"] += [
            report.percent(mean, total),
            report.percent(scores["without_shots"], total),
            report.percent(scores["outside"], others),
        ]
    return found


def facts(setup: Setup, loop: ev.EvolveConfig) -> dict[str, str]:
    """The lines below the tables."""
    config, verifier = setup.config, loop.verifier
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(setup.variables[name]))
        for name in ("params", "lora")
    ]
    known = "it asks an oracle" if verifier.uses_oracle else "no oracle"
    # The folder's name alone: where it lies is the machine's matter.
    name = setup.folder.name if setup.folder.exists() else str(setup.folder)
    name = "random weights" if config.checkpoint is None else name
    found = {
        "Checkpoint": f"{name}, {sizes[0]:,} parameters, which stay, in {config.dtype}; factors of "
        f"rank {config.rank} have {sizes[1]:,}",
        "Vocabulary": f"{setup.model.config.vocab_size:,} tokens",
        "Task": f"{setup.texts.problem.name}, {config.test_prompts} prompts of each level, greedy, "
        f"behind {config.shots} worked examples",
        "Worked examples": f"{len(setup.worked.tokens)}, of up to {config.base_levels} levels",
        "Proposer": "the model, behind worked examples"
        if config.proposer == "model"
        else "a program",
        "Kept": f"{verifier.name}, of {config.samples} samples at temperature "
        f"{config.temperature}; {known}",
        "Update": loop.update.name,
    }
    if config.checkpoint is None:
        found["Mechanics alone"] = (
            "the weights are random, so the scores mean nothing; name a real model with "
            "--checkpoint"
        )
    return found
