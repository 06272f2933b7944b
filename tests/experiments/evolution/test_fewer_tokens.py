"""A vocabulary of fewer tokens: the same texts, and the whole model's logits of what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.evolution.fewer_tokens import FewerTokens
from experiments.evolution.pretrained import random_checkpoint
from metajax import lm
from metajax.models import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    random_checkpoint.make(
        folder, seed=0, n_layers=1, characters="\n" + "".join(map(chr, range(32, 300)))
    )
    return lm.load_tokenizer(folder)


def test_texts_are_the_same(tokenizer):
    fewer = FewerTokens(tokenizer, ["äöü"], tokenizer.vocab_size, 120)
    assert fewer.vocab_size == len(fewer.kept) == 120
    assert len(set(fewer.kept.tolist())) == 120
    for text in ("Hello, world!\n", "ä ö ü", "1 + 2 ="):
        tokens = fewer.encode(text)
        assert max(tokens) < 120
        assert fewer.decode(tokens) == text
        whole = tokenizer.encode(text, add_special_tokens=False)
        assert fewer.kept[tokens].tolist() == whole
    assert fewer.kept[[fewer.bos_id, fewer.eos_id]].tolist() == [tokenizer.bos_id, tokenizer.eos_id]
    with pytest.raises(ValueError, match="text has a token that isn't kept, 'ñ'"):
        fewer.encode("español")


def test_logits_are_the_whole_models(tokenizer):
    fewer = FewerTokens(tokenizer, [], tokenizer.vocab_size, 110)
    config = TransformerConfig.llama(
        vocab_size=tokenizer.vocab_size, width=16, n_layers=1, n_heads=2, mlp_width=16, tied=True
    )
    model = Transformer(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    cut, rows = fewer.cut(model, params)
    tokens = jnp.array([fewer.encode("abc d")])
    whole = model.apply(
        {"params": params}, jnp.array([tokenizer.encode("abc d", add_special_tokens=False)])
    )
    np.testing.assert_allclose(
        cut.apply({"params": rows}, tokens),
        np.asarray(whole)[..., fewer.kept],
        rtol=1e-5,
        atol=1e-6,
    )


def test_what_cannot_be_cut_is_said(tokenizer):
    with pytest.raises(ValueError, match=r"vocabulary must be at least \d+ here; got 50"):
        FewerTokens(tokenizer, [], tokenizer.vocab_size, 50)
    fewer = FewerTokens(tokenizer, [], tokenizer.vocab_size, 110)
    model = Transformer(
        TransformerConfig.llama(vocab_size=tokenizer.vocab_size, width=8, n_layers=1, n_heads=2)
    )
    with pytest.raises(ValueError, match="only a model with a tied head can be cut"):
        fewer.cut(model, {})
    everything = FewerTokens(tokenizer, [], tokenizer.vocab_size, None)
    assert everything.cut(model, {"as": "it is"}) == (model, {"as": "it is"})
