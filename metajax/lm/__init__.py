"""Language models: Hugging Face checkpoints in Flax, and text from them."""

from metajax.lm.checkpoints import load_pretrained, save_pretrained
from metajax.lm.generation import Generated, generate, stream
from metajax.lm.hf_config import CheckpointError

__all__ = [
    "CheckpointError",
    "Generated",
    "generate",
    "load_pretrained",
    "save_pretrained",
    "stream",
]
