"""Small models with low-rank factors, for tests."""

import functools

import flax.linen as nn
import jax
import optax

from metajax.lm import lora
from metajax.models import Dense, Transformer, TransformerConfig

SIZES = {"vocab_size": 23, "width": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
ALL = r"(attention|mlp)/\w+/kernel|head/kernel"
TOKENS = jax.random.randint(jax.random.key(9), (2, 7), 0, SIZES["vocab_size"])


@functools.cache
def built(scan=True, *, b_std=0.1, targets=ALL, seed=0, **options):
    """A tiny model, its parameters, large enough to matter, and factors."""
    model = Transformer(TransformerConfig.llama(**SIZES, scan=scan, **options))
    params = jax.jit(model.init)(jax.random.key(seed), TOKENS)["params"]
    params = jax.tree.map(lambda leaf: 5 * leaf if leaf.ndim > 1 else leaf, params)
    start = functools.partial(lora.init, rank=3, targets=targets, alpha=6, b_std=b_std)
    return model, params, jax.jit(start)(params, jax.random.key(seed + 1))


def logits(model, params, factors=None):
    variables = {"params": params} if factors is None else {"params": params, "lora": factors}
    return jax.jit(model.apply)(variables, TOKENS)


def token_loss(model):
    def loss_fn(variables, tokens):
        scores = model.apply(variables, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:]).mean()

    return loss_fn


class Block(nn.Module):
    """A user's own layer: biases, a norm, and, if asked, heads or a convolution."""

    extra: str = ""
    bias: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        x = x + Dense(6, self.bias, name="up")(nn.LayerNorm(name="norm")(x))
        if self.extra == "heads":
            x = x + nn.MultiHeadDotProductAttention(num_heads=2, use_bias=self.bias)(x)
        if self.extra == "conv":
            x = x + nn.Conv(6, (3,), use_bias=self.bias)(x)
        return x, None


def scanned(block, *, axis=0, layers=3, lora=True):
    axes = {"params": axis} | ({"lora": axis} if lora else {})
    return nn.scan(type(block), axes, split_rngs={"params": True}, length=layers)(
        extra=block.extra, bias=block.bias
    )


INPUTS = jax.random.normal(jax.random.key(3), (2, 5, 6))


def params_of(model, inputs=INPUTS):
    return jax.jit(model.init)(jax.random.key(0), inputs)["params"]
