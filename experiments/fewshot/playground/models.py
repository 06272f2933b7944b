"""The playground's two models: MAML and a Prototypical Network, trained on tasks as the page's."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

import metajax
from experiments import common
from experiments.fewshot import comparing, networks
from experiments.fewshot.omniglot.networks import network_of
from experiments.fewshot.schedules import maml_learner, muon, warmup_cosine
from experiments.fewshot.training import Evaluation, measure
from metajax.data import ClassData, episode_sampler, variable_episode_sampler
from metajax.files import read_json
from metajax.types import Params, Sampler

Name = Literal["maml", "prototypical"]

SIZE = 28
LEAST, MOST = 2, 5
"""Classes of a task; MAML's head has room for the most."""
INNER_STEPS = 3
TRAIN_WAY = 20
QUERY = 5
TEST_EPISODES = 400
TITLES: dict[Name, str] = {"maml": "MAML", "prototypical": "Prototypical Network"}


class Model(NamedTuple):
    """A learner before its training.

    Attributes:
        trained: what is trained.
        learner: what adapts to a task of two to five classes.
        params: the initial parameters.
        tasks: draws the training tasks from data.
        meta_batch: how many of them a meta-step has.
        steps: meta-steps, for so many of MAML's.
        rate: the outer learning rate at its peak.
        carry: what takes running statistics over; None where there are none.
    """

    trained: metajax.Learner
    learner: metajax.Learner
    params: Params
    tasks: Callable[[ClassData], Sampler]
    meta_batch: int
    steps: Callable[[int], int]
    rate: float
    carry: Callable[..., Any] | None = None


def two_to_five(data: ClassData, *, least: int = LEAST, query: int = 1) -> Sampler:
    """Tasks of two to five classes, one example each, in arrays that have room for five."""
    return variable_episode_sampler(data, min_way=least, max_way=MOST, max_shot=1, query=query)


def model_of(name: Name, key: jax.Array) -> Model:
    """A model with random parameters."""
    if name == "maml":
        network = networks.conv4(MOST, key, head_std=networks.HEAD_STD)
        learner = maml_learner(0.4)(network, INNER_STEPS, transductive=False)
        return Model(
            learner,
            learner,
            network.params,
            two_to_five,
            meta_batch=8,
            steps=lambda steps: steps,
            rate=3e-3,
        )
    network = network_of("prototypical", key)
    return Model(
        comparing.learner_of(name, network, n_way=TRAIN_WAY, train=True),
        comparing.learner_of(name, network, n_way=MOST, train=False),
        network.variables,
        lambda data: episode_sampler(data, n_way=TRAIN_WAY, k_shot=1, query=QUERY),
        meta_batch=1,
        steps=lambda steps: max(1, steps // 3),
        rate=5e-3,
        carry=metajax.carry_statistics,
    )


class DataSet(NamedTuple):
    """What a data set's images look like, so that the page draws alike.

    Attributes:
        title: its name, in a sentence.
        side: the longer side of the ink, in pixels; the median of the training images.
        width: the width of the line, likewise.
    """

    title: str
    side: float
    width: float


DATA_SETS = {
    "glyphs": DataSet("characters drawn from fonts", side=21.0, width=2.9),
    "omniglot": DataSet("Omniglot's handwritten characters", side=18.0, width=1.5),
}


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        learner: what adapts.
        params: its meta-parameters.
        rows: its accuracy on new characters, in percent, as ``common.Row`` has it.
    """

    learner: metajax.Learner
    params: Params
    rows: list[dict[str, Any]]


def trained(
    name: Name,
    config: common.RunConfig,
    folder: Path,
    load: Callable[[Any], ClassData],
    *,
    data_set: str,
    command: str,
) -> Trained:
    """The model in a run folder, trained there before if it wasn't, or not to the end.

    Args:
        name: which one.
        config: the options of the run.
        folder: the run folder.
        load: ``load(split)`` gives the data; not called where the model is there.
        data_set: the data's name.
        command: what makes this again.
    """
    started = (folder / "config.json").exists()
    keys = jax.random.split(jax.random.key(config.seed), 3)
    model = model_of(name, keys[0])
    config = dataclasses.replace(
        config, out=folder, resume=started, steps=model.steps(config.steps)
    )
    run = common.open_run(f"playground-{data_set}-{name}", config)
    result = folder / "result.json"
    if started and result.exists():
        found = common.best_params(run, model.params)
        return Trained(model.learner, found, read_json(result)["rows"])
    trainer = metajax.meta_trainer(
        model.trained,
        muon(warmup_cosine(model.rate, config.steps)),
        model.tasks(load("train")),
        meta_batch=model.meta_batch,
        carry=model.carry,
        mesh=metajax.task_mesh(model.meta_batch),
    )
    validation = two_to_five(load("validation"), query=QUERY)
    score = metajax.evaluator(
        model.learner, validation, curve=False, mesh=metajax.task_mesh(jax.device_count())
    )
    fitted = common.fit(
        run,
        trainer,
        trainer.init(model.params, keys[1]),
        steps=config.steps,
        validate=lambda params: score(params, keys[2]).mean,
        validate_every=200,
    )
    params = common.best_params(run, model.params)
    tested = time.perf_counter()
    rows, _ = measure(
        params,
        [
            Evaluation(
                task=task,
                protocol="one example a class: not transductive",
                learner=model.learner,
                sample=two_to_five(load("test"), least=least, query=QUERY),
                inner_steps=INNER_STEPS if name == "maml" else 0,
                query=QUERY,
                transductive=False,
            )
            for task, least in (("five classes", MOST), ("two to five classes", LEAST))
        ],
        episodes=TEST_EPISODES,
    )
    report = common.Report(
        title=f"{TITLES[name]} of the playground, on {DATA_SETS[data_set].title}",
        metric="accuracy in % ± 95 % CI",
        source="none",
        schedule="Muon with warm-up and cosine decay; the best of the validations",
        training={"steps": config.steps, "tasks a step": model.meta_batch, "seed": config.seed},
        rows=rows,
        seconds={"training": fitted.seconds, "evaluation": time.perf_counter() - tested},
        command=command,
        environment=common.environment(),
    )
    common.write_report(folder, report)
    return Trained(model.learner, params, [row._asdict() for row in rows])
