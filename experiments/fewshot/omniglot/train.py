"""MAML on Omniglot, beside the numbers of Finn et al. 2017 (arXiv 1703.03400), table 1.

python -m experiments.fewshot.omniglot trains with our own faster schedule: 16,000 meta-steps of 8
tasks, an inner rate learned for every leaf as in MAML++, the four rotations of a character as
classes of their own, Muon with warm-up and cosine decay. Expected: 99.10 ± 0.33 % (5-way 1-shot)
and 99.49 ± 0.09 % (5-shot, the same model), trained in seven minutes on two CPU cores.

--protocol paper trains as the paper's published code does: 60,000 meta-steps, one rotation per
class and task, constant Adam. Expected: 99.30 ± 0.26 % and 99.66 ± 0.07 %; on two cores the last
50,500 of them took 81 minutes.

--method takes another learner on the same network: fomaml, reptile, anil, maml++, imaml.

All are evaluated by the paper's protocol, the 5-shot row from the 1-shot model included, and by
an honest one: normalised with the support set's statistics, 15 query images a class.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import jax

import metajax
from experiments import common
from experiments.fewshot import networks, target_domain
from experiments.fewshot.omniglot.published import BY_GRADIENTS, TITLES
from experiments.fewshot.omniglot.schedules import Method, Protocol, schedule_of
from experiments.fewshot.schedules import Schedule
from experiments.fewshot.seeds import one_of
from experiments.fewshot.training import Evaluation, both_ways, publish, tasks_of, train
from metajax.data import ClassData, Rotations, episode_sampler, omniglot
from metajax.errors import ArgumentError

HONEST_QUERY = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.DistributedConfig):
    """Options of the Omniglot experiment; steps and head_std are by default the schedule's."""

    protocol: Protocol = "fast"
    """How to train: our faster schedule, or the paper's exactly. Both are evaluated alike."""
    n_way: int = 5
    """Classes in a task."""
    k_shot: int = 1
    """Support images of each class in training, and as many query images."""
    method: Method = "maml"
    """The learner."""
    norm: Literal["batch", "support"] = "batch"
    """Statistics that normalise the query set in training: its own (transductive, as in the
    paper), or the support set's."""
    head_std: float
    """Standard deviation of the head's initial weights."""
    test_episodes: int = 1000
    """Test tasks in each row of the table."""
    validate_every: int = 1000
    """Meta-steps between validations (200 tasks of the validation classes)."""
    tasks_per_chunk: int | Literal["auto"] | None = None
    """Tasks that are computed together; "auto" for as many as fit the cache or the memory; without
    it, what measurement chose for the backend."""
    data: Path | None = None
    """Folder with Omniglot's zip files (images_background.zip, images_evaluation.zip) or with
    them unpacked; without it: the cache, tensorflow-datasets, or a download."""

    seeds: int = 1
    """Runs at once as one program, of this seed and those after it; each is tested, and leaves a
    folder of its own. For an accelerator with room for them."""
    target_domain: str | None = None
    """Images of another kind, which the model is tested on too, 5-way: a folder with a folder for
    each class, or an npz file of images x and classes y."""

    may_differ: ClassVar[frozenset[str]] = common.DistributedConfig.may_differ | {
        "data",
        "target_domain",
        "test_episodes",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "k_shot", "validate_every", "head_std", "seeds")
        if self.seeds > 1 and (self.distributed or self.non_finite == "raise"):
            raise ArgumentError(
                "seeds above 1 is for one process, and for another non_finite than 'raise'; got "
                f"seeds={self.seeds}"
            )
        if self.tasks_per_chunk != "auto":
            common.check_positive(self, "tasks_per_chunk")
        if self.n_way < 2:
            raise ArgumentError(f"n_way must be at least 2; got {self.n_way}")
        if self.target_domain is not None and self.n_way != target_domain.WAYS:
            raise ArgumentError(
                f"target_domain has tasks of {target_domain.WAYS} classes, and so must the head; "
                f"got n_way={self.n_way}"
            )
        if self.test_episodes < 2:
            raise ArgumentError(f"test_episodes must be at least 2; got {self.test_episodes}")

    def goes_on_from(self, steps: int) -> bool:
        """The paper's rate is constant: a finished run may be given more meta-steps."""
        constant = self.protocol == "paper" and self.method in ("maml", "fomaml", "anil", "imaml")
        more = steps < self.steps and steps % self.log_every == 0
        return super().goes_on_from(steps) or (constant and more)


