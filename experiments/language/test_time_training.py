"""Test-time training: a language model adapts to each task's few examples before it answers.

python -m experiments.language.test_time_training trains a small base model on documents of worked
examples, each document of one rule, so that it learns to learn from its context. Then it meets
tasks whose rules are held-out compositions. Four methods are compared:
- no adaptation;
- in-context prompting: the examples come before the question;
- test-time training: low-rank factors (LoRA) are trained on the examples, all tasks by one compiled
  metajax.adapt, and the question comes alone;
- both: the factors are trained on documents of the examples in several orders, each example
  predicted from those before it, and the examples come before the question.

Source: Akyürek et al. 2024, "The Surprising Effectiveness of Test-Time Training for Few-Shot
Learning" (arXiv 2411.07279), which has both together, with factors for each task.

Expected, words of held-out rules that are right (300 tasks): 2.0 ± 0.8 % without adaptation,
24.2 ± 4.1 in context, 12.1 ± 2.3 by test-time training alone, 38.7 ± 4.1 by both; 6 and a half
minutes on two CPU cores, beside other work, 3 and a half of them for the base model.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import optax

import metajax
from experiments import common
from experiments.language.rules.base_model import Base, base_model
from experiments.language.rules.config import BASE_STEPS, HELD_OUT, RulesConfig
from experiments.language.rules.evaluation import (
    TEST_SEED,
    Scores,
    draw_tasks,
    scores_by_kind,
    test_tasks,
)
from experiments.language.rules.report import write_results
from experiments.language.rules.tasks import in_context
from metajax import lm
from metajax.files import write_atomically
from metajax.lm import lora


@dataclasses.dataclass(frozen=True)
class Config(RulesConfig):
    """Options of the experiment."""

    steps: int = BASE_STEPS
    """Updates of the base model."""
    adapt_steps: int = 16
    """Inner steps at test."""
    lines_rate: float = 1e-2
    """Adam's rate where the factors are trained on single examples."""
    documents_rate: float = 3e-3
    """Adam's rate where they are trained on documents of them."""
    orders: int = 4
    """Documents of a task's examples, each in another order."""
    query: int = 4
    """Examples in a task's query set."""

    may_differ: ClassVar[frozenset[str]] = RulesConfig.may_differ | {"base", "test_episodes"}

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "adapt_steps", "lines_rate", "documents_rate", "orders")


def as_documents(episodes: metajax.Episode, key: jax.Array, orders: int) -> metajax.Episode:
    """The same tasks as documents.

    Args:
        episodes: support and query lines ``[tasks, examples, line]``.
        key: for the orders.
        orders: documents of the support set, each of all its lines in another order.

    Returns:
        Support ``[tasks, orders, k_shot * line]``, of which every line's targets count; query
        ``[tasks, query, (k_shot + 1) * line]``, a question after the support set as it is.
    """

    def document(key: jax.Array, episode: metajax.Episode) -> metajax.Episode:
        shuffle = lambda key: jax.random.permutation(key, len(episode.support.tokens))
        order = jax.vmap(shuffle)(jax.random.split(key, orders))
        support = jax.tree.map(lambda part: part[order].reshape(orders, -1), episode.support)
        return metajax.Episode(support, in_context(episode.support, episode.query))

    keys = jax.random.split(key, len(episodes.query.tokens))
    return jax.vmap(document)(keys, episodes)


def lora_learner(model: Any, rate: float, steps: int) -> metajax.Learner:
    """Adam on the low-rank factors of ``{"params": ..., "lora": ...}``."""
    return metajax.maml(
        lm.next_token_loss(model.apply),
        optax.adam(rate),
        steps=steps,
        mode=metajax.first_order(),  # the gradient through these steps isn't needed
        trainable=lora.is_factor,
    )


