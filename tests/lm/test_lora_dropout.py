"""Dropout of the inputs of low-rank factors."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lora_models import INPUTS, TOKENS, built, logits, params_of

import metajax
from metajax import lm
from metajax.lm import lora
from metajax.models import Dense


class TestDropout:
    RATE = 0.4

    def factors(self, **options):
        return {
            "kernel": lora.Factors(
                jax.random.normal(jax.random.key(1), (6, 2)),
                jax.random.normal(jax.random.key(2), (2, 3)),
                0.5,
                **options,
            )
        }

    def test_by_hand_with_the_mask_known(self):
        params, factors = params_of(Dense(3)), self.factors(dropout=self.RATE)
        key, kept = jax.random.key(7), factors["kernel"]
        apply = jax.jit(lambda key: Dense(3).apply(
            {"params": params, "lora": factors}, INPUTS, rngs={"dropout": key}
        ))  # fmt: skip
        # The mask is what nn.Dropout draws at this place.
        ones = {"params": {"kernel": jnp.zeros((6, 6)), "bias": jnp.zeros(6)}}
        seen = {"kernel": lora.Factors(jnp.eye(6), jnp.eye(6), 1.0, self.RATE)}
        masked = Dense(6).apply(
            {**ones, "lora": seen}, jnp.ones(INPUTS.shape), rngs={"dropout": key}
        )
        assert set(np.unique(masked).round(4)) == {0.0, np.float32(1 / 0.6).round(4)}
        wanted = INPUTS @ params["kernel"] + params["bias"]
        wanted = wanted + 0.5 * (masked * INPUTS) @ kept.a @ kept.b
        chex.assert_trees_all_close(apply(key), wanted, atol=1e-5)
        assert not jnp.allclose(apply(key), apply(jax.random.key(8)))

    def test_its_mean_is_the_update_without(self):
        params, factors = params_of(Dense(3)), self.factors(dropout=self.RATE)
        variables = {"params": params, "lora": factors}
        many = jax.vmap(lambda key: Dense(3).apply(variables, INPUTS, rngs={"dropout": key}))
        mean = jax.jit(many)(jax.random.split(jax.random.key(0), 20_000)).mean(axis=0)
        without = Dense(3).apply(variables, INPUTS)
        chex.assert_trees_all_close(mean, without, atol=0.06)

    def test_off_without_the_stream_and_where_it_is_zero(self):
        params = {"params": params_of(Dense(3))}
        off = {**params, "lora": self.factors()}
        on = {**params, "lora": self.factors(dropout=self.RATE)}
        program = lambda v, **o: str(jax.make_jaxpr(lambda v: Dense(3).apply(v, INPUTS, **o))(v))
        assert program(on) == program(off)
        assert program(off, rngs={"dropout": jax.random.key(0)}) == program(off)
        assert program(on, rngs={"dropout": jax.random.key(0)}) != program(off)

    @pytest.mark.slow
    @pytest.mark.parametrize("scan", [True, False])
    @pytest.mark.parametrize("remat", [True, False])
    def test_layers_of_a_transformer_drop_other_inputs(self, scan, remat):
        model, params, factors = built(scan, remat=remat)
        with_dropout = lambda rate: jax.tree.map(
            lambda own: dataclasses.replace(own, dropout=rate),
            factors,
            is_leaf=lambda node: isinstance(node, lora.Factors),
        )
        apply = jax.jit(lambda own, key: model.apply(
            {"params": params, "lora": own}, TOKENS, rngs={"dropout": key}
        ))  # fmt: skip
        plain = logits(model, params, factors)
        chex.assert_trees_all_close(apply(factors, jax.random.key(0)), plain, atol=1e-5)
        drawn = apply(with_dropout(0.3), jax.random.key(0))
        assert not jnp.allclose(drawn, plain, atol=1e-3)
        assert not jnp.allclose(drawn, apply(with_dropout(0.3), jax.random.key(1)), atol=1e-3)
        chex.assert_trees_all_equal(drawn, apply(with_dropout(0.3), jax.random.key(0)))
        chex.assert_trees_all_equal(logits(model, params, with_dropout(0.3)), plain)

    def test_tasks_train_with_keys_of_their_own(self):
        model = Dense(3)
        variables = {"params": params_of(model), "lora": self.factors(dropout=self.RATE)}

        @metajax.keyed
        def loss_fn(variables, x, key):
            return jnp.mean(model.apply(variables, x, rngs={"dropout": key}) ** 2)

        adapt = lambda key: (
            metajax.adapt(
                loss_fn,
                variables,
                INPUTS,
                optimizer=optax.sgd(0.1),
                steps=2,
                trainable=lora.is_factor,
                key=key,
            )[0]["lora"]["kernel"].b
        )
        tasks = jax.jit(jax.vmap(adapt))(jax.random.split(jax.random.key(0), 3))
        assert not jnp.allclose(tasks[0], tasks[1])
        chex.assert_trees_all_close(tasks[2], adapt(jax.random.split(jax.random.key(0), 3)[2]))

    @pytest.mark.slow
    def test_a_trainer_draws_other_inputs_in_each_step(self):
        model, params, _ = built()
        start = functools.partial(lora.init, params, jax.random.key(1), rank=2, targets="mlp")

        @metajax.keyed
        def loss_fn(variables, batch, key):
            apply = functools.partial(model.apply, rngs={"dropout": key})
            return lm.next_token_loss(apply)(variables, batch)

        def losses(**options):
            trainer = metajax.meta_trainer(
                lm.supervised(loss_fn),
                optax.sgd(0.0),
                lambda key: metajax.Episode((), lm.TokenBatch(TOKENS)),
                meta_batch=2,
                trainable=lora.is_factor,
            )
            variables = {"params": params, "lora": start(b_std=1.0, **options)}
            return trainer.run(trainer.init(variables, jax.random.key(0)), 3)[1]["loss"]

        assert len(set(losses().tolist())) == 1
        assert len(set(losses(dropout=0.5).tolist())) == 3

    def test_merged_parameters_have_none(self):
        params, apply = metajax.from_linen(nn.Dense(3), jax.random.key(0), INPUTS)
        variables = {"params": params, "lora": self.factors(dropout=self.RATE)}
        with pytest.raises(metajax.ArgumentError, match="factors with dropout need a module"):
            lora.frozen_base(apply)(variables, INPUTS)

    def test_init_gives_it_and_merge_ignores_it(self):
        params = params_of(Dense(3))
        start = functools.partial(lora.init, params, jax.random.key(0), rank=2, targets="kernel")
        one, other = start(b_std=1.0, dropout=0.25), start(b_std=1.0)
        assert one["kernel"].dropout == 0.25
        chex.assert_trees_all_equal(lora.merge(params, one), lora.merge(params, other))
