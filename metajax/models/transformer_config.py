"""Configuration of a decoder-only transformer."""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Base and scaling of rotary positions.

    With ``scaling="linear"`` all frequencies are divided by ``factor``. With ``"llama3"`` only low
    ones are, as in Llama 3.1: those of wavelengths above ``original_length / low_freq_factor`` are
    divided, those below ``original_length / high_freq_factor`` stay, and those between are
    interpolated.

    Raises:
        ArgumentError: a number isn't positive, or ``scaling`` is unknown.

    Example:
        >>> Rotary(theta=100.0).frequencies(4)
        array([1. , 0.1])

    Source: Su et al. 2021 (arXiv 2104.09864).
    """

    theta: float = 10_000.0
    """The base: frequency i of a head of width d is theta^(-2i/d)."""
    scaling: Literal["none", "linear", "llama3"] = "none"
    """How frequencies are changed for longer texts."""
    factor: float = 1.0
    """How many times longer texts may be."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above ``original_length`` over this are scaled in full."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below ``original_length`` over this aren't scaled."""
    original_length: int = 8192
    """llama3: the length that the model was first trained with."""

    def __post_init__(self) -> None:
        _checks.one_of("scaling", self.scaling, ("none", "linear", "llama3"))
        for field in dataclasses.fields(self):
            if field.name != "scaling":
                _checks.positive_float(field.name, getattr(self, field.name))
        if self.scaling == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ArgumentError(
                f"low_freq_factor must be below high_freq_factor, got {self.low_freq_factor} and "
                f"{self.high_freq_factor}."
            )

    def frequencies(self, head_dim: int) -> np.ndarray:
        """The angle in radians by which each pair of features turns from one position to the next,
        ``[head_dim / 2]``."""
        frequencies = self.theta ** -(np.arange(0, head_dim, 2) / head_dim)
        if self.scaling == "none":
            return frequencies
        if self.scaling == "linear":
            return frequencies / self.factor
        turns = self.original_length * frequencies / (2 * math.pi)  # in original_length
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Configuration of a ``Transformer``. It is hashable, so it may be a static argument.

    ``gpt2``, ``llama``, ``qwen2``, ``qwen3``, ``gemma3`` and ``nope`` make the configurations of
    these models.

    Raises:
        ArgumentError: a size isn't a positive integer, ``n_heads`` isn't a multiple of
            ``n_kv_heads``, rotary positions have an odd ``head_dim``, a stop token isn't in the
            vocabulary, or an option is unknown.

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
    """The longest sequence; the number of learned positions."""
    n_kv_heads: int = 0
    """Heads of keys and values, each shared by a group of query heads; 0 means ``n_heads``."""
    head_dim: int = 0
    """Width of a head; 0 means ``width / n_heads``."""
    mlp_width: int = 0
    """Width of the feed-forward network's hidden layer; 0 means four times ``width``."""
    positions: Literal["learned", "rotary", "none"] = "rotary"
    """How the model learns a token's position."""
    rotary: Rotary = dataclasses.field(default_factory=Rotary)
    """Base and scaling of rotary positions."""
    local_rotary: Rotary | None = None
    """The same in layers with a window; None means ``rotary``."""
    windows: tuple[int, ...] = ()
    """For each layer, how many of the latest tokens a token sees, itself among them; 0 means all.
    It is repeated or cut to the number of layers; if it is empty, every layer sees all."""
    norm: Literal["layer", "rms", "rms_plus_one"] = "rms"
    """LayerNorm, RMSNorm, or RMSNorm whose result is multiplied by one plus the parameter (Gemma);
    before attention, before the network, and at the end."""
    post_norm: bool = False
    """Whether the results of attention and of the network are normalised too (Gemma)."""
    norm_eps: float = 1e-6
    """Added to the variance."""
    activation: Literal["swiglu", "geglu_tanh", "gelu", "gelu_tanh", "relu"] = "swiglu"
    """Activation of the hidden layer; ``"swiglu"`` and ``"geglu_tanh"`` have a third matrix, for
    the gate."""
    qk_norm: bool = False
    """Whether each head's queries and keys are normalised (Qwen 3, Gemma 3)."""
    score_width: int = 0
    """Attention divides its scores by this number's square root; 0 means ``head_dim``."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases."""
    output_bias: bool = False
    """Whether attention's output has a bias."""
    mlp_bias: bool = False
    """Whether the feed-forward network has biases."""
    tied: bool = True
    """Whether the head is the transposed embedding."""
    scaled_embedding: bool = False
    """Whether embeddings are multiplied by the square root of ``width`` (Gemma)."""
    dtype: Any = jnp.float32
    """Dtype of the computation. Normalisation, rotations, softmax and logits take float32 at
    least."""
    remat: bool = False
    """Whether the backward pass computes a block's insides again, in place of keeping them."""
    scan: bool = True
    """Whether the blocks are one ``scan`` over stacked parameters, so that one block is compiled.
    Without it each block has parameters of its own, which decoding with a cache needs."""
    stop_tokens: tuple[int, ...] = ()
    """Tokens that end a text, unless ``metajax.lm.SamplingParams`` name others."""
    source: str | None = dataclasses.field(default=None, compare=False, repr=False)
    """The folder that ``metajax.lm.load_pretrained`` read, whose tokenizer ``save_pretrained``
    writes again."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "n_layers", "n_heads", "max_length"):
            _checks.positive_int(name, getattr(self, name))
        if not self.head_dim and self.width % self.n_heads:
            raise ArgumentError(
                f"width must be a multiple of n_heads where head_dim isn't given, got "
                f"width={self.width}, n_heads={self.n_heads}."
            )
        defaults = {
            "n_kv_heads": self.n_heads,
            "head_dim": self.width // self.n_heads,
            "mlp_width": 4 * self.width,
        }
        for name, default in defaults.items():
            value = _checks.positive_int(name, getattr(self, name) or default)
            object.__setattr__(self, name, value)
        if _checks.non_negative_int("score_width", self.score_width) == self.head_dim:
            object.__setattr__(self, "score_width", 0)
        object.__setattr__(self, "windows", self._windows_of_layers())
        if self.n_heads % self.n_kv_heads:
            raise ArgumentError(
                f"n_heads must be a multiple of n_kv_heads, got n_heads={self.n_heads}, "
                f"n_kv_heads={self.n_kv_heads}."
            )
        _checks.one_of("positions", self.positions, ("learned", "rotary", "none"))
        _checks.one_of("norm", self.norm, ("layer", "rms", "rms_plus_one"))
        activations = ("swiglu", "geglu_tanh", "gelu", "gelu_tanh", "relu")
        _checks.one_of("activation", self.activation, activations)
        _checks.positive_float("norm_eps", self.norm_eps)
        if self.positions == "rotary" and self.head_dim % 2:
            raise ArgumentError(f"head_dim must be even for rotary positions, got {self.head_dim}.")
        object.__setattr__(self, "dtype", _checks.float_dtype("dtype", self.dtype))
        object.__setattr__(self, "stop_tokens", tuple(map(int, self.stop_tokens)))
        for token in self.stop_tokens:
            if not 0 <= token < self.vocab_size:
                raise ArgumentError(
                    f"stop_tokens must be below vocab_size={self.vocab_size}, got {token}."
                )

    def _windows_of_layers(self) -> tuple[int, ...]:
        """``windows`` with a number for each layer; empty if none has one."""
        _checks.instance("windows", self.windows, tuple | list, "a tuple of integers")
        given = [_checks.non_negative_int("windows", window) for window in self.windows]
        windows = (given[layer % len(given)] for layer in range(self.n_layers))
        return tuple(windows) if any(given[: self.n_layers]) else ()

    @classmethod
    def gpt2(cls, **options: Any) -> "TransformerConfig":
        """LayerNorm, learned positions, biases, GELU by tanh (Radford et al. 2019)."""
        biases = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
        layers = {"positions": "learned", "norm": "layer", "activation": "gelu_tanh"}
        return cls(**{**layers, **biases, "norm_eps": 1e-5, **options})

    @classmethod
    def llama(cls, **options: Any) -> "TransformerConfig":
        """RMSNorm, rotary positions, SwiGLU, no biases, an untied head (arXiv 2302.13971)."""
        return cls(**{"tied": False, "norm_eps": 1e-5, **options})

    @classmethod
    def qwen2(cls, **options: Any) -> "TransformerConfig":
        """Llama with biases on queries, keys and values (arXiv 2407.10671); Qwen 2.5 too."""
        return cls(**{"tied": False, "qkv_bias": True, "rotary": Rotary(theta=1e6), **options})

    @classmethod
    def qwen3(cls, **options: Any) -> "TransformerConfig":
        """Llama with normalised queries and keys, heads of 128 (arXiv 2505.09388)."""
        heads = {"qk_norm": True, "head_dim": 128, "rotary": Rotary(theta=1e6)}
        return cls(**{"tied": False, **heads, **options})

    @classmethod
    def gemma3(cls, **options: Any) -> "TransformerConfig":
        """Gemma 3 for text (arXiv 2503.19786): five layers with a window of 512 tokens, then one
        without."""
        norms = {"norm": "rms_plus_one", "post_norm": True, "qk_norm": True}
        layers = {"activation": "geglu_tanh", "scaled_embedding": True, "head_dim": 256}
        local = {
            "windows": (512,) * 5 + (0,),
            "local_rotary": Rotary(),
            "rotary": Rotary(theta=1e6),
        }
        return cls(**{**norms, **layers, **local, **options})

    @classmethod
    def nope(cls, **options: Any) -> "TransformerConfig":
        """Llama without positions: only the causal mask tells them (arXiv 2305.19466)."""
        return cls(**{"positions": "none", "tied": False, **options})
