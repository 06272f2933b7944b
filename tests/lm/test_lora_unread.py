"""Factors that no layer reads, and models that take merged parameters."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lora_models import INPUTS, TOKENS, Block, built, params_of, scanned

import metajax
from metajax import lm
from metajax.lm import lora
from metajax.models import Dense


class Plain(nn.Module):
    """Layers of Flax, which read no factors, before one that does."""

    @nn.compact
    def __call__(self, x):
        return Dense(3, name="out")(nn.relu(nn.Dense(5, name="hidden")(x)))


class TestFactorsThatNoLayerReads:
    @staticmethod
    def started(model, targets="kernel"):
        params = params_of(model)
        return {
            "params": params,
            "lora": lora.init(params, jax.random.key(1), rank=2, targets=targets, b_std=0.3),
        }

    @staticmethod
    def adapted(apply, variables):
        def loss_fn(variables, x):
            out = apply(variables, x)
            return jnp.mean(jnp.square(out[0] if isinstance(out, tuple) else out))

        return metajax.adapt(
            loss_fn,
            variables,
            INPUTS,
            optimizer=optax.sgd(0.1),
            steps=2,
            trainable=lora.is_factor,
        )

    @pytest.mark.parametrize(
        ("model", "unread"),
        [
            (nn.Dense(3), "kernel/a"),
            (Plain(), "hidden/kernel/a"),
            (nn.Sequential([nn.Dense(4), nn.Dense(3)]), "layers_1/kernel/b"),
            (scanned(Block(), lora=False), "up/kernel/a"),
        ],
    )
    def test_are_refused(self, model, unread):
        variables = self.started(model)
        message = rf"no layer reads the factors at .*'lora/{unread}'"
        with pytest.raises(metajax.ArgumentError, match=message):
            self.adapted(model.apply, variables)
        with pytest.raises(metajax.ArgumentError, match=message):
            lora.frozen_base(model)(variables, INPUTS)
        with pytest.raises(metajax.ArgumentError, match=message):
            lora.frozen_base(model.apply)(variables, INPUTS)

    def test_are_refused_where_only_the_outer_loop_learns_them(self):
        model = nn.Dense(3)
        learner = lm.supervised(lambda variables, x: jnp.mean(model.apply(variables, x) ** 2))
        trainer = metajax.meta_trainer(
            learner,
            optax.sgd(0.1),
            lambda key: metajax.Episode((), jax.random.normal(key, INPUTS.shape)),
            meta_batch=2,
            trainable=lora.is_factor,
        )
        state = trainer.init(self.started(model), jax.random.key(0))
        with pytest.raises(metajax.ArgumentError, match=r"no layer reads .*'lora/ker"):
            trainer.step(state)

    def test_those_that_do_not_adapt_may_be_unread(self):
        variables = self.started(Plain())
        metajax.adapt(
            lambda variables, x: jnp.mean(Plain().apply(variables, x) ** 2),
            variables,
            INPUTS,
            optimizer=optax.sgd(0.1),
            steps=1,
            trainable=lambda path: path.startswith("lora/out"),
        )

    def test_in_a_scan_whose_layers_are_plain(self):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _=None):
                return x + nn.Dense(6, name="up")(x), None

        axes = {"params": 0, "lora": 0}
        model = nn.scan(Layer, axes, split_rngs={"params": True}, length=3)()
        with pytest.raises(metajax.ArgumentError, match="'lora/up/kernel/a'"):
            self.adapted(model.apply, self.started(model))

    @pytest.mark.parametrize("model", [nn.Dense(3), Plain(), scanned(Block(), lora=False)])
    def test_merged_parameters_serve_any_model(self, model):
        _, apply = metajax.from_linen(model, jax.random.key(0), INPUTS)
        variables = self.started(model)
        beside = lora.frozen_base(apply)
        own = lambda variables, x: jax.tree.leaves(apply(variables, x))[0]
        merged = lora.merge(variables["params"], variables["lora"])
        chex.assert_trees_all_close(
            jax.tree.leaves(beside(variables, INPUTS))[0], own(merged, INPUTS), atol=1e-6
        )
        after, info = self.adapted(beside, variables)
        assert info.loss[1] < info.loss[0]
        chex.assert_trees_all_equal(after["params"], variables["params"])

    def test_one_layer_by_hand(self, x64):
        params, apply = metajax.from_linen(
            nn.Dense(3, param_dtype=float), jax.random.key(0), INPUTS
        )
        factors = {"kernel": lora.Factors(jnp.ones((6, 1)), jnp.array([[1.0, 2.0, 3.0]]), 0.5)}
        beside = lora.frozen_base(apply)
        x = np.asarray(INPUTS, np.float64)
        wanted = x @ np.asarray(params["kernel"]) + 0.5 * x.sum(-1, keepdims=True) * [1.0, 2.0, 3.0]
        variables = {"params": params, "lora": factors}
        np.testing.assert_allclose(beside(variables, x), wanted, rtol=1e-6)
        gradient = jax.grad(lambda v: beside(v, x).sum())(variables)
        assert not jax.tree.leaves(gradient["params"])[0].any()
        np.testing.assert_allclose(gradient["lora"]["kernel"].b[0], 0.5 * x.sum(), rtol=1e-6)

    def test_running_statistics_stay_beside(self):
        class Normed(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))

        variables, apply = metajax.from_linen(Normed(), jax.random.key(0), INPUTS)
        factors = lora.init(
            variables["params"], jax.random.key(1), rank=2, targets="Dense", b_std=0.3
        )
        merged = {**variables, "params": lora.merge(variables["params"], factors)}
        chex.assert_trees_all_equal(
            lora.frozen_base(apply)({**variables, "lora": factors}, INPUTS), apply(merged, INPUTS)
        )

    @pytest.mark.parametrize("scan", [True, False])
    @pytest.mark.parametrize(
        ("path", "message"),
        [
            (("embed", "embedding"), "'embed/embedding', where the model has no matrix"),
            (("norm", "scale"), "'norm/scale', where the model has no matrix"),
            (("blocks", "mlp", "other", "kernel"), "don't fit 'blocks/mlp/other/kernel'"),
            (("block_7", "mlp", "up", "kernel"), "don't fit 'block_7/mlp/up/kernel'"),
            (("head", "kernel"), r"don't fit 'head/kernel' of shape \(16, 23\)"),
        ],
    )
    def test_a_transformer_says_which(self, scan, path, message):
        model, params, _ = built(scan)
        own = lora.Factors(jnp.ones((23, 2)), jnp.ones((2, 16)), 1.0)
        for key in reversed(path):
            own = {key: own}
        with pytest.raises(metajax.ArgumentError, match=message):
            model.apply({"params": params, "lora": own}, TOKENS)

    def test_factors_of_other_sizes_are_named_by_the_layer(self):
        own = {"kernel": lora.Factors(jnp.ones((5, 2)), jnp.ones((2, 3)), 1.0)}
        with pytest.raises(metajax.ArgumentError, match=r"don't fit 'kernel' of shape \(6, 3\)"):
            Dense(3).apply({"params": params_of(Dense(3)), "lora": own}, INPUTS)

    def test_the_check_adds_nothing_to_the_program(self, monkeypatch):
        variables = self.started(Dense(3))
        program = lambda: jax.jit(lambda v: self.adapted(Dense(3).apply, v)).lower(variables)
        checked = program().as_text()
        monkeypatch.setattr(metajax.trees, "check_factors_read", lambda *_: None)
        assert program().as_text() == checked
