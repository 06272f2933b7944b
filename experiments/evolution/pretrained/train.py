"""A pretrained language model that evolves itself: longer sums than the worked examples have.

With --checkpoint FOLDER_OR_HUB_ID a Hugging Face model (Llama, Qwen, GPT-2) is read, and low-rank
factors of its attention and MLP matrices learn; the base weights stay as they are. First it sees a
few worked examples, such as "12 + 34 = 46". Then, round by round, it gets sums of one digit more,
answers each several times, and keeps the most common answer if it ends and enough samples agree:
nobody tells it what is right, unless --verifier exact asks. It learns from that by --update
fine-tune, grpo or maml, and θ_{t+1} is taken only if held-out sums say that it isn't worse. The
factors are saved as an adapter that peft reads.

Without --checkpoint a small model of random weights is made. It shows that the parts work together,
on any machine, and learns nothing.

Expected of random weights: next to nothing right, nothing kept, and the loop stops by itself after
three rounds; half a minute on one CPU core, most of it compilation. What real checkpoints reach
hasn't been measured yet.

Agreement isn't truth. A model of 0.3 million parameters, trained on sums of up to three digits,
went from 99.2 to 100 % of 128 such sums (the control 97.7) with worked examples of two digits. Of
its answers of four digits none was right; it kept 43 % of them, and the gate, which knows no
answers there, accepted. The table's "right of the kept" shows it.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

import metajax
from experiments import common
from experiments.evolution import report, study
from experiments.evolution.pretrained.config import (
    TASK_TEXTS,
    Config,
    Setup,
    held_out_sums,
    set_up,
)
from metajax import evolve as ev
from metajax import lm
from metajax.files import write_atomically
from metajax.lm import lora


def mesh_of(count: int) -> Any:
    """The accelerators; None on a CPU, of which each core would hold the weights once more."""
    return None if jax.default_backend() == "cpu" else metajax.task_mesh(count)


def solver(setup: Setup, **options: Any) -> ev.Solver:
    """Answers; greedy ones without options."""
    chunk, problem = setup.config.chunk, setup.problem
    return ev.model_solver(
        setup.model,
        answer_length=problem.answer_length,
        end=problem.end,
        chunk=chunk,
        mesh=mesh_of(chunk),
        **options,
    )


def fine_tuning(setup: Setup, steps: int, rate: Any, mixture: Callable[[Any], Any]) -> ev.Update:
    """Fine-tuning of the factors on a mixture."""
    config = setup.config
    micro_batches = config.batch // config.micro_batch
    return ev.fine_tune(
        lora.frozen_base(setup.model),
        optimizer_of(rate),
        steps=steps,
        mixture=mixture,
        rows=config.batch,
        row_length=64,
        micro_batches=micro_batches,
        pool=256,
        trainable=lora.is_factor,
        mesh=mesh_of(micro_batches),
    )


def optimizer_of(rate: Any) -> optax.GradientTransformation:
    """AdamW, its gradient clipped."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))


