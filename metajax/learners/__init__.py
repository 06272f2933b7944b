"""The algorithms, one a file, each a factory that returns a ``Learner``."""

from metajax.learners.anil import anil
from metajax.learners.base import AdaptFn, Learner, OuterLoss
from metajax.learners.boil import boil
from metajax.learners.cavia import CAVIAParams, cavia
from metajax.learners.imaml import imaml
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
from metajax.learners.metric import Remembered, carry_statistics
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
    "R2D2Params",
    "Remembered",
    "anil",
    "annealed_weights",
    "boil",
    "carry_statistics",
    "cavia",
    "imaml",
    "maml",
    "maml_plus_plus",
    "matching",
    "meta_curvature",
    "meta_sgd",
    "metaoptnet",
    "multi_step_loss",
    "proto_maml",
    "prototypical",
    "r2d2",
    "relation",
    "reptile",
    "ridge",
    "scale_by_log_rates",
    "scale_by_rates",
    "svm_dual",
    "warm_start",
]
