"""Low-rank factors: their start, their use by the model, merging, and adaptation of them."""

import dataclasses
import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import lm
from metajax.lm import lora
from metajax.models import Dense, Transformer, TransformerConfig, unstack_layers

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


def shapes_of(factors):
    flat = metajax.trees.leaf_paths(factors)
    leaves = jax.tree.leaves(factors)
    return {path: leaf.shape for path, leaf in zip(flat, leaves, strict=True)}


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

    def test_init_gives_it_and_merge_ignores_it(self):
        params = params_of(Dense(3))
        start = functools.partial(lora.init, params, jax.random.key(0), rank=2, targets="kernel")
        one, other = start(b_std=1.0, dropout=0.25), start(b_std=1.0)
        assert one["kernel"].dropout == 0.25
        chex.assert_trees_all_equal(lora.merge(params, one), lora.merge(params, other))


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
