"""A pretrained language model that evolves itself: longer sums than the worked examples have.

python -m experiments.evolution.pretrained.train --checkpoint FOLDER_OR_HUB_ID reads a Hugging Face model
(Llama, Qwen, GPT-2) and lets low-rank factors of its attention and MLP matrices learn; the base
weights stay as they are. First it sees a few worked examples, such as "12 + 34 = 46". Then, round
by round, it gets sums of one digit more, answers each several times, and keeps what most of its
answers agree on and what ends: nobody tells it what is right, unless --verifier exact asks. It
learns from that by --update fine-tune, policy-gradient or maml, and θ_{t+1} is taken only if
held-out sums say that it isn't worse. The factors are left as an adapter that peft reads.

Without --checkpoint a small model of random weights is made on the spot. That shows that the parts
work together, on any machine; but such a model knows nothing, learns nothing worth reporting, and
its figures mean nothing. With a real checkpoint the command is the same, and so are the files.

Expected of random weights: next to nothing right, nothing kept, and the loop stops by itself after
three rounds; half a minute on one CPU core, most of it compilation. What real checkpoints reach
hasn't been measured yet.

Agreement isn't truth. A model of 0.3 million parameters that had been trained on sums of up to
three digits went from 99.2 to 100 % of 128 such sums (the control 97.7) when it was given worked
examples of two; but of its answers of four digits, none of which was right, it kept 43 %, and the
gate, which knows no answers there, took what came of them. The table's "right of the kept" shows
it.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metajax
from experiments import common
from experiments.evolution import report, study
from experiments.evolution.pretrained.config import (
    TASK_TEXTS,
    Config,
    Setting,
    held_out_of,
    setting_of,
)
from experiments.evolution.study import Trained
from metajax import evolve as ev
from metajax import lm
from metajax.evolve.proposers import fingerprints
from metajax.files import write_atomically
from metajax.lm import lora


def mesh_of(count: int) -> Any:
    """The accelerators; None on a CPU, of which each core would hold the weights once more."""
    return None if jax.default_backend() == "cpu" else metajax.task_mesh(count)


def solver_of(setting: Setting, **options: Any) -> ev.Solver:
    """Answers; greedy ones if nothing else is asked for."""
    chunk, problem = setting.config.chunk, setting.problem
    return ev.solver(
        setting.model, answer_length=problem.answer_length, end=problem.end, chunk=chunk,
        mesh=mesh_of(chunk), **options,
    )  # fmt: skip


def fine_tune_of(setting: Setting, steps: int, rate: Any, shares: Any) -> ev.Update:
    """Fine-tuning of the factors on a mixture."""
    config = setting.config
    parts = config.batch // config.micro_batch
    return ev.fine_tune(
        lora.frozen_base(setting.model), optimizer_of(rate), steps=steps, shares=shares,
        rows=config.batch, row_length=64, micro_batches=parts, pool=256,
        trainable=lora.is_factor, mesh=mesh_of(parts),
    )  # fmt: skip


def optimizer_of(rate: Any) -> optax.GradientTransformation:
    """AdamW, its gradient clipped."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))


def update_of(setting: Setting) -> ev.Update:
    """f, by the config's choice; the rate starts again each round."""
    config, steps = setting.config, setting.config.round_steps
    rate = ev.every_round(optax.linear_schedule(config.rate, config.rate / 10, steps), steps)
    options = {"steps": steps, "trainable": lora.is_factor}
    apply = lora.frozen_base(setting.model)
    if config.update == "policy-gradient":
        parts = config.batch // config.micro_batch
        return ev.policy_gradient(
            apply, optimizer_of(rate), batch=config.batch, micro_batches=parts,
            mesh=mesh_of(parts), **options,
        )  # fmt: skip
    if config.update == "maml":
        learner = metajax.maml(
            lm.next_token_loss(apply),
            optax.sgd(config.inner_rate),
            steps=1,
            trainable=lora.is_factor,
        )
        tasks, half = config.batch // TASK_TEXTS, TASK_TEXTS // 2
        return ev.meta_step(
            learner, optimizer_of(rate), support=half, query=half, meta_batch=tasks,
            mesh=mesh_of(tasks), **options,
        )  # fmt: skip
    return fine_tune_of(setting, steps, rate, ev.published_shares(config.base_levels))


def parts_of(setting: Setting) -> ev.Parts:
    """The loop's parts."""
    config, problem = setting.config, setting.problem
    solve = solver_of(setting, samples=config.samples, temperature=config.temperature)
    verifier = ev.all_of(ev.majority_vote(config.agreement), ev.must_end())
    if config.verifier == "exact":
        verifier = ev.exact(problem.solve)
    draw, tested = ev.drawn_by_program(problem, count=config.proposals), fingerprints(setting.tests)
    return ev.Parts(
        propose=lambda params, key, levels: ev.without_repetitions(
            draw(params, key, levels), tested
        ),
        solve=solve,
        verifier=verifier,
        update=update_of(setting),
        gate=ev.no_worse(solve, verifier) if config.gate == "no_worse" else ev.always(),
        curriculum=ev.one_harder(config.base_levels + 1),
        real=lambda key: setting.worked,
        held_out=lambda levels: held_out_of(config, problem, levels),
        oracle=problem.solve,
    )


