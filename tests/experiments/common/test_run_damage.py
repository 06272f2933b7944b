"""Damage to a run's folder: the resumed run ends as an undisturbed one, or says that it can't."""

import os
import random
import shutil
import signal
import warnings

import jax
import numpy as np
import pytest
from toy_trainer import ToyConfig, ToyTrainer, toy_state, toy_trainer

from experiments import common

EXAMPLES = int(os.environ.get("METAJAX_FUZZ_EXAMPLES", "30"))
TRAINER = toy_trainer()


def stopped_at(step):
    """A trainer during whose dispatch the process gets a signal."""

    def run(state, steps):
        if int(state.step) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return TRAINER.run(state, steps)

    return ToyTrainer(run)


def fit(out, trainer=TRAINER, **options):
    config = ToyConfig(out=out, steps=60, **options)
    run = common.open_run("toy", config)
    common.create(run)
    validate = lambda params: {"loss": float(params["w"].sum())}
    fitted = common.fit(
        run, trainer, toy_state(config.seed), steps=60, validate=validate, validate_every=20
    )
    best = common.best_params(run, toy_state().params)
    times = ("seconds",)
    lines = [{k: v for k, v in line.items() if k not in times} for line in fitted.metrics]
    leaves = jax.tree.leaves((fitted.state._replace(key=0), best))
    return [np.asarray(leaf).tobytes() for leaf in leaves], lines


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What an undisturbed run ends with; folders of one that was stopped, and of another."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("stopped", 0), ("other", 1)):
        with pytest.raises(KeyboardInterrupt):
            fit(folder / name, stopped_at(30), seed=seed)
    return folder, fit(folder / "whole")


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def damage(rng, folder, other):
    """Does one thing to a folder; says which."""
    path = rng.choice(files(folder))
    kind = rng.choice(["flip", "cut", "empty", "remove", "swap", "foreign", "folder", "extra"])
    content = bytearray(path.read_bytes())
    match kind:
        case "flip" if content:
            content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[: rng.randrange(len(content) + 1)])
        case "empty":
            path.write_bytes(b"")
        case "remove":
            path.unlink()
        case "swap":
            second = rng.choice(files(folder))
            content, theirs = path.read_bytes(), second.read_bytes()
            path.write_bytes(theirs)
            second.write_bytes(content)
        case "foreign":
            theirs = other / path.relative_to(folder)
            theirs = theirs if theirs.is_file() else rng.choice(files(other))
            path.write_bytes(theirs.read_bytes())
        case "folder":
            part = rng.choice(["checkpoints", "best", "checkpoints/20", "checkpoints/40"])
            shutil.rmtree(folder / part, ignore_errors=True)
            if rng.random() < 0.5 and (folder / part).parent.is_dir():
                shutil.copytree(other / part, folder / part)
        case "extra":
            name = f"0{rng.randrange(10**6)}"
            shutil.copytree(other / "checkpoints" / "20", folder / "checkpoints" / name)
    return kind, path


def test_no_damage_is_silent(runs, tmp_path):
    folder, expected = runs
    for seed in range(EXAMPLES):
        rng, out = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(folder / "stopped", out)
        done = [damage(rng, out, folder / "other") for _ in range(rng.choice([1, 1, 2]))]
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                found = fit(out, resume=True)
            except (common.RunError, common.NonFiniteError):
                continue
        assert found == expected or warned, done
        shutil.rmtree(out)
