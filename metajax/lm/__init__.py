"""Language models: Hugging Face checkpoints in Flax, tokenizers, training, and text from them."""

from metajax.lm.checkpoints import load_pretrained, save_pretrained
from metajax.lm.generation import Generated, generate, stream
from metajax.lm.hf_config import CheckpointError
from metajax.lm.peft_format import load_adapters, save_adapters
from metajax.lm.prepared import Prepared, prepare
from metajax.lm.tokenizers import CharTokenizer, HFTokenizer, Tokenizer, load_tokenizer
from metajax.lm.training import (
    TokenBatch,
    as_episodes,
    next_token_loss,
    pack,
    row_sampler,
    supervised,
    text_sampler,
)

__all__ = [
    "CharTokenizer",
    "CheckpointError",
    "Generated",
    "HFTokenizer",
    "Prepared",
    "TokenBatch",
    "Tokenizer",
    "as_episodes",
    "generate",
    "load_adapters",
    "load_pretrained",
    "load_tokenizer",
    "next_token_loss",
    "pack",
    "prepare",
    "row_sampler",
    "save_adapters",
    "save_pretrained",
    "stream",
    "supervised",
    "text_sampler",
]