def compare(config: Config, base: Base) -> dict[str, dict[str, Scores]]:
    """The scores on the same tasks, held out and seen, as lines and as documents."""
    lines = test_tasks(config)
    key = jax.random.key(TEST_SEED)
    documents = {kind: as_documents(tasks, key, config.orders) for kind, tasks in lines.items()}
    forms = {
        "lines": (config.lines_rate, lines),
        "documents": (config.documents_rate, documents),
    }
    return scores_by_kind(
        {
            name: (lora_learner(base.model, rate, config.adapt_steps), base.variables, tasks)
            for name, (rate, tasks) in forms.items()
        }
    )


def of_methods(scores: dict[str, Scores]) -> dict[str, Scores]:
    """Each method's scores; before the first step nothing is adapted."""
    return {
        "no adaptation": scores["lines"].at(0),
        "in-context prompting": scores["documents"].at(0),
        "test-time training": scores["lines"].at(-1),
        "both": scores["documents"].at(-1),
    }


def answers(config: Config, base: Base) -> str:
    """One task of each held-out family: its examples, and the model's greedy answers."""
    tokenizer, texts = config.words.tokenizer, []
    learner = lora_learner(base.model, config.documents_rate, config.adapt_steps)
    tasks = draw_tasks(config, HELD_OUT, len(HELD_OUT), seed=7)
    forms = as_documents(tasks, jax.random.key(7), config.orders)
    adapt = jax.jit(lambda variables, support: learner.adapt(variables, support)[0]["lora"])
    for row, family in zip(range(0, len(tasks.query.tokens), 2), HELD_OUT, strict=True):
        task, form = jax.tree.map(lambda part, row=row: part[row], (tasks, forms))
        adapted = adapt(base.variables, form.support)
        prompts = np.asarray(form.query.tokens[:, : -config.length - 1])
        words = {
            name: lm.generate(
                base.model,
                base.variables["params"],
                prompts,
                max_new_tokens=config.length,
                lora=factors,
            ).tokens[:, 0]
            for name, factors in (("in context", None), ("both", adapted))
        }
        shown = tokenizer.decode(np.ravel(task.support.tokens).tolist()).split()
        texts.append(f"{family}: {', '.join(shown)}")
        for number, line in enumerate(np.asarray(task.query.tokens).tolist()):
            question, right = tokenizer.decode(line).strip().split(">")
            found = {
                name: tokenizer.decode(np.asarray(rows[number]).tolist())
                for name, rows in words.items()
            }
            said = "; ".join(
                f"{name} {word}{'' if word == right else ' (wrong)'}"
                for name, word in found.items()
            )
            texts.append(f"  {question}> {right}: {said}")
    return "\n".join(texts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the base model, adapts it to tasks, and leaves everything in the run folder."""
    metajax.use_every_core()
    config = common.parse(Config, arguments, __doc__ or "")
    run = common.open_run("test-time-training", config)
    common.create(run)
    base = base_model(run, config, config.steps)
    started = time.perf_counter()
    scores = compare(config, base)
    methods = {kind: of_methods(of_kind) for kind, of_kind in scores.items()}
    curves = [
        scores["held-out"]["lines"].curve("the question alone"),
        scores["held-out"]["documents"].curve("the examples before it"),
    ]
    seconds = {"base model": base.seconds, "tests": time.perf_counter() - started}
    table = write_results(
        run,
        config,
        methods,
        title="Test-time training",
        module="experiments.language.test_time_training",
        curves=curves,
        seconds=seconds,
        facts={
            "Adaptation": f"{config.adapt_steps} steps of Adam, rate {config.lines_rate:g} on "
            f"lines and {config.documents_rate:g} on documents, factors of rank {config.rank} in "
            "all matrices of the blocks"
        },
    )
    samples = answers(config, base)
    write_atomically(run.path / "answers.txt", samples)
    common.finish(run.path, samples, table, then="make meta-lora meta-trains where factors start.")


if __name__ == "__main__":
    common.guard(main)
