"""Networks in Flax Linen that stay fast when every task has weights of its own."""

from metajax.models.conv import Conv
from metajax.models.conv4 import Conv4, adapts_in_maml
from metajax.models.mlp import MLP
from metajax.models.normalization import Normalization

__all__ = ["MLP", "Conv", "Conv4", "Normalization", "adapts_in_maml"]
