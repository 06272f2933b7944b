"""The algorithms, one a file, each a factory that returns a ``Learner``."""

from metajax.keys import query_key
from metajax.learners.anil import anil, in_head
from metajax.learners.base import (
    AdaptFn,
    Learner,
    OuterLoss,
    PredictFn,
    adapt_to,
    episode_loss,
    nothing_learned,
    task_gradient,
    task_outcome,
)
from metajax.learners.boil import boil
from metajax.learners.cavia import CAVIAParams, cavia
from metajax.learners.gradient import gradient_learner
from metajax.learners.imaml import imaml
from metajax.learners.linear_probe import linear_probe, logistic_regression
from metajax.learners.maml import maml
from metajax.learners.maml_plus_plus import (
    MAMLPlusPlusParams,
    maml_plus_plus,
    scale_by_log_rates,
)
from metajax.learners.matching import matching
from metajax.learners.meta_curvature import MetaCurvatureParams, meta_curvature
from metajax.learners.meta_sgd import MetaSGDParams, meta_sgd, scale_by_rates
from metajax.learners.metaoptnet import MetaOptNetParams, metaoptnet, svm_dual
from metajax.learners.metric import (
    Remembered,
    Support,
    carry_statistics,
    class_means,
    cosine_similarities,
    metric_learner,
    squared_distances,
)
from metajax.learners.multi_step import annealed_weights, multi_step_loss, warm_start
from metajax.learners.proto_maml import proto_maml
from metajax.learners.prototypical import prototypical
from metajax.learners.r2d2 import R2D2Params, r2d2, ridge
from metajax.learners.relation import relation
from metajax.learners.reptile import reptile

__all__ = [
    "AdaptFn",
    "CAVIAParams",
    "Learner",
    "MAMLPlusPlusParams",
    "MetaCurvatureParams",
    "MetaOptNetParams",
    "MetaSGDParams",
    "OuterLoss",
    "PredictFn",
    "R2D2Params",
    "Remembered",
    "Support",
    "adapt_to",
    "anil",
    "annealed_weights",
    "boil",
    "carry_statistics",
    "cavia",
    "class_means",
    "cosine_similarities",
    "episode_loss",
    "gradient_learner",
    "imaml",
    "in_head",
    "linear_probe",
    "logistic_regression",
    "maml",
    "maml_plus_plus",
    "matching",
    "meta_curvature",
    "meta_sgd",
    "metaoptnet",
    "metric_learner",
    "multi_step_loss",
    "nothing_learned",
    "proto_maml",
    "prototypical",
    "query_key",
    "r2d2",
    "relation",
    "reptile",
    "ridge",
    "scale_by_log_rates",
    "scale_by_rates",
    "squared_distances",
    "svm_dual",
    "task_gradient",
    "task_outcome",
    "warm_start",
]
