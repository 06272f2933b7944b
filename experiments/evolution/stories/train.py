"""A small model of stories that learns to write stories with three given words.

    python -m experiments.evolution.stories --checkpoint FOLDER --real stories.txt

The checkpoint is a Hugging Face folder of a model that was trained on stories alone, such as
stories260K, and knows no questions. First it writes stories behind questions of a program. Few have
the words; a story without them is learned behind words that it has. Then, round by round, it poses
its own three words and writes several stories for them. A program checks that the words are there
and that the story ends well, and the frozen base model, that it is fluent. The model learns what
passes, and again the others behind words that they have. Beside that it rehearses what it wrote
freely before.
θ_{t+1} is taken only if it does held-out tasks not worse and its perplexity on stories of the base
is near the base's. All parameters learn. Nobody gives it a story.

The base model's rate is that of the best of several prompts, chosen on validation tasks. --real
names a file of real stories for the perplexity; without it that of the base's own held-out stories
is the only one. --damage once turns round 30 % of the checker's verdicts in the second round.

The control has as many updates on the first data alone.

Without --checkpoint a small model of random weights is made. It shows that the parts work together
on any machine, and poses no task.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import common
from experiments.evolution import report, study
from experiments.evolution.pretrained.families.stories import (
    COUNT,
    nouns_in,
    question,
)
from experiments.evolution.stories import own_stories
from experiments.evolution.stories.config import (
    Config,
    Setup,
    begun,
    held_out_tasks,
    kept_back,
    prompts,
    set_up,
)
from experiments.evolution.stories.ready import Ready, make_ready, solver
from experiments.evolution.stories.report import (
    base_scores,
    columns,
    draw_rounds,
    facts,
    samples,
    scores_of,
)
from experiments.evolution.wrong_checker import wrong_once
from metajax import evolve as ev
from metajax import lm
from metajax.files import open_to_read, read_json, replacing, write_atomically

MARGIN, CONFIDENCE = 0.1, 0.95
"""Of the gate: the acceptable loss on held-out tasks."""
TEXTS = 4
"""Texts that it begins to pose a task."""


def fine_tuning(ready: Ready, steps: int, rate: Any, mixture: Callable[[Any], Any]) -> ev.Update:
    """Fine-tuning of all parameters on the beginnings of stories, behind their questions."""
    setup, config = ready.setup, ready.setup.config
    update = ev.fine_tune(
        setup.apply,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.01)),
        steps=steps,
        mixture=mixture,
        rows=config.batch,
        row_length=config.learned - 1,
        micro_batches=1,
        pool=steps * config.batch,
        rehearsal=ready.rehearsal,
        rehearsal_weight=config.rehearsal_weight,
    )

    def cut(part: ev.Examples) -> ev.Examples:
        return part._replace(
            tokens=part.tokens[:, : config.learned],
            lengths=np.minimum(part.lengths, config.learned),
        )

    def run(state, data, key, scale=1.0):
        past = tuple(map(cut, data.past))
        data = data._replace(real=cut(data.real), past=past, new=cut(data.new))
        return update.update(state, data, key, scale)

    return update._replace(update=run)


def update_of(ready: Ready, mixture: Callable[[Any], Any]) -> ev.Update:
    """A round's updates; the rate falls from a quarter to a fortieth."""
    config, steps = ready.setup.config, ready.setup.config.round_steps
    rate = optax.linear_schedule(config.rate / 4, config.rate / 40, steps)
    return fine_tuning(ready, steps, ev.every_round(rate, steps), mixture)


def with_hindsight(ready: Ready, update: ev.Update) -> ev.Update:
    """Lets an update learn from right stories, and from others behind words that they have."""
    never = kept_back(ready.setup)

    def run(state, data, key, scale=1.0):
        new = own_stories.answers(ready.setup, data.rollouts, never, ready.fluent)
        return update.update(state, data._replace(new=new), key, scale)

    return update._replace(name=f"{update.name}, wrong stories behind words they have", update=run)


def first_data(ready: Ready, file: Path) -> ev.Examples:
    """The base's answers to questions of a program; in a file, from where a run resumes."""
    setup, config = ready.setup, ready.setup.config
    if not file.exists():
        key, again = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 6))
        never = kept_back(setup)
        tasks = setup.problem.draw(key, np.ones(config.asked, int))
        tasks = ev.without_duplicates(tasks, never)
        completions = solver(setup)(setup.params, again, tasks)
        verdict = ready.verifier.verify(tasks, completions)
        rollouts = ev.Rollouts(tasks, completions, verdict)
        found = own_stories.answers(setup, rollouts, never, ready.fluent)
        with replacing(file) as path, path.open("wb") as opened:
            np.savez(opened, **found._asdict())
    with open_to_read(file) as opened, np.load(opened) as loaded:
        return ev.Examples(*(loaded[name] for name in ev.Examples._fields))


def gate_of(ready: Ready) -> ev.Gate:
    """Accepts θ_{t+1} if, with confidence, it does held-out tasks not much worse than θ_t, and if
    its perplexity on the base's stories that are kept back is near the base's."""
    config = ready.setup.config
    solve = solver(ready.setup)
    base = ready.perplexity(ready.setup.params)

    def gate(old: Any, new: Any, key: jax.Array, held_out: ev.HeldOut) -> ev.Decision:
        tasks = ev.concatenate_tasks([held_out.known, held_out.frontier])
        right = [
            np.asarray(ready.verifier.verify(tasks, solve(params, key, tasks)).weight)
            for params in (old, new)
        ]
        lowest = ev.change_at_least(right[0], right[1], CONFIDENCE)
        now, then = (ready.perplexity(each) / base for each in (old, new))
        reasons = []
        if lowest < -MARGIN:
            reasons.append(f"held-out tasks may be worse by {-lowest:.1%}, more than {MARGIN:.0%}")
        if not then <= max(config.perplexity, now):
            reasons.append(f"perplexity is {then:.3f} times the base's")
        before, after = ({"frontier": float(scores.mean())} for scores in right)
        return ev.Decision(
            not reasons, before, after, {"frontier": lowest},
            "; ".join(reasons) or f"perplexity is {then:.3f} times the base's",
        )  # fmt: skip

    return gate