def preset(method: Method = "maml", protocol: Protocol = "fast", n_way: int = 5) -> Config:
    """The config of a method's schedule."""
    schedule = schedule_of(method, protocol, n_way=n_way)
    return Config(
        method=method,
        protocol=protocol,
        n_way=n_way,
        steps=schedule.steps,
        head_std=schedule.head_std,
    )


def evaluations(
    config: Config,
    schedule: Schedule,
    network: networks.Network,
    data: ClassData,
) -> list[Evaluation]:
    """The rows of the table: the paper's evaluation and the honest one, 1-shot and 5-shot."""
    published = BY_GRADIENTS[config.method][1]

    def learner(transductive: bool, steps: int) -> metajax.Learner:
        return schedule.learner(network, steps, transductive=transductive)

    rows = []
    for k_shot in sorted({config.k_shot, 5}):
        # The curve's steps take their time with many images: it is drawn once.
        curve = schedule.curve_steps > 0 and k_shot == config.k_shot
        paper = published.get((config.n_way, k_shot))
        protocols: list[tuple[str, bool, Rotations, int, bool, str | None]] = [
            ("paper's: transductive, rotated test classes", True, "per_class", k_shot, curve,
             paper),
            ("transductive, unrotated test classes", True, "none", k_shot, curve, None),
            ("honest: not transductive, rotated test classes", False, "per_class", HONEST_QUERY,
             False, None),
        ]  # fmt: skip
        for protocol, transductive, rotations, query, curve, figure in protocols:
            steps = schedule.curve_steps if curve else schedule.test_steps
            sample = episode_sampler(
                data, n_way=config.n_way, k_shot=k_shot, query=query, rotations=rotations
            )
            rows.append(
                Evaluation(
                    task=f"{config.n_way}-way {k_shot}-shot",
                    protocol=protocol,
                    learner=learner(transductive, steps),
                    sample=sample,
                    inner_steps=schedule.test_steps,
                    query=query,
                    transductive=transductive,
                    paper=figure,
                    curve=curve,
                )
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, evaluates, and leaves everything in the run folder."""
    config = common.parse(Config, arguments, __doc__ or "", preset=preset)
    common.connect(config)
    schedule = schedule_of(
        config.method,
        config.protocol,
        n_way=config.n_way,
        steps=config.steps,
        head_std=config.head_std,
    )
    method = "" if config.method == "maml" else f"-{config.method}"
    name = f"omniglot{method}-{config.protocol}-{config.n_way}way-{config.k_shot}shot"
    run = common.open_run(name, config)

    data = {split: omniglot(split, folder=config.data) for split in ("train", "validation", "test")}
    several = [
        networks.conv4(
            config.n_way,
            jax.random.key(config.seed + number),
            head_std=schedule.head_std,
            form=schedule.form,
        )
        for number in range(config.seeds)
    ]
    network = several[0]
    rows = evaluations(config, schedule, network, data["test"])
    other = target_domain.read(config.target_domain, size=28, channels=1, known=())
    if other is not None:
        learner = lambda transductive: schedule.learner(
            network, schedule.test_steps, transductive=transductive
        )
        for k_shot in sorted({config.k_shot, 5}):
            rows += both_ways(
                other.task(k_shot),
                learner,
                other.sample(k_shot, HONEST_QUERY),
                inner_steps=schedule.test_steps,
                query=HONEST_QUERY,
            )
    picture = episode_sampler(
        data["test"], n_way=config.n_way, k_shot=config.k_shot, query=5, rotations="per_class"
    )
    fitted = train(
        run,
        several if config.seeds > 1 else network,
        schedule,
        *tasks_of(
            schedule, data["train"], data["validation"], n_way=config.n_way, k_shot=config.k_shot
        ),
        validate_every=config.validate_every,
        transductive=config.norm == "batch",
        tasks_per_chunk=config.tasks_per_chunk,
        non_finite=config.non_finite,
    )
    for number in range(config.seeds):
        seed, part, own = config.seed + number, run, fitted
        if config.seeds > 1:
            part = run._replace(path=run.path / f"seed-{seed}")
            common.create(part)
            own = fitted._replace(state=one_of(fitted.state.runs, number))
        table = publish(
            part,
            network,
            schedule,
            own,
            rows,
            picture=picture,
            episodes=config.test_episodes,
            title=f"{TITLES[config.method]} on Omniglot, {config.n_way}-way",
            source=BY_GRADIENTS[config.method][0],
            training={
                "shots": config.k_shot,
                "normalisation": config.norm,
                "seed": seed,
                **({"seeds in one program": config.seeds} if config.seeds > 1 else {}),
            },
            command=common.command("experiments.fewshot.omniglot", config, preset=preset),
        )
        common.finish(
            part.path, table, then="make omniglot-metric trains a learner by comparison beside it."
        )
