"""Low-rank factors: their start, their use by the model, merging, and adaptation of them."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lora_models import SIZES, TOKENS, built, logits, token_loss

import metajax
from metajax.lm import lora
from metajax.models import Transformer, TransformerConfig, unstack_layers


class TestInit:
    def test_holds_the_targeted_paths_alone(self):
        _, params, factors = built(targets=(r"attention/(query|value)/kernel", "^head"))
        assert set(factors) == {"blocks", "head"}
        assert set(factors["blocks"]) == {"attention"}
        assert set(factors["blocks"]["attention"]) == {"query", "value"}
        value = factors["blocks"]["attention"]["value"]["kernel"]
        assert params["blocks"]["attention"]["value"]["kernel"].shape == (2, 16, 8)
        chex.assert_shape([value.a, value.b], [(2, 16, 3), (2, 3, 8)])
        assert value.scale == 2.0

    def test_a_is_uniform_within_one_over_the_root_of_in(self):
        params = {"kernel": jnp.zeros((100, 64))}
        factors = lora.init(params, jax.random.key(0), rank=50, targets="kernel")["kernel"]
        assert jnp.abs(factors.a).max() <= 0.1
        np.testing.assert_allclose(factors.a.std(), 0.1 / np.sqrt(3), rtol=0.02)
        assert not factors.b.any()
        assert not jnp.signbit(factors.b).any()
        assert factors.scale == 1.0

    def test_b_std(self):
        params = {"kernel": jnp.zeros((100, 64))}
        factors = lora.init(params, jax.random.key(0), rank=50, targets="k", b_std=0.3)["kernel"]
        np.testing.assert_allclose(factors.b.std(), 0.3, rtol=0.05)

    def test_matrices_and_layers_start_differently(self):
        _, _, factors = built()
        query, output = (
            factors["blocks"]["attention"][name]["kernel"] for name in ("query", "output")
        )
        assert not jnp.allclose(query.a[0], query.a[1])
        assert not jnp.allclose(query.a, output.a)
        assert not jnp.allclose(query.b, output.b)

    def test_factors_of_narrow_matrices_are_float32(self):
        params = {"kernel": jnp.zeros((4, 4), jnp.bfloat16)}
        factors = lora.init(params, jax.random.key(0), rank=1, targets="kernel")["kernel"]
        assert factors.a.dtype == factors.b.dtype == jnp.float32

    def test_factors_of_float64_are_float64(self, x64):
        params = {"kernel": jnp.zeros((4, 4), jnp.float64)}
        factors = lora.init(params, jax.random.key(0), rank=1, targets="kernel")["kernel"]
        assert factors.a.dtype == factors.b.dtype == jnp.float64

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"targets": "kernle"}, r"targets: 'kernle' matches no leaf.*'bias'.*'kernel'"),
            ({"targets": ["kernel", "query"]}, "targets: 'query' matches no leaf"),
            ({"targets": "("}, r"targets must be regular .*got '\('"),
            ({"targets": 3}, "targets must be regular expressions, or predicates of a path, got 3"),
            ({"targets": []}, r"targets must have at least one pattern, got \[\]"),
            ({"targets": "bias"}, r"'bias' matches no matrix: 'bias', which has shape \(3,\)"),
            ({"targets": ["kernel", "bias"]}, "'bias' matches no matrix"),
            ({"targets": re.compile("kernle")}, "kernle.* matches no leaf"),
            ({"targets": lambda path: False}, "lambda.* matches no leaf"),
            ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
            ({"layer_axes": -1}, "layer_axes must be at least 0, got -1"),
            ({"layer_axes": 1}, r"'kernel', which has shape \(5, 3\) .*after 1 axes of layers"),
            ({"targets": "count"}, "'count', which is int32"),
            ({"rank": 0}, "rank must be at least 1, got 0"),
            ({"rank": 4}, r"rank must be at most.*got 4 for 'kernel' of shape \(5, 3\)"),
            ({"alpha": 0}, "alpha must be a positive finite number, got 0.0"),
            ({"b_std": -0.1}, "b_std must be at least 0 and finite, got -0.1"),
        ],
    )
    def test_errors(self, options, message):
        params = {
            "kernel": jnp.zeros((5, 3)),
            "bias": jnp.zeros(3),
            "count": jnp.zeros((4, 4), jnp.int32),
        }
        with pytest.raises(ValueError, match=message):
            lora.init(params, jax.random.key(0), **{"rank": 2, "targets": "kernel", **options})


class TestModel:
    @pytest.mark.slow
    @pytest.mark.parametrize("scan", [True, False])
    def test_zero_b_changes_nothing(self, scan):
        model, params, factors = built(scan, b_std=0.0)
        assert jnp.array_equal(logits(model, params, factors), logits(model, params))

    @pytest.mark.slow
    @pytest.mark.parametrize(("scan", "remat"), [(True, False), (False, False), (True, True)])
    def test_factors_equal_merged_parameters(self, scan, remat):
        model, params, factors = built(scan, remat=remat)
        applied = logits(model, params, factors)
        assert jnp.abs(applied - logits(model, params)).max() > 0.05
        chex.assert_trees_all_close(applied, logits(model, lora.merge(params, factors)), atol=1e-5)

    def test_both_layouts_give_the_same(self):
        model, params, factors = built()
        flat = Transformer(dataclasses.replace(model.config, scan=False))
        own = logits(flat, unstack_layers(params), unstack_layers(factors))
        chex.assert_trees_all_close(own, logits(model, params, factors), atol=1e-5)

    @pytest.mark.slow
    def test_gpt2_too(self):
        sizes = {**SIZES, "n_kv_heads": 0}
        model = Transformer(TransformerConfig.gpt2(**sizes))
        params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
        factors = lora.init(params, jax.random.key(1), rank=2, targets="kernel", b_std=0.3)
        applied = logits(model, params, factors)
        chex.assert_trees_all_close(applied, logits(model, lora.merge(params, factors)), atol=1e-5)


class TestMerge:
    def test_is_the_update(self):
        a, b = np.arange(8.0).reshape(2, 4, 1), np.arange(6.0).reshape(2, 1, 3)
        kernel, bias = np.ones((2, 4, 3)), np.ones(3)
        params = {"layer": {"kernel": jnp.array(kernel), "bias": jnp.array(bias)}}
        factors = {"layer": {"kernel": lora.Factors(jnp.array(a), jnp.array(b), 0.5)}}
        merged = lora.merge(params, factors)
        np.testing.assert_array_equal(merged["layer"]["kernel"], kernel + 0.5 * a @ b)
        assert merged["layer"]["bias"] is params["layer"]["bias"]
        np.testing.assert_array_equal(params["layer"]["kernel"], kernel)

    @pytest.mark.slow
    @pytest.mark.parametrize("scan", [True, False])
    def test_unmerge_restores(self, scan):
        _, params, factors = built(scan)
        merged = lora.merge(params, factors)
        chex.assert_trees_all_equal_structs(merged, params)
        chex.assert_trees_all_close(lora.unmerge(merged, factors), params, atol=1e-6)

    def test_sums_in_float32_and_keeps_the_dtype(self):
        # Just more than half of what separates 1 from the next bfloat16; rounded first, just half.
        params = {"kernel": jnp.ones((2, 2), jnp.bfloat16)}
        a = jnp.full((2, 1), 2.0**-8 * (1 + 2.0**-10))
        kernel = lora.merge(params, {"kernel": lora.Factors(a, jnp.ones((1, 2)), 1.0)})["kernel"]
        assert kernel.dtype == jnp.bfloat16
        assert (kernel == 1 + 2.0**-7).all()

    def test_float64(self, x64):
        params = {"kernel": jnp.ones((2, 2), jnp.float64)}
        factors = {"kernel": lora.Factors(jnp.full((2, 1), 1e-6), jnp.full((1, 2), 1e-6), 1.0)}
        merged = lora.merge(params, factors)["kernel"]
        np.testing.assert_allclose(merged - 1, 1e-12, rtol=1e-3)

    def test_jit_and_vmap_over_tasks(self):
        _, params, factors = built()
        tasks = jax.tree.map(lambda side: jnp.stack([side, 2 * side, -side]), factors)
        merged = jax.jit(jax.vmap(lora.merge, in_axes=(None, 0)))(params, tasks)
        for task in range(3):
            own = lora.merge(params, jax.tree.map(lambda side, task=task: side[task], tasks))
            chex.assert_trees_all_close(
                jax.tree.map(lambda leaf, task=task: leaf[task], merged), own, atol=1e-6
            )

    @pytest.mark.parametrize(
        ("factors", "message"),
        [
            ({"body": {"kernle": "F"}}, r"'body/kernle', which isn't a leaf.*'body/kernel'"),
            ({"body": {"kernel": {"a": "F"}}}, "factors at 'body/kernel/a', which isn't a leaf"),
            ({"body": "F"}, "lora has factors at 'body', which isn't a leaf of params"),
            ({"body": {"bias": "F"}}, r"don't fit 'body/bias' of shape \(3,\)"),
            ({"other": "F"}, r"shapes \(4, 2\) and \(2, 3\) don't fit 'other' of shape \(4, 4\)"),
            ({"other": jnp.ones((4, 4))}, "must hold Factors in nested dicts, got .* at 'other'"),
        ],
    )
    def test_errors(self, factors, message):
        params = {
            "body": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)},
            "other": jnp.zeros((4, 4)),
        }
        own = lora.Factors(jnp.zeros((4, 2)), jnp.zeros((2, 3)), 1.0)
        factors = jax.tree.map(lambda leaf: own if isinstance(leaf, str) else leaf, factors)
        with pytest.raises(ValueError, match=message):
            lora.merge(params, factors)


class TestAdapt:
    @staticmethod
    def adapted(model, params, factors, tokens, **options):
        variables, info = metajax.adapt(
            token_loss(model),
            {"params": params, "lora": factors},
            tokens,
            optimizer=optax.sgd(0.1),
            steps=3,
            trainable=lora.is_factor,
            **options,
        )
        return variables, info

    @pytest.mark.slow
    @pytest.mark.parametrize("scan", [True, False])
    def test_trains_the_factors_alone(self, scan):
        model, params, factors = built(scan, b_std=0.0)
        variables, info = jax.jit(lambda own: self.adapted(model, params, own, TOKENS))(factors)
        assert info.loss[-1] < info.loss[0]
        chex.assert_trees_all_equal(variables["params"], params)
        for side in jax.tree.leaves(variables["lora"]):
            assert side.any()

    @pytest.mark.slow
    def test_with_zero_b_the_first_step_moves_b_alone(self):
        model, params, factors = built(b_std=0.0)
        loss_fn = token_loss(model)
        gradient = jax.jit(jax.grad(lambda own: loss_fn({"params": params, "lora": own}, TOKENS)))
        first = gradient(factors)["blocks"]["attention"]["query"]["kernel"]
        assert not first.a.any()
        assert first.b.any()
        _, _, factors = built(b_std=0.1)
        assert gradient(factors)["blocks"]["attention"]["query"]["kernel"].a.any()

    @pytest.mark.slow
    def test_gradients_equal_those_through_merge(self, x64):
        # In float64: three steps and their derivatives amplify what float32 rounds away.
        targets = r"attention/(query|value)/kernel|mlp/up/kernel"
        model, params, factors = built(targets=targets, dtype=jnp.float64)
        loss_fn = token_loss(model)
        merged_loss = lambda own, tokens: loss_fn({"params": lora.merge(params, own)}, tokens)
        query = TOKENS[:, ::-1]

        def applied(own):
            variables, info = self.adapted(model, params, own, TOKENS)
            return loss_fn(variables, query), (variables["lora"], info.loss)

        def merged(own):
            optimizer = optax.sgd(0.1)
            end, info = metajax.adapt(merged_loss, own, TOKENS, optimizer=optimizer, steps=3)
            return merged_loss(end, query), (end, info.loss)

        one, other = (jax.jit(jax.grad(f, has_aux=True))(factors) for f in (applied, merged))
        (_, (ends, losses)) = one
        assert losses[-1] < losses[0]
        assert not jnp.allclose(jax.tree.leaves(ends)[0], jax.tree.leaves(factors)[0], atol=1e-4)
        chex.assert_trees_all_close(one, other, atol=1e-10, rtol=1e-8)

    @pytest.mark.slow
    @pytest.mark.parametrize("scan", [True, False])
    def test_tasks_together_equal_one_after_another(self, scan):
        model, params, factors = built(scan, targets="query|down")
        shape = (3, *TOKENS.shape)
        tasks = jax.random.randint(jax.random.key(3), shape, 0, SIZES["vocab_size"])
        adapt = lambda tokens: self.adapted(model, params, factors, tokens)[0]["lora"]
        together = jax.jit(jax.vmap(adapt))(tasks)
        one = jax.jit(adapt)
        alone = jax.tree.map(lambda *sides: jnp.stack(sides), *(one(task) for task in tasks))
        chex.assert_trees_all_close(together, alone, atol=1e-5)

    def test_each_product_with_a_base_matrix_is_shared_by_the_tasks(self):
        # A product with a matrix for each task would have the tasks as a batch dimension.
        model, params, factors = built(False, targets="mlp/up")
        tasks = jnp.stack([TOKENS] * 3)
        apply = lambda own, tokens: model.apply({"params": params, "lora": own}, tokens)
        per_task = jax.tree.map(lambda side: jnp.stack([side] * 3), factors)
        jaxpr = jax.make_jaxpr(jax.vmap(apply))(per_task, tasks)
        batched = [
            equation.invars[1].aval.shape
            for equation in jaxpr.eqns
            if equation.primitive.name == "dot_general"
            and equation.params["dimension_numbers"][1][0] == (0,)
            and equation.invars[1].aval.ndim == 3
        ]
        assert sorted(set(batched)) == [(3, 3, 64), (3, 16, 3)]
