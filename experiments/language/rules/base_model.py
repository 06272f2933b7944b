"""The base model: a language model of documents of worked examples.

Each document has lines of one rule, so the model learns to learn from what is before a line.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import metajax
from experiments import common
from experiments.common import plots
from experiments.language.rules.config import MICRO_BATCH, SEEN, RulesConfig
from experiments.language.rules.tasks import string_tasks
from metajax import lm
from metajax.lm import lora
from metajax.models import Transformer, TransformerConfig

TARGETS = r"block_\d+/.*/kernel"
"""Which matrices have low-rank factors: all of the blocks."""


class Base(NamedTuple):
    """The base model.

    Attributes:
        model: a ``Transformer``.
        variables: ``"params"``, its parameters, and ``"lora"``, low-rank factors from zero.
        seconds: how long its training took; 0 where it was loaded.
    """

    model: Transformer
    variables: dict[str, Any]
    seconds: float


def base_model(run: common.Run, config: RulesConfig, steps: int) -> Base:
    """Loads the base model, or trains it for so many steps in the run's folder ``base``.

    Raises:
        RunError: the loaded model has another vocabulary, or reads too few tokens.
    """
    length = (config.k_shot + 1) * config.words.line
    vocabulary = config.words.tokenizer.vocab_size
    if config.base is not None:
        model, params = lm.load_pretrained(config.base, scan=False)
        found = model.config
        if found.vocab_size != vocabulary or found.max_length < length:
            raise common.RunError(
                f"base: {config.base} has {found.vocab_size} tokens and takes {found.max_length} "
                f"of them; {vocabulary} and at least {length} are wanted"
            )
        return Base(model, _with_factors(config, params), 0.0)
    model = Transformer(
        TransformerConfig.llama(
            vocab_size=vocabulary,
            width=config.width,
            n_layers=config.layers,
            n_heads=config.width // 32,
            mlp_width=8 * round(config.width / 3),
            max_length=length,
            scan=False,
        )
    )
    key_params, key_tasks = jax.random.split(jax.random.key(config.seed))
    params, apply = metajax.from_linen(model, key_params, jnp.zeros((1, 2), jnp.int32))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.base_rate, min(100, steps // 2), steps, config.base_rate / 10
    )
    count = config.base_batch // MICRO_BATCH
    trainer = metajax.meta_trainer(
        lm.supervised(lm.next_token_loss(apply)),
        lm.muon(rate),
        lm.as_episodes(documents(config)),
        meta_batch=count,
        mesh=metajax.task_mesh(count),
    )
    part = run._replace(name="base model", path=run.path / "base")
    fitted = common.fit(
        part,
        trainer,
        trainer.init(params, key_tasks),
        steps=steps,
        per_step={"tokens": config.base_batch * length},
    )
    lm.save_pretrained(part.path / "model", model.config, jax.device_get(fitted.state.params))
    plots.training_curve(part.path / "training.png", fitted.metrics, adapts=False)
    return Base(model, _with_factors(config, fitted.state.params), fitted.seconds)


def _with_factors(config: RulesConfig, params: Any) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    factors = lora.init(params, key, rank=config.rank, targets=TARGETS)
    return {"params": params, "lora": factors}


def documents(config: RulesConfig) -> Any:
    """``draw(key) -> TokenBatch``: a micro-batch of documents, each with lines of one seen rule."""
    sample = string_tasks(config.words, families=SEEN, k_shot=config.k_shot + 1, query=1)

    def draw(key: jax.Array) -> lm.TokenBatch:
        lines = jax.vmap(sample)(jax.random.split(key, MICRO_BATCH)).support
        return jax.tree.map(lambda part: part.reshape(MICRO_BATCH, -1), lines)

    return draw
