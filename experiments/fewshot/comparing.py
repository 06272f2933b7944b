"""Meta-training and test of learners that compare images: what their experiments share."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import optax

import metajax
from experiments import common
from experiments.common import plots
from experiments.fewshot import target_domain
from experiments.fewshot.target_domain import TargetDomain
from experiments.fewshot.training import VALIDATION_EPISODES, Evaluation, measure
from metajax.data import ClassData
from metajax.errors import ArgumentError

QUERY_AT_TEST = 15
TITLES = {
    "prototypical": "Prototypical Networks",
    "matching": "Matching Networks",
    "relation": "Relation Networks",
    "r2d2": "R2-D2",
    "metaoptnet": "MetaOptNet",
}
UNCHECKED = " (unchecked)"
"""Marks published figures quoted from memory: no second source was at hand."""
R2D2_PENALTY = 50.0
R2D2_SCALE = 10.0
"""What λ and the logits' scale α start from; from 1 each, α has reached 2 after 400 meta-steps."""
MATCHING_SCALE = 30.0
"""What the cosine is multiplied by: within [-1, 1] a softmax over 20 images can't be sure."""


class Network(NamedTuple):
    """What the learners compare images with.

    Attributes:
        variables: collections of parameters and running statistics.
        embed: ``embed(variables, images, train=...)``: features, in training with the changed
            statistics.
        relate: the same of pairs of feature maps; None but for Relation Networks.
        keyed: whether ``embed`` takes a random ``key=`` in training, of what it drops.
    """

    variables: Any
    embed: Callable[..., Any]
    relate: Callable[..., Any] | None = None
    keyed: bool = False


def reporting(
    apply: metajax.losses.Apply,
    part: str | None = None,
    after: Callable[[jax.Array], jax.Array] = lambda outputs: outputs,
) -> Callable[..., Any]:
    """``apply`` to a part of the variables, and ``after`` to its outputs; in training by the
    batch's statistics, and with the changed running ones."""

    def applied(variables: Any, inputs: jax.Array, *, train: bool, **options: Any) -> Any:
        used = {kind: tree if part is None else tree[part] for kind, tree in variables.items()}
        if not train:
            return after(apply(used, inputs, train=False))
        outputs, changed = apply(used, inputs, mutable=["batch_stats"], **options)
        return after(outputs), changed if part is None else {
            kind: {part: tree} for kind, tree in changed.items()
        }

    return applied


def learner_of(method: str, network: Network, *, n_way: int, train: bool) -> metajax.Learner:
    """A method of ``TITLES`` on episodes of so many classes.

    In training the batch's statistics normalise, and the running ones are reported; at test these
    do.
    """
    embed = functools.partial(network.embed, train=train)
    if network.keyed and train:
        embed = metajax.keyed(
            lambda params, images, key: network.embed(params, images, train=True, key=key)
        )
    if method == "matching":
        return metajax.matching(embed, n_way=n_way, scale=MATCHING_SCALE)
    if method == "relation":
        assert network.relate is not None
        relate = functools.partial(network.relate, train=train)
        return metajax.relation(embed, relate, n_way=n_way)
    if method == "r2d2":
        return metajax.r2d2(embed, n_way=n_way, penalty=R2D2_PENALTY, scale=R2D2_SCALE)
    if method == "metaoptnet":
        return metajax.metaoptnet(embed, n_way=n_way)
    return metajax.prototypical(embed, n_way=n_way)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.TrainingConfig):
    """Options that these experiments share."""

    k_shot: int = 1
    """Support images of each class, in training and at test."""
    train_way: int
    """Classes of a training episode."""
    test_episodes: int = 1000
    """Test tasks in each row of the table."""
    validate_every: int = 500
    """Meta-steps between validations (200 tasks of the validation classes)."""
    target_domain: str | None = None
    """Images of another kind, which the model is tested on too: a folder with a folder for each
    class, or an npz file of images x and classes y; with colour also fc100, of whose test classes
    those remain that the training doesn't have."""

    may_differ: ClassVar[frozenset[str]] = common.TrainingConfig.may_differ | {
        "target_domain",
        "test_episodes",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "k_shot", "validate_every")
        if self.train_way < 2:
            raise ArgumentError(f"train_way must be at least 2; got {self.train_way}")
        if self.test_episodes < 2:
            raise ArgumentError(f"test_episodes must be at least 2; got {self.test_episodes}")


Sample = Callable[..., metajax.Sampler]
"""``sample(data, n_way, k_shot, query)`` draws episodes."""


