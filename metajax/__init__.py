"""Meta-learning in JAX: adaptation as a pure function, and what stands on it."""

import importlib.metadata

from metajax import losses
from metajax.adapt import AdaptInfo, adapt
from metajax.check import Check, LearnerReport, Slope, check_gradient, check_learner
from metajax.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckError,
    FileError,
    MetajaxError,
    NonFiniteError,
    ServerError,
)
from metajax.evaluate import Scores, evaluate, evaluate_episodes, evaluator
from metajax.export import export
from metajax.interop import from_linen, from_nnx
from metajax.keys import is_keyed, keyed
from metajax.learners import (
    CAVIAParams,
    Learner,
    MAMLPlusPlusParams,
    MetaCurvatureParams,
    MetaOptNetParams,
    MetaSGDParams,
    R2D2Params,
    anil,
    boil,
    carry_statistics,
    cavia,
    imaml,
    linear_probe,
    maml,
    maml_plus_plus,
    matching,
    meta_curvature,
    meta_sgd,
    metaoptnet,
    proto_maml,
    prototypical,
    r2d2,
    relation,
    reptile,
)
from metajax.masks import masked
from metajax.meta_gradient import meta_gradient
from metajax.modes import (
    GradientMode,
    first_order,
    mixed,
    rematerialised,
    truncated,
    unrolled,
)
from metajax.parallel import shard_params, task_mesh, use_every_core
from metajax.trainer import Trainer, TrainState, meta_trainer
from metajax.trees import combine, partition
from metajax.types import Batch, Episode, MaskedBatch, Sampler

try:
    __version__ = importlib.metadata.version("metajax")
except importlib.metadata.PackageNotFoundError:
    __version__ = "0+unknown"  # read from a folder that isn't installed

__all__ = [
    "AdaptInfo",
    "ArgumentError",
    "ArgumentTypeError",
    "Batch",
    "CAVIAParams",
    "Check",
    "CheckError",
    "Episode",
    "FileError",
    "GradientMode",
    "Learner",
    "LearnerReport",
    "MAMLPlusPlusParams",
    "MaskedBatch",
    "MetaCurvatureParams",
    "MetaOptNetParams",
    "MetaSGDParams",
    "MetajaxError",
    "NonFiniteError",
    "R2D2Params",
    "Sampler",
    "Scores",
    "ServerError",
    "Slope",
    "TrainState",
    "Trainer",
    "adapt",
    "anil",
    "boil",
    "carry_statistics",
    "cavia",
    "check_gradient",
    "check_learner",
    "combine",
    "evaluate",
    "evaluate_episodes",
    "evaluator",
    "export",
    "first_order",
    "from_linen",
    "from_nnx",
    "imaml",
    "is_keyed",
    "keyed",
    "linear_probe",
    "losses",
    "maml",
    "maml_plus_plus",
    "masked",
    "matching",
    "meta_curvature",
    "meta_gradient",
    "meta_sgd",
    "meta_trainer",
    "metaoptnet",
    "mixed",
    "partition",
    "proto_maml",
    "prototypical",
    "r2d2",
    "relation",
    "rematerialised",
    "reptile",
    "shard_params",
    "task_mesh",
    "truncated",
    "unrolled",
    "use_every_core",
]