def update_of(setup: Setup) -> ev.Update:
    """f, by the config's choice; the rate starts again each round."""
    config, steps = setup.config, setup.config.round_steps
    rate = ev.every_round(optax.linear_schedule(config.rate, config.rate / 10, steps), steps)
    options = {"steps": steps, "trainable": lora.is_factor}
    apply = lora.frozen_base(setup.model)
    if config.update == "grpo":
        micro_batches = config.batch // config.micro_batch
        return ev.grpo(
            apply,
            optimizer_of(rate),
            temperature=config.temperature,
            batch=config.batch,
            micro_batches=micro_batches,
            mesh=mesh_of(micro_batches),
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
    return fine_tuning(setup, steps, rate, ev.published_mixture(config.base_levels))


def loop_config(setup: Setup) -> ev.EvolveConfig:
    """The loop's parts."""
    config, problem = setup.config, setup.problem
    solve = solver(setup, samples=config.samples, temperature=config.temperature)
    verifier = ev.all_of(ev.majority_vote(config.agreement), ev.must_end())
    if config.verifier == "exact":
        verifier = ev.exact_match(problem.answer)
    draw = ev.program_proposer(problem, count=config.proposals)
    tested = ev.fingerprints(setup.tests)
    accepts = config.gate == "none"
    return ev.EvolveConfig(
        propose=lambda params, key, levels: ev.without_duplicates(
            draw(params, key, levels), tested
        ),
        solve=solve,
        verifier=verifier,
        update=update_of(setup),
        gate=ev.accept_all() if accepts else ev.non_inferior(solve, verifier),
        curriculum=ev.one_harder(config.base_levels + 1),
        real=lambda key: setup.worked,
        held_out=lambda levels: held_out_sums(config, problem, levels),
        oracle=problem.answer,
    )


def on_worked_examples(setup: Setup, steps: int, rounds: int) -> ev.Update:
    """``steps`` updates a round on the worked examples alone; the rate falls over all rounds."""
    rate = setup.config.rate
    schedule = optax.linear_schedule(rate, rate / 10, steps * rounds)
    return fine_tuning(setup, steps, schedule, study.real_mixture)


def base_model(setup: Setup, run: common.Run) -> study.Trained:
    """θ_0, after the worked examples; in the run's folder ``base``, from where a run resumes."""
    folder, config = run.path / "base", setup.config
    done = folder / "trained.json"
    if config.resume and done.exists():
        factors = lm.load_adapters(folder / "adapters", config=setup.model.config)
        numbers = json.loads(done.read_text(encoding="utf-8"))
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


def save_adapters(setup: Setup, folder: Path, params: Any) -> None:
    """Saves the factors as ``peft`` does; the adapter names the folder of the base weights."""
    base = str(setup.folder)
    lm.save_adapters(folder, params["lora"], config=setup.model.config, base_model_name=base)


def main(arguments: Sequence[str] | None = None) -> None:
    """Teaches, evolves, tests, and leaves everything in the run folder."""
    config = common.parse(Config, arguments, __doc__ or "")
    run = common.open_run("evolve-pretrained", config)
    setup = set_up(run, config)
    common.create(run)
    problem, loop = setup.problem, loop_config(setup)
    longest = config.base_levels + config.rounds
    scores = report.scores_of(problem, solver(setup), setup.tests)
    outcome = study.evolve_and_control(
        run,
        config,
        loop,
        base_model(setup, run),
        jax.random.key(config.seed + 3),
        longest=problem.prompt_length(longest) + problem.answer_length(longest),
        vocab_size=problem.vocab_size,
        scores=scores,
        control=lambda rounds: on_worked_examples(setup, config.round_steps, rounds),
        frozen="params",
    )
    evolved = outcome.followed.state.train.params
    save_adapters(setup, run.path / "adapters", evolved)
    tested = {name: scores(params) for name, params in outcome.models().items()}
    samples = report.examples_text(problem, loop, evolved, range(1, longest + 2))
    write_atomically(run.path / "tasks.txt", samples)
    records = outcome.followed.records
    report.draw_levels(run, records, tested.get("control"), config.base_levels)
    table = report.write_results(
        run,
        outcome,
        title="A pretrained model that evolves itself: sums as text",
        module="experiments.evolution.pretrained",
        columns=report.level_columns(tested, config.test_prompts, 1),
        rounds=report.rounds_table(records),
        tested=tested,
        facts=facts(setup, loop),
        base="worked examples",
    )
    print(f"\n{samples}\n{table}\nEverything is in {run.path}.")


def facts(setup: Setup, loop: ev.EvolveConfig) -> dict[str, str]:
    """The lines below the tables."""
    config, verifier = setup.config, loop.verifier
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(setup.variables[name]))
        for name in ("params", "lora")
    ]
    known = "it asks an oracle" if verifier.uses_oracle else "no oracle"
    # The folder's name alone: where it lies is the machine's matter.
    name = setup.folder.name if setup.folder.is_dir() else str(setup.folder)
    name = "random weights" if config.checkpoint is None else name
    found = {
        "Checkpoint": f"{name}, {sizes[0]:,} parameters, which stay; factors of rank "
        f"{config.rank} have {sizes[1]:,}",
        "Task": f"{setup.problem.name}, {config.test_prompts} prompts of each length, greedy, "
        "exact match",
        "Worked examples": f"{len(setup.worked.tokens)}, of up to {config.base_levels} digits",
        "Proposer": "a program",
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
