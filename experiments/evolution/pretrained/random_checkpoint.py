"""A checkpoint of random weights with a character tokenizer, for runs without a real one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from metajax import lm
from metajax.files import write_atomically
from metajax.models import Transformer, TransformerConfig

BEGIN, END = "<s>", "</s>"
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""Those of ASCII that can be seen, the space and the line break."""


SHAPES = {
    "tiny": TransformerConfig.llama(
        vocab_size=2 + len(CHARACTERS),
        width=32,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        mlp_width=64,
        max_length=512,
    ),
    "gemma3-270m": TransformerConfig.gemma3(
        vocab_size=262144,
        width=640,
        n_layers=18,
        n_heads=4,
        n_kv_heads=1,
        head_dim=256,
        mlp_width=2048,
        max_length=1024,
    ),
}
"""Models that it can be."""


def make(
    folder: Path, *, seed: int, shape: str = "tiny", characters: str = CHARACTERS, **sizes: int
) -> None:
    """Writes a model of random weights and its tokenizer.json; the same for the same seed.

    Args:
        folder: made if need be; ``metajax.lm.load_pretrained`` and ``load_tokenizer`` read it.
        seed: of the weights.
        shape: one of ``SHAPES``.
        characters: those that have a token.
        **sizes: of a ``TransformerConfig``, other than the shape's.
    """
    import tokenizers

    pieces = [BEGIN, END, *characters]
    config = dataclasses.replace(SHAPES[shape], **sizes)
    if len(pieces) != 2 + len(CHARACTERS):
        config = dataclasses.replace(config, vocab_size=len(pieces))
    init: Any = jax.jit(Transformer(config).init)
    variables = init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))
    lm.save_pretrained(folder, config, variables["params"])
    # Byte pairs without a single merge are characters.
    numbers = {piece: number for number, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(numbers, []))
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens([BEGIN, END])
    write_atomically(folder / "tokenizer.json", backend.to_str())
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
    }
    write_atomically(folder / "tokenizer_config.json", json.dumps(names, indent=2) + "\n")