class Comparison(NamedTuple):
    """What is trained, and what it is tested on.

    Attributes:
        method: of ``TITLES``.
        data_set: its name, for the table's title.
        source: where the published figures are from.
        published: these, by ``(n_way, k_shot)``.
        network: compares the images; ``keys_of(config)`` has its random key.
        description: of the schedule, in words.
        optimizer: the outer one.
        data: the splits, by name.
        sample: draws training episodes.
        test_sample: draws episodes of validation and test.
        query: query images of a class in training.
        ways: classes of the test tasks; validation has as many as the last.
        target_domain: another data set, which is tested on too.
    """

    method: str
    data_set: str
    source: str
    published: Mapping[tuple[int, int], str]
    network: Network
    description: str
    optimizer: optax.GradientTransformation
    data: Mapping[str, ClassData]
    sample: Sample
    test_sample: Sample
    query: int
    ways: Sequence[int]
    target_domain: TargetDomain | None = None

    def learner(self, n_way: int, *, train: bool) -> metajax.Learner:
        """The method on episodes of so many classes."""
        return learner_of(self.method, self.network, n_way=n_way, train=train)


def keys_of(config: Config) -> jax.Array:
    """The random keys of the network, the training tasks and the validation."""
    return jax.random.split(jax.random.key(config.seed), 3)


def evaluation(
    task: str,
    learner: metajax.Learner,
    sample: metajax.Sampler,
    paper: str | None = None,
    by: str = "running statistics",
) -> Evaluation:
    """A row of a learner that doesn't adapt: no query image sees another one."""
    return Evaluation(
        task=task,
        protocol=f"{by}: not transductive",
        learner=learner,
        sample=sample,
        inner_steps=0,
        query=QUERY_AT_TEST,
        transductive=False,
        paper=paper,
    )


def train_and_test(run: common.Run, config: Config, comparison: Comparison, *, command: str) -> str:
    """Trains, tests and writes the table into the run folder; returns it.

    Args:
        run: the run.
        config: its options.
        comparison: what is trained.
        command: what makes this run again.
    """
    _, key_tasks, _ = keys_of(config)
    # An episode is one batch to the normalisation, so it isn't shared between devices: all cores
    # work on its large operations.
    trainer = metajax.meta_trainer(
        comparison.learner(config.train_way, train=True),
        comparison.optimizer,
        comparison.sample(
            comparison.data["train"], config.train_way, config.k_shot, comparison.query
        ),
        meta_batch=1,
        carry=metajax.carry_statistics,
        non_finite=config.non_finite,
    )

    def test(split: str, n_way: int) -> Evaluation:
        sample = comparison.test_sample(comparison.data[split], n_way, config.k_shot, QUERY_AT_TEST)
        paper = comparison.published.get((n_way, config.k_shot))
        learner = comparison.learner(n_way, train=False)
        return evaluation(f"{n_way}-way {config.k_shot}-shot", learner, sample, paper)

    tests = [test("test", n_way) for n_way in comparison.ways]
    if (other := comparison.target_domain) is not None:
        learner = comparison.learner(target_domain.WAYS, train=False)
        sample = other.sample(config.k_shot, QUERY_AT_TEST)
        tests.append(evaluation(other.task(config.k_shot), learner, sample))
    return fit_and_test(
        run,
        config,
        trainer,
        trainer.init(comparison.network.variables, key_tasks),
        validation=test("validation", comparison.ways[-1]),
        tests=tests,
        title=f"{TITLES[comparison.method]} on {comparison.data_set}, {config.k_shot}-shot",
        source=comparison.source,
        schedule=comparison.description,
        training={
            "ways": config.train_way,
            "shots": config.k_shot,
            "query per class": comparison.query,
        },
        command=command,
    )


def fit_and_test(
    run: common.Run,
    config: Config,
    trainer: metajax.Trainer,
    state: metajax.TrainState,
    *,
    validation: Evaluation,
    tests: Sequence[Evaluation],
    training: Mapping[str, Any],
    **facts: Any,
) -> str:
    """Trains, tests and writes the table into the run folder; returns it.

    Args:
        run: the run.
        config: its options.
        trainer: its loss keeps running statistics.
        state: the initial state.
        validation: what is validated on, now and then.
        tests: the table's rows.
        training: what the table says of the training, beside its steps and seed.
        **facts: title, source, schedule and command of the report.
    """
    score = metajax.evaluator(
        validation.learner,
        validation.sample,
        episodes=VALIDATION_EPISODES,
        curve=False,
        mesh=metajax.task_mesh(VALIDATION_EPISODES),
    )
    key = keys_of(config)[2]
    fitted = common.fit(
        run,
        trainer,
        state,
        steps=config.steps,
        validate=lambda params: score(params, key).mean,
        validate_every=config.validate_every,
    )
    started = time.perf_counter()
    rows, _ = measure(fitted.state.params, tests, episodes=config.test_episodes)
    report = common.Report(
        metric="accuracy in % ± 95 % CI",
        training={"steps": config.steps, **training, "seed": config.seed},
        rows=rows,
        seconds={"training": fitted.seconds, "evaluation": time.perf_counter() - started},
        environment=common.environment(),
        **facts,
    )
    table = common.write_report(run.path, report)
    plots.training_curve(run.path / "training.png", fitted.metrics)
    return table
