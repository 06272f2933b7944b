"""Networks in Flax Linen that stay fast when every task has weights of its own."""

from metajax.models._attention import KVCache
from metajax.models.conv import Algorithm, Conv
from metajax.models.conv4 import Conv4, Form, adapts_in_maml
from metajax.models.dense import Dense
from metajax.models.full_context import FullContext
from metajax.models.mlp import MLP
from metajax.models.normalization import Norm, Normalization
from metajax.models.pooling import max_pool
from metajax.models.relation_head import RelationHead
from metajax.models.resnet12 import ResNet12
from metajax.models.transformer import Transformer, stack_layers, unstack_layers
from metajax.models.transformer_config import Rotary, TransformerConfig

__all__ = [
    "MLP",
    "Algorithm",
    "Conv",
    "Conv4",
    "Dense",
    "Form",
    "FullContext",
    "KVCache",
    "Norm",
    "Normalization",
    "RelationHead",
    "ResNet12",
    "Rotary",
    "Transformer",
    "TransformerConfig",
    "adapts_in_maml",
    "max_pool",
    "stack_layers",
    "unstack_layers",
]
