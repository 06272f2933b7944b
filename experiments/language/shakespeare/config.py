"""Options of the character model, the model and its optimizer."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from experiments import common
from metajax import lm
from metajax.errors import ArgumentError
from metajax.models import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Config(common.RunConfig):
    """Options of the experiment."""

    steps: int = 2000
    """Updates."""
    data: Path | None = None
    """A text file; without it, Shakespeare's plays from the cache, or a download."""
    form: Literal["llama", "gpt2"] = "llama"
    """RMSNorm, rotary positions, a gated network and no biases; or GPT-2, as nanoGPT has it."""
    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads."""
    width: int = 128
    """Width of the residual stream."""
    length: int = 64
    """Characters that the model sees."""
    batch: int = 12
    """Windows in a step."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the blocks' matrices and Adam for the rest; or AdamW for all, as in nanoGPT."""
    rate: float = 4e-3
    """Learning rate after the warm-up (nanoGPT's is 1e-3)."""
    validate_every: int = 500
    """Steps between validations, each on the whole of the validation text."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is written at the end in any case."""

    may_differ: ClassVar[frozenset[str]] = common.RunConfig.may_differ | {"data"}

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "layers", "heads", "width", "batch", "rate", "validate_every")
        if self.length < 2:
            raise ArgumentError(f"length must be at least 2; got {self.length}")


def model_config(config: Config, vocab_size: int) -> TransformerConfig:
    """The transformer; both forms have as many parameters, up to a percent."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "width": config.width,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "max_length": config.length,
        "scan": False,
    }
    if config.form == "gpt2":
        return TransformerConfig.gpt2(**sizes)
    # A gated network has three matrices in place of two.
    return TransformerConfig.llama(mlp_width=8 * round(config.width / 3), **sizes)


def optimizer_of(config: Config) -> optax.GradientTransformation:
    """Warm-up over 100 steps, then a cosine down to a tenth of the rate."""
    warmup = min(100, config.steps // 2)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.rate, warmup, config.steps, end_value=config.rate / 10
    )
    if config.optimizer == "muon":
        return lm.muon(rate)
    matrices = lambda params: jax.tree.map(lambda leaf: jnp.ndim(leaf) == 2, params)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.99, weight_decay=0.1, mask=matrices),
    )
