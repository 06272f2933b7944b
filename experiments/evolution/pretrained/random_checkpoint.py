"""A checkpoint of random weights with a character tokenizer, for runs without a real one."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from metajax import lm
from metajax.files import write_atomically
from metajax.models import Transformer, TransformerConfig

BEGIN, END = "<s>", "</s>"
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""Those of ASCII that can be seen, the space and the line break."""


def make(
    folder: Path, *, characters: str = CHARACTERS, seed: int, layers: int = 2, max_length: int = 512
) -> None:
    """Writes a small Llama of random weights and its tokenizer.json; the same for the same seed.

    Args:
        folder: made if need be; ``metajax.lm.load_pretrained`` and ``load_tokenizer`` read it.
        characters: those that have a token.
        seed: of the weights.
        layers: blocks of the model.
        max_length: tokens that the model takes.
    """
    import tokenizers

    pieces = [BEGIN, END, *characters]
    config = TransformerConfig.llama(
        vocab_size=len(pieces),
        width=32,
        n_layers=layers,
        n_heads=2,
        n_kv_heads=1,
        mlp_width=64,
        max_length=max_length,
    )
    variables = Transformer(config).init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))
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
