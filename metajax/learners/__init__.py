"""The algorithms, one a file, each a factory that returns a ``Learner``."""

from metajax.learners.anil import anil
from metajax.learners.base import AdaptFn, Learner, OuterLoss
from metajax.learners.maml import maml
from metajax.learners.maml_plus_plus import (
    MAMLPlusPlusParams,
    maml_plus_plus,
    scale_by_log_rates,
)
from metajax.learners.meta_sgd import MetaSGDParams, meta_sgd, scale_by_rates
from metajax.learners.reptile import reptile

__all__ = [
    "AdaptFn",
    "Learner",
    "MAMLPlusPlusParams",
    "MetaSGDParams",
    "OuterLoss",
    "anil",
    "maml",
    "maml_plus_plus",
    "meta_sgd",
    "reptile",
    "scale_by_log_rates",
    "scale_by_rates",
]
