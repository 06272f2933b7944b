"""Language models: Hugging Face checkpoints in Flax."""

from metajax.lm.checkpoints import load_pretrained, save_pretrained
from metajax.lm.hf_config import CheckpointError

__all__ = ["CheckpointError", "load_pretrained", "save_pretrained"]
