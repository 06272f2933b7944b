"""A small model of stories that learns to write stories with three given words.

    python -m experiments.evolution.stories --checkpoint FOLDER --real stories.txt

The checkpoint is a Hugging Face folder of a model that was trained on stories alone, such as
stories260K, and knows no questions. Round by round it writes texts, whose nouns make tasks of three
words, and several stories for each. A program looks for the words and for a good ending, and the
frozen base model says whether the story is fluent. The square of the share of the words is the
reward: a story that followed the question in part earns a part. The model learns by GRPO, and
imitates what it wrote freely before, so that it stays as fluent.
θ_{t+1} is taken only if it does held-out tasks not worse and its perplexity on stories of the base
is near the base's. All parameters learn. Nobody gives it a story.

The base model's rate is that of the best of several prompts, chosen on validation tasks. --real
names a file of real stories for the perplexity; without it that of the base's own held-out stories
is the only one. --damage once turns round 30 % of the checker's verdicts in the second round.

Without --checkpoint a small model of random weights is made. It shows that the parts work together
on any machine, and poses no task.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from experiments import common
from experiments.evolution import report, study
from experiments.evolution.pretrained.families.stories import (
    COUNT,
    ends_well,
    nouns_in,
    question,
    words_in,
    words_of,
)
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
from metajax.files import write_atomically

MARGIN, CONFIDENCE = 0.2, 0.95
"""Of the gate: the acceptable loss on held-out tasks. Answers are drawn: with 64 tasks a model that
is as good as before may seem worse by 10 points."""
TEXTS = 2
"""Texts that it writes for each task."""


def reward(question: str, story: str) -> float:
    """The square of the share of the words that a story has; 0 if it doesn't end well.

    >>> from experiments.evolution.pretrained.families import stories
    >>> asked = stories.question(["dog", "tree", "hat"])
    >>> reward(asked, "The dog ran."), reward(asked, "The dog had a hat by a tree.")
    (0.1111111111111111, 1.0)
    """
    words = words_of(question)
    there = len(words_in(story).intersection(words))
    return (there / COUNT) ** 2 if words and ends_well(story) else 0.0


def update_of(ready: Ready) -> ev.Update:
    """GRPO on the rewards, and imitation of free stories."""
    config = ready.setup.config
    total, warm = config.rounds * config.round_steps, config.round_steps
    rate = study.warmup_stable_decay(
        config.rate, total, warm=warm, stable=max(warm, total - total // 3), end=config.rate / 10
    )
    return ev.grpo(
        ready.setup.apply,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.0)),
        steps=config.round_steps,
        temperature=config.temperature,
        batch=config.batch,
        micro_batches=next(parts for parts in (3, 2, 1) if config.batch % parts == 0),
        kl=0.0,
        clip=(0.2, 0.28),
        normalise="tokens",
        real_share=config.imitation,
    )


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
    """Tasks of the model's own: it writes texts, whose nouns come together in threes, a rare one as
    often as a common one."""
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
    found = {noun for row in texts[:, 0] for noun in nouns_in(setup.tokenizer.decode(row.tolist()))}
    nouns, rng = sorted(found), np.random.default_rng(np.asarray(jax.random.key_data(key)))
    draws = 2 * count if len(nouns) >= COUNT else 0
    drawn = (question(rng.choice(nouns, COUNT, replace=False).tolist()) for _ in range(draws))
    # Valid ones first, so that few stories are written for what is no task.
    asked = list(dict.fromkeys(drawn))[:count]
    valid = np.arange(count) < len(asked)
    asked += [question(["dog", "hat", "tree"])] * (count - len(asked))
    return begun(setup, asked)._replace(valid=valid)


def loop_config(ready: Ready) -> ev.EvolveConfig:
    """The loop's parts."""
    setup, config = ready.setup, ready.setup.config
    never, check, corrupt = kept_back(setup), reward, None
    if config.damage == "once":
        check, corrupt = wrong_once(check, config.seed)
    level = ev.Levels(1, 1)

    def imitated(key: jax.Array) -> ev.Examples:
        most = min(len(ready.imitated.tokens), config.proposals * config.samples)
        rows = np.asarray(jax.random.permutation(key, len(ready.imitated.tokens)))[:most]
        return jax.tree.map(lambda leaf: leaf[rows], ready.imitated)

    return ev.EvolveConfig(
        propose=lambda params, key, levels: ev.without_duplicates(pose(setup, params, key), never),
        solve=solver(setup, samples=config.samples),
        verifier=ready.checker(check),
        update=update_of(ready),
        gate=ev.accept_all() if config.gate == "none" else gate_of(ready),
        curriculum=ev.Curriculum("one level", level, lambda levels, rate: levels),
        real=imitated,
        held_out=lambda levels: held_out_tasks(setup),
        corrupt=corrupt,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Evolves, tests, and leaves everything in the run folder."""
    config = common.parse(Config, arguments, __doc__ or "")
    run = common.open_run("evolve-stories", config)
    setup = set_up(run, config)
    common.create(run)
    ready = make_ready(setup, run)
    loop = loop_config(ready)
    validation = scores_of(ready, setup.validation)
    outcome = study.evolve_and_control(
        run,
        config,
        loop,
        study.Trained(setup.params, 0.0, 0),
        jax.random.key(config.seed + 3),
        longest=setup.problem.prompt_length(1) + config.longest,
        vocab_size=setup.problem.vocab_size,
        scores=lambda params: validation(params) | ready.perplexities(params),
    )
    evolved = outcome.followed.state.train.params
    lm.save_pretrained(run.path / "model", setup.model.config, evolved)
    base = base_scores(ready, run.path / "base.json")
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
        base="the checkpoint",
    )
    common.finish(run.path, table, then="docs/self-evolution.md says what to make of it.")
