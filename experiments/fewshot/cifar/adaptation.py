"""How learners by gradients are trained and tested: see ``experiments.fewshot.cifar.train``."""

from typing import Any

import flax.linen as nn
import jax
import optax

import metajax
from experiments import common
from experiments.fewshot import networks, training
from experiments.fewshot.cifar.config import (
    SIZE,
    WAYS,
    Config,
    augmented,
    load,
    module_of,
    plain,
    target_of,
)
from experiments.fewshot.cifar.published import TITLES, published
from experiments.fewshot.comparing import QUERY_AT_TEST
from experiments.fewshot.networks import Network
from experiments.fewshot.schedules import (
    LearnerOfNetwork,
    Schedule,
    anil_learner,
    maml_learner,
    maml_plus_plus_learner,
    multi_step,
    muon,
    warmup_cosine,
    with_learned_rates,
)
from metajax import losses, models
from metajax.learners import Learner

TASKS = 4
STEPS = 5
RATE = 0.1


def network_of(config: Config, key: jax.Array) -> Network:
    """A network with a head of five classes; of features alone for Proto-MAML."""
    options: dict[str, Any] = {}
    if config.method != "proto-maml":
        options = {"n_classes": WAYS, "head_init": nn.initializers.normal(head_std(config))}
    return networks.network_of(module_of(config, norm="batch", **options), key, (SIZE, SIZE, 3))


def head_std(config: Config) -> float:
    """The head's initial deviation, Flax's default for its inputs; 0 where prototypes make it."""
    if config.method == "proto-maml":
        return 0.0
    inputs = 4 * config.features if config.body == "conv4" else 10 * config.features
    return inputs**-0.5


def proto_maml_learner(inner_rate: float) -> LearnerOfNetwork:
    """Proto-MAML with gradient descent on all but the normalisation's shift and scale."""

    def build(network: Network, steps: int, *, transductive: bool = True) -> Learner:
        def logits(params: Any, images: jax.Array, **options: Any) -> jax.Array:
            features = network.apply_with(params["body"], images, **options)
            return features @ params["head"]["kernel"] + params["head"]["bias"]

        return metajax.proto_maml(
            network.apply,
            optax.sgd(inner_rate),
            n_way=WAYS,
            steps=steps,
            trainable=models.adapts_in_maml,
            outer_loss=None if transductive else losses.cross_entropy_given_support(logits),
        )

    return build


def schedule_of(config: Config) -> Schedule:
    """The schedule of a method: five inner steps, in training and at test."""
    learner: dict[str, LearnerOfNetwork] = {
        "maml": maml_learner(RATE, learned_rates=True),
        "fomaml": maml_learner(RATE, learned_rates=True, mode=metajax.first_order()),
        "anil": anil_learner(RATE, learned_rates=True),
        "maml++": maml_plus_plus_learner(RATE),
        "proto-maml": proto_maml_learner(RATE),
    }
    chosen = learner[config.method]
    optimizer = muon(warmup_cosine(config.rate, config.steps))
    learned = config.method != "proto-maml"
    return Schedule(
        description=config.words + (", learned inner rates" if learned else ""),
        steps=config.steps,
        meta_batch=TASKS,
        learner=chosen,
        trained=multi_step(chosen, config.steps // 10) if config.method == "maml++" else None,
        inner_rate=f"{RATE} at first, learned for each leaf" if learned else RATE,
        inner_steps=STEPS,
        test_steps=STEPS,
        head_std=round(head_std(config), 3),
        rotations="none",
        optimizer=with_learned_rates(optimizer) if learned else optimizer,
        curve_steps=STEPS,
    )


def train_and_test(run: common.Run, config: Config, *, command: str) -> str:
    """Trains, tests and writes the table into the run folder; returns it."""
    data, schedule = load(config.data_set), schedule_of(config)
    network = network_of(config, jax.random.key(config.seed))
    known = published(config.data_set, config.body, config.method)
    sampler = lambda split: plain(data[split], WAYS, config.k_shot, QUERY_AT_TEST)
    learner = lambda transductive: schedule.learner(
        network, schedule.test_steps, transductive=transductive
    )
    options = {"inner_steps": schedule.test_steps, "query": QUERY_AT_TEST}
    rows = training.both_ways(
        f"{WAYS}-way {config.k_shot}-shot",
        learner,
        sampler("test"),
        paper=known.figures.get(config.k_shot),
        curve=True,
        **options,
    )
    if (other := target_of(config, data)) is not None:
        sample = other.sample(config.k_shot, QUERY_AT_TEST)
        rows += training.both_ways(other.task(config.k_shot), learner, sample, **options)
    fitted = training.train(
        run,
        network,
        schedule,
        (augmented if config.augment else plain)(data["train"], WAYS, config.k_shot, config.query),
        sampler("validation"),
        validate_every=config.validate_every,
        non_finite=config.non_finite,
    )
    return training.publish(
        run,
        network,
        schedule,
        fitted,
        rows,
        picture=plain(data["test"], WAYS, config.k_shot, 5),
        episodes=config.test_episodes,
        title=f"{TITLES[config.method]} on {config.data_set.upper()}, {config.k_shot}-shot",
        source=known.source,
        training={
            "shots": config.k_shot,
            "query per class": config.query,
            "seed": config.seed,
        },
        command=command,
    )