def on_worked(setting: Setting, params: Any, steps: int, rounds: int, name: str) -> Trained:
    """So many times ``steps`` updates on the worked examples alone."""
    rate = setting.config.rate
    schedule = optax.linear_schedule(rate, rate / 10, steps * rounds)
    return study.on_real_data(
        fine_tune_of(
            setting, steps, schedule, lambda kept: np.array([1.0] + [0.0] * len(kept))
        ),
        params, lambda key: setting.worked, rounds=rounds, seed=setting.config.seed, name=name,
    )  # fmt: skip


def taught(setting: Setting, run: common.Run) -> Trained:
    """θ_0, after the worked examples; in the run's folder ``base``, where a resumed run has it."""
    folder, config = run.path / "base", setting.config
    done = folder / "trained.json"
    if config.resume and done.exists():
        factors = lm.load_adapters(folder / "adapters", config=setting.model.config)
        numbers = json.loads(done.read_text(encoding="utf-8"))
        return Trained({"params": setting.variables["params"], "lora": factors}, **numbers)
    each = math.gcd(config.steps, 10)
    base = on_worked(setting, setting.variables, each, config.steps // each, "worked examples")
    save_adapters(setting, folder / "adapters", base.params)
    write_atomically(done, json.dumps({"seconds": base.seconds, "tokens": base.tokens}) + "\n")
    return base


def save_adapters(setting: Setting, folder: Path, params: Any) -> None:
    """The factors as ``peft`` has them; it finds the base weights where they were."""
    base = str(setting.folder)
    lm.save_adapters(folder, params["lora"], config=setting.model.config, base_model_name=base)


def main(arguments: Sequence[str] | None = None) -> None:
    """Teaches, evolves, tests, and leaves everything in the run folder."""
    config = common.parse(Config, arguments, __doc__ or "")
    run = common.open_run("evolve-pretrained", config)
    setting = setting_of(run, config)
    common.create(run)
    problem = setting.problem
    base = taught(setting, run)
    parts = parts_of(setting)
    longest = config.base_levels + config.rounds
    scores = report.scores_of(problem, solver_of(setting), setting.tests)
    state = ev.start(
        parts,
        base.params,
        jax.random.key(config.seed + 3),
        rounds=config.rounds,
        proposals=config.proposals,
        longest=problem.prompt_length(longest) + problem.answer_length(longest),
        vocab_size=problem.vocab_size,
    )
    followed = study.follow(run, parts, state, scores=scores, fixed="params")
    params = followed.state.train.params
    save_adapters(setting, run.path / "adapters", params)
    tested = {"round 0": scores(base.params), "last round": scores(params)}
    phases = {"worked examples": base}
    learned = sum(record.get("seconds_update") is not None for record in followed.records)
    if config.control == "yes" and learned:
        phases["control"] = on_worked(setting, base.params, config.round_steps, learned, "control")
        tested["control"] = scores(phases["control"].params)
    levels = range(1, longest + 2)
    samples = report.examples_text(problem, parts, params, levels)
    write_atomically(run.path / "tasks.txt", samples)
    report.draw_levels(run, followed.records, tested.get("control"), config.base_levels)
    found = report.Found(followed, tested, config.test_prompts, 1, phases, facts_of(setting, parts))
    table = report.write_results(
        run,
        found,
        title="A pretrained model that evolves itself: sums as text",
        module="experiments.evolution.pretrained.train",
    )
    print(f"\n{samples}\n{table}\nEverything is in {run.path}.")


def facts_of(setting: Setting, parts: ev.Parts) -> dict[str, str]:
    """What the table says below."""
    config, verifier = setting.config, parts.verifier
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(setting.variables[name]))
        for name in ("params", "lora")
    ]
    known = "it asks an oracle" if verifier.uses_oracle else "no oracle"
    # A folder's own name will do: where it is, is the machine's matter.
    name = setting.folder.name if setting.folder.is_dir() else str(setting.folder)
    name = "random weights" if config.checkpoint is None else name
    facts = {
        "Checkpoint": f"{name}, {sizes[0]:,} parameters, which stay; factors of rank "
        f"{config.rank} have {sizes[1]:,}",
        "Task": f"{setting.problem.name}, {config.test_prompts} prompts of each length, greedy, "
        "exact match",
        "Worked examples": f"{len(setting.worked.tokens)}, of up to {config.base_levels} digits",
        "Proposer": "a program",
        "Kept": f"{verifier.name}, of {config.samples} samples at temperature "
        f"{config.temperature}; {known}",
        "Update": parts.update.name,
    }
    if config.checkpoint is None:
        facts["Mechanics alone"] = (
            "the weights are random, so nothing is known that could grow, and the scores mean "
            "nothing; name a real model with --checkpoint"
        )
    return facts


if __name__ == "__main__":
    common.guard(main)
