"""What a decoder-only transformer is made of, as a value."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.models.rotary import Rotary

Activation = Literal["swiglu", "gelu", "gelu_tanh", "relu"]
ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What a decoder-only transformer is made of. Hashable, so it may be a static argument.

    ``gpt2``, ``llama``, ``qwen2``, ``qwen3`` and ``nope`` make the configurations of these.

    Raises:
        ArgumentError: a size isn't a positive integer, ``n_heads`` isn't a multiple of
            ``n_kv_heads``, rotary positions have an odd ``head_dim``, or a choice is unknown.

    Example:
        >>> TransformerConfig.llama(vocab_size=64, width=32, n_layers=2, n_heads=4).head_dim
        8
    """

    vocab_size: int
    """Number of tokens."""
    width: int
    """Width of the residual stream."""
    n_layers: int
    """Blocks of attention and feed-forward network."""
    n_heads: int
    """Attention heads."""
    max_length: int = 1024
    """The longest sequence: of learned positions, the table's rows."""
    n_kv_heads: int = 0
    """Heads of keys and values, each shared by a group of query heads; 0 for as many as these."""
    head_dim: int = 0
    """Width of a head; 0 for ``width / n_heads``."""
    mlp_width: int = 0
    """Width of the feed-forward network's hidden layer; 0 for four times ``width``."""
    positions: Literal["learned", "rotary", "none"] = "rotary"
    """How a token's place enters."""
    rotary: Rotary = dataclasses.field(default_factory=Rotary)
    """Base and scaling of rotary positions."""
    norm: Literal["layer", "rms"] = "rms"
    """LayerNorm or RMSNorm, always before attention, before the network, and at the end."""
    norm_eps: float = 1e-6
    """What is added to the variance."""
    activation: Activation = "swiglu"
    """The hidden layer's; ``"swiglu"`` is gated by a third matrix."""
    qk_norm: bool = False
    """Whether each head's queries and keys are normalised (Qwen 3)."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases."""
    output_bias: bool = False
    """Whether attention's output has one."""
    mlp_bias: bool = False
    """Whether the feed-forward network has them."""
    tied: bool = True
    """Whether the head is the transposed embedding."""
    dtype: Any = jnp.float32
    """What is computed in. Normalisation, rotations, softmax and logits are in float32 at least."""
    remat: bool = False
    """Whether a block's insides are computed again in the backward pass, not kept."""
    scan: bool = True
    """Whether the blocks are one ``scan`` over stacked parameters, compiled once whatever their
    number; without it, each has its own, which is what decoding with a cache needs."""

    def __post_init__(self) -> None:
        def fill(name: str, value: int) -> None:
            given = getattr(self, name)
            unset = given is None or (type(given) is int and given == 0)
            object.__setattr__(self, name, value if unset else given)

        for name in ("vocab_size", "width", "n_layers", "n_heads", "max_length"):
            _checks.positive_int(name, getattr(self, name))
        if self.head_dim in (None, 0) and self.width % self.n_heads:
            raise ArgumentError(
                f"width must be a multiple of n_heads where head_dim isn't given, got "
                f"width={self.width}, n_heads={self.n_heads}."
            )
        fill("n_kv_heads", self.n_heads)
        fill("head_dim", self.width // self.n_heads)
        fill("mlp_width", 4 * self.width)
        for name in ("n_kv_heads", "head_dim", "mlp_width"):
            _checks.positive_int(name, getattr(self, name))
        if self.n_heads % self.n_kv_heads:
            raise ArgumentError(
                f"n_heads must be a multiple of n_kv_heads, got n_heads={self.n_heads}, "
                f"n_kv_heads={self.n_kv_heads}."
            )
        _checks.one_of("positions", self.positions, ("learned", "rotary", "none"))
        _checks.one_of("norm", self.norm, ("layer", "rms"))
        _checks.one_of("activation", self.activation, ("swiglu", *ACTIVATIONS))
        _checks.positive_float("norm_eps", self.norm_eps)
        if self.positions == "rotary" and self.head_dim % 2:
            raise ArgumentError(f"head_dim must be even for rotary positions, got {self.head_dim}.")
        object.__setattr__(self, "dtype", _checks.float_dtype("dtype", self.dtype))
        _checks.instance("rotary", self.rotary, Rotary, "a Rotary")
        for field in dataclasses.fields(self):
            if field.type is bool:
                _checks.flag(field.name, getattr(self, field.name))

    @classmethod
    def gpt2(cls, **options: Any) -> "TransformerConfig":
        """LayerNorm, learned positions, biases, GELU by tanh (Radford et al. 2019)."""
        return cls(
            **{
                "positions": "learned",
                "norm": "layer",
                "norm_eps": 1e-5,
                "activation": "gelu_tanh",
                "qkv_bias": True,
                "output_bias": True,
                "mlp_bias": True,
                **options,
            }
        )

    @classmethod
    def llama(cls, **options: Any) -> "TransformerConfig":
        """RMSNorm, rotary positions, SwiGLU, no biases, an untied head (2302.13971)."""
        return cls(**{"tied": False, "norm_eps": 1e-5, **options})

    @classmethod
    def qwen2(cls, **options: Any) -> "TransformerConfig":
        """Llama with biases on queries, keys and values (2407.10671); Qwen 2.5 too."""
        return cls(**{"tied": False, "qkv_bias": True, "rotary": Rotary(theta=1e6), **options})

    @classmethod
    def qwen3(cls, **options: Any) -> "TransformerConfig":
        """Llama with normalised queries and keys, heads of 128 (2505.09388)."""
        return cls(
            **{
                "tied": False,
                "qk_norm": True,
                "head_dim": 128,
                "rotary": Rotary(theta=1e6),
                **options,
            }
        )

    @classmethod
    def nope(cls, **options: Any) -> "TransformerConfig":
        """Llama without positions: the causal mask alone tells them (2305.19466)."""
        return cls(**{"positions": "none", "tied": False, **options})