def pose(setup: Setup, params: Any, key: jax.Array) -> ev.Tasks:
    """Tasks of the model's own: it begins a text, and asks for the first three nouns in it."""
    write = ev.model_solver(
        setup.model,
        answer_length=lambda level: setup.problem.prompt_length(1),
        end=setup.problem.end,
        temperature=1.0,
        slack=0,
        chunk=4 * setup.config.chunk,
    )
    count = setup.config.proposals
    texts = write(params, key, prompts([[setup.problem.first_token]] * (TEXTS * count))).tokens
    found = [nouns_in(setup.tokenizer.decode(row.tolist()))[:COUNT] for row in texts[:, 0]]
    # Valid ones first, so that few stories are written for what is no task.
    asked = list(dict.fromkeys(question(words) for words in found if len(words) == COUNT))[:count]
    valid = np.arange(count) < len(asked)
    asked += [question(["dog", "hat", "tree"])] * (count - len(asked))
    return begun(setup, asked)._replace(valid=valid)


def loop_config(ready: Ready, first: ev.Examples) -> ev.EvolveConfig:
    """The loop's parts."""
    setup, config = ready.setup, ready.setup.config
    never, check, corrupt = kept_back(setup), setup.family.check, None
    if config.damage == "once":
        check, corrupt = wrong_once(check, config.seed)
    level = ev.Levels(1, 1)
    return ev.EvolveConfig(
        propose=lambda params, key, levels: ev.without_duplicates(pose(setup, params, key), never),
        solve=solver(setup, samples=config.samples),
        verifier=ready.checker(check),
        update=with_hindsight(ready, update_of(ready, ev.published_mixture(1))),
        gate=ev.accept_all() if config.gate == "none" else gate_of(ready),
        curriculum=ev.Curriculum("one level", level, lambda levels, rate: levels),
        real=lambda key: first,
        held_out=lambda levels: held_out_tasks(setup),
        corrupt=corrupt,
    )


def taught(ready: Ready, first: ev.Examples, run: common.Run) -> study.Trained:
    """θ_0: after the updates on the base's own stories, if any of them can be learned from; kept in
    the run's folder ``base``."""
    folder, setup, config = run.path / "base", ready.setup, ready.setup.config
    if not first.weights.any():
        common.show(f"None of the {config.asked} first stories can be learned from.")
        return study.Trained(setup.params, 0.0, 0)
    done = folder / "trained.json"
    if config.resume and done.exists():
        _, params = lm.load_pretrained(folder, dtype="float32", scan=False)
        return study.Trained(params, **read_json(done))
    parts = next(each for each in (10, 5, 2, 1) if config.steps % each == 0)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.rate, max(1, config.steps // 20), max(2, config.steps), config.rate / 10
    )
    base = study.train_on_real_data(
        fine_tuning(ready, config.steps // parts, rate, study.real_mixture),
        setup.params,
        lambda key: first,
        rounds=parts,
        seed=config.seed,
        name="own stories",
    )
    lm.save_pretrained(folder, setup.model.config, base.params)
    numbers = {"seconds": base.seconds, "tokens": base.tokens}
    write_atomically(done, json.dumps(numbers) + "\n")
    return base


def main(arguments: Sequence[str] | None = None) -> None:
    """Teaches, evolves, tests, and leaves everything in the run folder."""
    config = common.parse(Config, arguments, __doc__ or "")
    run = common.open_run("evolve-stories", config)
    setup = set_up(run, config)
    common.create(run)
    ready = make_ready(setup, run)
    first = first_data(ready, run.path / "asked.npz")
    loop = loop_config(ready, first)
    validation = scores_of(ready, setup.validation)
    outcome = study.evolve_and_control(
        run,
        config,
        loop,
        taught(ready, first, run),
        jax.random.key(config.seed + 3),
        longest=setup.problem.prompt_length(1) + config.longest,
        vocab_size=setup.problem.vocab_size,
        scores=lambda params: validation(params) | ready.perplexities(params),
        control=lambda rounds: update_of(ready, study.real_mixture),
    )
    evolved = outcome.followed.state.train.params
    lm.save_pretrained(run.path / "model", setup.model.config, evolved)
    base = base_scores(ready, first, run.path / "base.json")
    test = scores_of(ready, setup.tests)
    tested = {"base": base["tested"]} | {
        name: test(params) | ready.perplexities(params) for name, params in outcome.models().items()
    }
    write_atomically(run.path / "tasks.txt", samples(ready, base, loop, evolved))
    draw_rounds(run.path / "rounds.png", outcome.followed.records, base)
    table = report.write_results(
        run,
        outcome,
        title="A model of stories that learns to write with given words",
        module="experiments.evolution.stories",
        columns=columns(tested, config.test_prompts),
        rounds=report.rounds_table(outcome.followed.records),
        tested={"models": tested, "base_prompts": base["tried"], "base_prompt": base["prompt"]},
        facts=facts(ready, loop, base),
        base="own stories",
    )
    print(f"\n{table}\nEverything is in {run.path}.")
