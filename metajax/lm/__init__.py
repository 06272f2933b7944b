"""Language models: Hugging Face checkpoints in Flax, tokenizers, training, and text from them."""

from metajax.lm import lora
from metajax.lm._folder import CheckpointError
from metajax.lm._params import DecodingParams, decoding_params
from metajax.lm._sampling import SamplingParams
from metajax.lm._token_batch import TokenBatch, with_places
from metajax.lm.checkpoints import load_pretrained, save_pretrained
from metajax.lm.generation import Generated, generate, stream
from metajax.lm.optimizers import muon
from metajax.lm.peft_format import load_adapters, save_adapters
from metajax.lm.tokenizers import CharTokenizer, HFTokenizer, Tokenizer, load_tokenizer
from metajax.lm.training import (
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
    "DecodingParams",
    "Generated",
    "HFTokenizer",
    "SamplingParams",
    "TokenBatch",
    "Tokenizer",
    "as_episodes",
    "decoding_params",
    "generate",
    "load_adapters",
    "load_pretrained",
    "load_tokenizer",
    "lora",
    "muon",
    "next_token_loss",
    "pack",
    "row_sampler",
    "save_adapters",
    "save_pretrained",
    "stream",
    "supervised",
    "text_sampler",
    "with_places",
]
