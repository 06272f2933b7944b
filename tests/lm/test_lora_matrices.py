"""Which parameters are matrices, and which of their axes are of layers."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from lora_models import INPUTS, TOKENS, Block, logits, params_of, scanned, token_loss

import metajax
from metajax.lm import lora
from metajax.models import Dense, Transformer, TransformerConfig


def shapes_of(factors):
    flat = metajax.trees.leaf_paths(factors)
    leaves = jax.tree.leaves(factors)
    return {path: leaf.shape for path, leaf in zip(flat, leaves, strict=True)}


class TestStackedLayers:
    @pytest.mark.parametrize("make", ["gpt2", "qwen2", "qwen3", "llama"])
    @pytest.mark.parametrize("targets", ["attention", "mlp", "blocks", lambda p: "block" in p])
    def test_a_module_names_its_matrices(self, make, targets):
        config = getattr(TransformerConfig, make)(vocab_size=23, width=16, n_layers=2, n_heads=4)
        params = jax.eval_shape(Transformer(config).init, jax.random.key(0), TOKENS)["params"]
        factors = lora.init(params, jax.random.key(1), rank=3, targets=targets)
        names = metajax.trees.leaf_paths(factors)
        assert all(name.endswith(("/kernel/a", "/kernel/b")) for name in names)
        wanted = targets if callable(targets) else lambda path: targets in path
        kernels = [
            path
            for path in metajax.trees.leaf_paths(params)
            if path.endswith("kernel") and wanted(path) and "head" not in path
        ]
        assert len(names) == 2 * len(kernels)
        for path, shape in shapes_of(factors).items():
            assert shape[0] == 2, path
            assert shape[2 if path.endswith("/a") else 1] == 3

    @pytest.mark.parametrize("make", ["gpt2", "qwen2"])
    def test_they_are_read_and_equal_merged_parameters(self, make):
        config = getattr(TransformerConfig, make)(vocab_size=23, width=16, n_layers=2, n_heads=4)
        model = Transformer(config)
        params = params_of(model, TOKENS)
        start = functools.partial(lora.init, rank=2, alpha=6, b_std=0.3)
        factors = start(params, jax.random.key(1), targets="attention")
        chex.assert_trees_all_equal(
            factors, start(params, jax.random.key(1), targets="attention/.*/kernel")
        )
        applied = logits(model, params, factors)
        chex.assert_trees_all_close(applied, logits(model, lora.merge(params, factors)), atol=1e-5)
        loss_fn = token_loss(model)
        gradient = jax.jit(jax.grad(lambda own: loss_fn({"params": params, "lora": own}, TOKENS)))
        assert all(leaf.any(axis=(1, 2)).all() for leaf in jax.tree.leaves(gradient(factors)))

    def test_of_a_users_own_scan(self):
        model = scanned(Block())
        params = params_of(model)
        factors = lora.init(params, jax.random.key(1), rank=2, targets=".", b_std=0.3)
        assert shapes_of(factors) == {"up/kernel/a": (3, 6, 2), "up/kernel/b": (3, 2, 6)}
        applied, _ = model.apply({"params": params, "lora": factors}, INPUTS)
        merged, _ = model.apply({"params": lora.merge(params, factors)}, INPUTS)
        chex.assert_trees_all_close(applied, merged, atol=1e-5)

    def test_of_an_ensemble(self):
        model = scanned(Block())
        keys = jax.random.split(jax.random.key(0), 4)
        params = jax.vmap(lambda key: model.init(key, INPUTS)["params"])(keys)
        factors = lora.init(params, jax.random.key(1), rank=2, targets="up", b_std=0.3)
        assert shapes_of(factors) == {"up/kernel/a": (4, 3, 6, 2), "up/kernel/b": (4, 3, 2, 6)}
        apply = lambda params, own: model.apply({"params": params, "lora": own}, INPUTS)[0]
        members = jax.vmap(apply)
        merged = jax.vmap(lambda own: model.apply({"params": own}, INPUTS)[0])
        chex.assert_trees_all_close(
            members(params, factors), merged(lora.merge(params, factors)), atol=1e-5
        )

    def test_of_an_ensemble_of_plain_networks(self):
        model = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)])
        keys = jax.random.split(jax.random.key(0), 4)
        params = jax.vmap(lambda key: model.init(key, INPUTS)["params"])(keys)
        factors = lora.init(params, jax.random.key(1), rank=2, targets="")
        assert shapes_of(factors)["layers_2/kernel/a"] == (4, 5, 2)
        assert set(metajax.trees.leaf_paths(factors)) == {
            f"layers_{i}/kernel/{side}" for i in (0, 2) for side in "ab"
        }

    def test_layers_beside_others(self):
        params = {"blocks": params_of(scanned(Block())), "head": params_of(Dense(4))}
        factors = lora.init(params, jax.random.key(1), rank=2, targets=["up", "head"])
        assert factors["blocks"]["up"]["kernel"].a.shape == (3, 6, 2)
        assert factors["head"]["kernel"].a.shape == (6, 2)

    @pytest.mark.parametrize(
        ("model", "targets"),
        [
            (scanned(Block("heads")), "query"),
            (Block("heads"), "query"),
            (Block("heads"), "kernel"),
            (Block("heads", bias=False), "query"),
            (scanned(Block("conv")), "Conv"),
            (Block("conv"), "Conv"),
            (nn.Conv(4, (3, 3)), "kernel"),
            (nn.Conv(4, (3, 3), use_bias=False), "kernel"),
            (scanned(Block(), axis=1), "up"),
        ],
    )
    def test_kernels_of_more_axes_are_refused(self, model, targets):
        params = params_of(model, INPUTS[None] if isinstance(model, nn.Conv) else INPUTS)
        with pytest.raises(metajax.ArgumentError, match=r"targets match '.*kernel', which has sha"):
            lora.init(params, jax.random.key(1), rank=1, targets=targets)

    def test_heads_beside_a_matrix_are_no_layers(self):
        heads = {"kernel": jnp.ones((8, 2, 4))}
        params = {"query": heads, "value": heads, "out": {"kernel": jnp.ones((8, 8))}}
        with pytest.raises(metajax.ArgumentError, match=r"'query/kernel', which has shape"):
            lora.init(params, jax.random.key(1), rank=2, targets=".")
        factors = lora.init(params, jax.random.key(1), rank=2, targets="out")
        assert factors["out"]["kernel"].a.shape == (8, 2)

    def test_layers_of_a_state_of_nnx(self):
        nnx = pytest.importorskip("flax.nnx")

        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(key):
            return nnx.Linear(6, 5, rngs=nnx.Rngs(key))

        layers = stack(jax.random.split(jax.random.key(0), 3))
        _, state = nnx.split(layers, nnx.Param)
        factors = lora.init(state, jax.random.key(1), rank=2, targets=".", b_std=0.3)
        assert {leaf.shape for leaf in jax.tree.leaves(factors)} == {(3, 6, 2), (3, 2, 5)}
        merged = lora.merge(state, factors)
        own = factors["kernel"]["value"]
        chex.assert_trees_all_close(
            merged["kernel"].get_value(), layers.kernel.get_value() + own.a @ own.b, atol=1e-6
        )
        chex.assert_trees_all_equal(merged["bias"], state["bias"])

    def test_layers_that_no_vector_tells_must_be_named(self):
        params = {"layers": {"kernel": jnp.ones((3, 5, 4))}}
        with pytest.raises(metajax.ArgumentError, match=r"\(3, 5, 4\).*layer_axes="):
            lora.init(params, jax.random.key(1), rank=2, targets="kernel")
        factors = lora.init(params, jax.random.key(1), rank=2, targets="kernel", layer_axes=1)
        assert factors["layers"]["kernel"].b.shape == (3, 2, 4)

    def test_biases_of_heads_are_no_matrices(self):
        params = params_of(nn.DenseGeneral((2, 3)))
        with pytest.raises(metajax.ArgumentError, match="matches no matrix: 'bias'"):
            lora.init(params, jax.random.key(1), rank=1, targets="bias")

    def test_lists_of_layers_keep_their_keys(self):
        nnx = pytest.importorskip("flax.nnx")

        class Net(nnx.Module):
            def __init__(self, rngs):
                self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(11)])

            def __call__(self, x):
                for layer in self.layers:
                    x = x + jnp.tanh(layer(x))
                return x

        params, apply = metajax.from_nnx(Net(nnx.Rngs(0)))
        factors = lora.init(params, jax.random.key(1), rank=2, targets="layers", b_std=0.3)
        assert set(factors["layers"]) == set(params["layers"])
        by_hand = INPUTS
        for index in params["layers"]:
            layer, own = params["layers"][index], factors["layers"][index]["kernel"]
            inner = by_hand @ layer["kernel"] + own.scale * (by_hand @ own.a) @ own.b
            by_hand = by_hand + jnp.tanh(inner + layer["bias"])
        applied = lora.frozen_base(apply)({"params": params, "lora": factors}, INPUTS)
        chex.assert_trees_all_close(applied, by_hand, atol=1e-5)
