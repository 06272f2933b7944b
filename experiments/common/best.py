"""The best parameters by validation, kept beside the last ones."""

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from experiments.common.checkpoints import Checkpoints
from experiments.common.config import RunError
from experiments.common.folder import Run
from experiments.common.metrics import read_metrics

ParamsT = TypeVar("ParamsT")


class Best(Checkpoints):
    """Keeps the parameters with the highest ``accuracy`` or, where there is none, the lowest
    ``loss``, of those that ``offer`` is given; of equals the first.

    Validation with other scores than these keeps none.

    Args:
        run: whose they are.
        template: parameters of the same structure, shapes and dtypes.
    """

    def __init__(self, run: Run, template: Any) -> None:
        super().__init__(run.path / "best", run=run)
        lines = read_metrics(run.path / "metrics.jsonl") if run.config.resume else []
        try:
            found = self.restore(_scored(template, 0.0))
            if found is None and any(line.get("validation_loss") is not None for line in lines):
                raise RunError(f"{self.folder} has none")
        except RunError as error:  # no reason not to train on
            warnings.warn(f"the best parameters until here are lost: {error}", stacklevel=2)
            found = None
        self._score = -np.inf if found is None else float(found[0]["score"])

    def offer(self, step: int, params: Any, scores: Mapping[str, float]) -> None:
        """Writes the parameters of a meta-step if they are better than all before.

        A resumed run offers some again: they are no better than themselves.
        """
        if "accuracy" in scores:
            score = float(np.float32(scores["accuracy"]))
        elif "loss" in scores:
            score = -float(np.float32(scores["loss"]))
        else:
            return
        if score > self._score:
            self.save(step, _scored(params, score))
            self._score = score


def best_params(run: Run, template: ParamsT) -> ParamsT:
    """The parameters that ``fit`` found best by its validation, read from the run's folder.

    The best has the highest ``accuracy`` on the validation tasks or, where ``validate`` gives no
    accuracy, the lowest ``loss``; of equals the first. Chosen among many, its own validation score
    is too good: test it on other tasks.

    Args:
        run: a run, finished or not, or a part of one; its ``path`` is what counts.
        template: parameters of the same structure, shapes and dtypes, such as the initial ones.

    Raises:
        RunError: none were kept, they are of another model, or none can be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import jax.numpy as jnp
        >>> from experiments.common import RunConfig
        >>> with tempfile.TemporaryDirectory() as name:
        ...     run = Run("toy", Path(name), RunConfig(steps=200))
        ...     with Best(run, {"w": jnp.zeros(2)}) as best:
        ...         best.offer(100, {"w": jnp.ones(2)}, {"accuracy": 0.9})
        ...         best.offer(200, {"w": jnp.zeros(2)}, {"accuracy": 0.8})
        ...     best_params(run, {"w": jnp.zeros(2)})["w"].tolist()
        [1.0, 1.0]
    """
    folder = run.path / "best"
    if folder.is_dir():
        with Checkpoints(folder) as checkpoints:
            found = checkpoints.restore(_scored(template, 0.0))
            if found is not None:
                return found[0]["params"]
    raise RunError(
        f"{folder} holds no parameters: give fit a validate that returns an accuracy or a loss"
    )


def _scored(params: Any, score: float) -> dict[str, Any]:
    return {"params": params, "score": np.float32(score)}
