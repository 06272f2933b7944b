"""Which page is made from which JSON files, and what it says."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from experiments.results import tables
from experiments.results.tables import FOLDER, Found


@dataclasses.dataclass(frozen=True)
class Study:
    """A page of results.

    Attributes:
        title: its heading.
        patterns: which JSON files it is made from, in this order.
        table: the lines of the page, from these.
        about: what is measured, in a sentence or two.
        pictures: file and caption.
    """

    title: str
    patterns: tuple[str, ...]
    table: Callable[[Found], Iterable[str]]
    about: str
    pictures: tuple[tuple[str, str], ...] = ()


STUDIES = {
    "demo": Study(
        "MAML on glyphs",
        ("demo/**/result.json",),
        tables.few_shot,
        "`make demo`: characters drawn from fonts, tested on classes never trained on.",
        (
            ("demo/episode.png", "an episode"),
            ("demo/inner_steps.png", "accuracy after each inner step"),
        ),
    ),
    "omniglot": Study(
        "MAML on Omniglot, 5-way",
        ("omniglot-5way/**/result.json", "omniglot-5way-*/**/result.json"),
        tables.few_shot,
        "`omniglot-5way` is `make omniglot`, with three seeds; `-paper` is the paper's training in "
        "full and `-paper-4000` its first 4,000 meta-steps, with the published head or one from a "
        "deviation of 0.125; the others are earlier schedules of ours.",
        (
            ("omniglot-5way/training.png", "training of seed 0"),
            ("omniglot-5way/inner_steps.png", "accuracy after each inner step, seed 0"),
            ("omniglot-5way/episode.png", "an episode"),
        ),
    ),
    "omniglot-table": Study(
        "Omniglot: ten learners beside their papers",
        ("omniglot-table/table.json",),
        tables.learners,
        "Accuracy in % with the 95 % interval over episodes; 5w1s is 5-way 1-shot. Transductive "
        "figures are by MAML's protocol: as many query images a class as shots, rotated test "
        "classes, statistics of the query batch. The others have 15 query images a class, each "
        "predicted by itself. A paper's figure of a learner by gradients is transductive, that of "
        "one that compares isn't; `unchecked` was quoted from memory. Each training's own figures "
        "are in the folder `omniglot-table`, the trials behind four of the schedules in "
        "[trials](omniglot-table/trials.md).",
        (("omniglot-table/table.png", "ours beside the papers'"),),
    ),
    "cifar-table": Study(
        "CIFAR-FS: learners beside their papers",
        ("cifar-table/table.json",),
        tables.learners,
        "`make cifar-fs`: accuracy in % on 5-way tasks of the test classes with 15 query images a "
        "class, with the 95 % interval over episodes; each query image is predicted by itself. "
        "Training images are cropped, mirrored and changed in colour on the device. Each "
        "training's own figures are in the folder `cifar-table`; `unchecked` was quoted from "
        "memory.",
        (
            ("cifar-table/table.png", "ours beside the papers'"),
            (
                "cifar-table/cifar-fs-conv4-prototypical-1shot-seed0/training.png",
                "training of the Prototypical Network",
            ),
        ),
    ),
    "lake": Study(
        "Lake's challenge: within an alphabet, after training on the background set alone",
        ("lake/**/result.json",),
        tables.few_shot,
        "`make omniglot-metric ARGS='--split lake'`: 25 alphabets of the background set train, 5 "
        "validate, and a task has 20 characters of one alphabet of the evaluation set. In "
        "`distorted` the training images were turned, sheared, scaled and shifted at random.",
    ),
    "cross-domain": Study(
        "Across domains: learners on images of another kind",
        ("cross-domain/table.json",),
        tables.learners,
        "`make cross-domain ARGS='--cyrillic FILE'`: models trained on Omniglot, tested on 5-way "
        "tasks of 42 handwritten Cyrillic letters, images as they are, 15 query images a class, "
        "with the 95 % interval over episodes. Beside them is the nearest class mean of pixels. "
        "Transductive figures are by the statistics of the query batch; for the others each query "
        "image is predicted by itself.",
        (("cross-domain/table.png", "learners, and pixels"),),
    ),
    "sinusoid": Study(
        "MAML on sinusoid regression",
        ("sinusoid/**/result.json",),
        tables.few_shot,
        "`make sinusoid`, beside a network trained on all tasks, and an oracle.",
        (
            ("sinusoid/fit.png", "three tasks, before and after adaptation"),
            ("sinusoid/inner_steps.png", "error after each inner step"),
        ),
    ),
    "data-weighting": Study(
        "Learned weights of training examples, nearly half of them mislabelled",
        ("data-weighting/**/result.json",),
        tables.few_shot,
        "`make data-weighting`, three seeds.",
        (("data-weighting/training.png", "training"),),
    ),
    "language": Study(
        "Language models",
        (
            "shakespeare/result.json",
            "test-time-training/result.json",
            "meta-lora/result.json",
        ),
        tables.language,
        "`make shakespeare` trains a character model in nanoGPT's CPU setting: 2,000 steps of 12 "
        "windows of 64 ([samples](shakespeare/samples.txt)). `make test-time-training` adapts "
        "low-rank factors to a task's eight examples before it answers "
        "([its answers](test-time-training/answers.txt)), `make meta-lora` meta-learns where the "
        "factors start, by second-order MAML through five inner steps; both on rules whose "
        "compositions the model never saw. Rule by rule: "
        "[test-time training](test-time-training/table.md), [meta-LoRA](meta-lora/table.md).",
        (
            ("shakespeare/training.png", "the character model's training"),
            ("test-time-training/adaptation.png", "test-time training, step by step"),
            ("meta-lora/adaptation.png", "adaptation from each start, step by step"),
        ),
    ),
    "evolution-strings": Study(
        "Self-evolution on strings of digits",
        (
            "evolve/copy-seed-*/result.json",
            "evolve/copy*/result.json",
            "evolve/reverse*/result.json",
            "evolve/damage-*/result.json",
        ),
        tables.strings,
        "Exact match in %, greedy, on fresh prompts of each length, before the first round and "
        "after the last; the control learns as many steps from real data alone. A section a run; "
        "what the runs are for is told in [self-evolution](../self-evolution.md).",
    ),
    "evolution-stories": Study(
        "A model of stories that learns to write with given words",
        ("evolve-stories/**/result.json",),
        tables.pretrained,
        "`make evolve-stories` on stories260K: stories in % that have three given words and end "
        "well, one a test task, drawn. The base is asked by the best of several prompts, chosen on "
        "other tasks. What was tried before is told in "
        "[decision 050](../decisions/050-a-part-of-the-words-earns-a-part.md); "
        "[tasks that it posed, and stories before and after](evolve-stories/seed-0/tasks.txt).",
        (("evolve-stories/seed-0/rounds.png", "validation tasks and perplexity, round by round"),),
    ),
    "evolution-programs": Study(
        "Self-evolution on programs",
        ("evolve/programs/result.json",),
        tables.programs,
        "Right answers on 265 programs written by hand, that nobody taught the model; four inputs "
        "each, greedy; one seed. The paired gains and their intervals: "
        "[table](evolve/programs/table.md); [some tasks and answers](evolve/programs/tasks.txt).",
    ),
    "evolution-pretrained": Study(
        "Self-evolution of real checkpoints",
        ("evolve-pretrained/**/result.json",),
        tables.pretrained,
        "`make evolve-pretrained`: right answers in %, greedy, on tasks that no training has seen, "
        "before the first round and after the last; the control learns as many steps from the "
        "worked examples alone. What the runs are for is told in "
        "[self-evolution](../self-evolution.md).",
    ),
    "evolution-knowledge": Study(
        "Facts from passages",
        ("evolve-knowledge/**/result.json",),
        tables.knowledge,
        "`make evolve-knowledge`: right answers in %, exact match, greedy, to questions in "
        "held-out wordings; all trained models had as many tokens, the second round and its "
        "control on top of those of their start. Pairs are compared question by question. "
        "What the parts are is told in [self-evolution](../self-evolution.md#knowledge); some "
        "questions and answers: [200 people](evolve-knowledge/people-200/questions.txt), "
        "[with twice the tokens](evolve-knowledge/people-200-128000-tokens/questions.txt), "
        "[20 people of the validation set](evolve-knowledge/validation/questions.txt).",
        (
            ("evolve-knowledge/people-200/knowledge.png", "200 people, 64,000 tokens"),
            ("evolve-knowledge/people-200-128000-tokens/knowledge.png", "with 128,000 tokens"),
            ("evolve-knowledge/validation/knowledge.png", "20 people of the validation set"),
        ),
    ),
    "benchmarks": Study(
        "Benchmarks",
        ("bench/meta_step.json", "bench/*.json", "bench/*/*.json", "soak/*.json"),
        tables.benchmarks,
        "`make bench`, `make bench-memory`, `make bench-transformer`, `make bench-lm`, "
        "`make bench-checkpoints`, `make soak`, `python -m experiments.benchmarks.devices` and "
        "`python -m experiments.benchmarks.determinism_settings`; in each section the command, "
        "machine and commit. What the figures say is in [performance](../performance.md).",
        (
            ("bench/prototypical.png", "the training step of Prototypical Networks"),
            ("bench/generation.png", "generation"),
            ("bench/lora.png", "low-rank adaptation"),
            ("bench/checkpoints.png", "checkpoints"),
        ),
    ),
}


def files(study: Study) -> list[Path]:
    """The JSON files of a study, each once, below ``FOLDER``."""
    found = [path for pattern in study.patterns for path in sorted(FOLDER.glob(pattern))]
    return list(dict.fromkeys(path.relative_to(FOLDER) for path in found))


def page(study: Study) -> str:
    """The page of a study, in Markdown."""
    found = {path: json.loads((FOLDER / path).read_text("utf-8")) for path in files(study)}
    pictures = [f"![{caption}]({file})" for file, caption in study.pictures]
    made_by = "Made by `make results` from the JSON files below this folder."
    lines = [f"# {study.title}", "", f"{study.about} {made_by}", "", *study.table(found)]
    return "\n".join([*lines, *(["", *pictures] if pictures else []), ""])
