"""Meta-learning in JAX: adaptation as a pure function, and what stands on it."""

from metajax import losses
from metajax.adapt import AdaptInfo, adapt
from metajax.devices import task_mesh, use_every_core
from metajax.evaluate import Scores, evaluate
from metajax.interop import from_linen, from_nnx
from metajax.learners import (
    Learner,
    MAMLPlusPlusParams,
    MetaSGDParams,
    anil,
    maml,
    maml_plus_plus,
    meta_sgd,
    reptile,
)
from metajax.metagrad import meta_gradient
from metajax.modes import GradientMode, first_order, mixed, rematerialised, unrolled
from metajax.train import Trainer, TrainState, meta_trainer
from metajax.trees import combine, partition
from metajax.types import Batch, Episode, Sampler

__version__ = "0.1.0"

__all__ = [
    "AdaptInfo",
    "Batch",
    "Episode",
    "GradientMode",
    "Learner",
    "MAMLPlusPlusParams",
    "MetaSGDParams",
    "Sampler",
    "Scores",
    "TrainState",
    "Trainer",
    "adapt",
    "anil",
    "combine",
    "evaluate",
    "first_order",
    "from_linen",
    "from_nnx",
    "losses",
    "maml",
    "maml_plus_plus",
    "meta_gradient",
    "meta_sgd",
    "meta_trainer",
    "mixed",
    "partition",
    "rematerialised",
    "reptile",
    "task_mesh",
    "unrolled",
    "use_every_core",
]
