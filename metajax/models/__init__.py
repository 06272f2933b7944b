"""Networks in Flax Linen that stay fast when every task has weights of its own."""

from metajax.models.conv import Algorithm, Conv
from metajax.models.conv4 import Conv4, Form, adapts_in_maml
from metajax.models.full_context import FullContext
from metajax.models.mlp import MLP
from metajax.models.normalization import Norm, Normalization
from metajax.models.pooling import max_pool
from metajax.models.relation_head import RelationHead
from metajax.models.resnet12 import ResNet12
from metajax.models.rotary import Rotary
from metajax.models.transformer import Transformer
from metajax.models.transformer_config import TransformerConfig

__all__ = [
    "MLP",
    "Algorithm",
    "Conv",
    "Conv4",
    "Form",
    "FullContext",
    "Norm",
    "Normalization",
    "RelationHead",
    "ResNet12",
    "Rotary",
    "Transformer",
    "TransformerConfig",
    "adapts_in_maml",
    "max_pool",
]
