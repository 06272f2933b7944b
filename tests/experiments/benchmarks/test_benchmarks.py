"""The benchmark compares programs that compute the same, and says so only where they do."""

import dataclasses
import importlib.util
import json
import sys
import time
import types

import jax
import numpy as np
import optax
import pytest

import experiments.benchmarks
from experiments.benchmarks import (
    jax_programs,
    measure,
    memory,
    meta_step,
    prototypical,
    transformer,
)
from experiments.benchmarks.workload import (
    CELLS,
    Compilation,
    Program,
    Workload,
    in_float64,
    initial_weights,
    random_episodes,
    relative_error,
)

TINY = Workload(tasks=3, n_way=3, k_shot=2, image_size=12, features=4, inner_steps=2)
FORMS = {
    "stride": TINY,
    "pool": dataclasses.replace(TINY, form="pool", image_size=19, channels=2, inner_rate=0.01),
    "mlp": dataclasses.replace(TINY, form="mlp", image_size=5),
}
WEIGHTS = initial_weights(TINY, seed=0)
ARRAYS = random_episodes(TINY, seed=1)


@pytest.fixture(scope="module")
def reference():
    return jax_programs.ordinary_program(TINY, WEIGHTS, ARRAYS)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_all_programs_compute_the_same(form, x64):
    workload = FORMS[form]
    arguments = in_float64(initial_weights(workload, seed=0), random_episodes(workload, seed=1))
    programs = [jax_programs.metajax_program(workload, *arguments)]
    if importlib.util.find_spec("torch"):
        from experiments.benchmarks import torch_programs

        programs.append(torch_programs.functional_program(workload, *arguments))
        modules = {"parallel_metalearn": "metalearn"}
        for name in ("higher", "torchopt", "parallel_metalearn", "iteryne"):
            if importlib.util.find_spec(modules.get(name, name)):
                build = getattr(torch_programs, f"{name}_program")
                programs.append(build(workload, *arguments))
    ordinary = jax_programs.ordinary_program(workload, *arguments)
    measure.check_agreement(programs, ordinary, tolerance=1e-10)


def test_flops_of_a_network_counted_by_hand():
    """Products 2 · rows · inner · columns; 9 of each later layer, 4 of the first, 3 and 2."""
    workload = Workload(tasks=2, n_way=3, k_shot=2, query=4, form="mlp", image_size=4)
    later = 2 * (256 * 128 + 128 * 64 + 64 * 64 + 64 * 3)
    support, query = 4 * 2 * 16 * 256 + 9 * later, 2 * 2 * 16 * 256 + 3 * later
    assert workload.flops() == 2 * (3 * 2 * support + 3 * 4 * query)


@pytest.mark.parametrize("cell", CELLS)
def test_convolutions_are_counted_as_they_are(cell):
    """The forward pass of one image, by the shapes that the network really has."""
    workload = CELLS[cell]
    if workload.form == "mlp":
        return
    module = jax_programs.OrdinaryNetwork(workload)
    weights = jax.eval_shape(lambda: jax_programs.to_tree(initial_weights(workload, 0)))
    image = jax.ShapeDtypeStruct((1, *[workload.image_size] * 2, workload.channels), "float32")
    apply = lambda params, x: module.apply({"params": params}, x, mutable=["batch_stats"])[0]
    counted = 0
    for equation in jax.make_jaxpr(apply)(weights, image).jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            outputs, matrix = equation.outvars[0].aval, equation.invars[1].aval
            counted += 2 * outputs.size * matrix.size // matrix.shape[-1]
    assert sum(workload.forward_flops()) == counted


@pytest.mark.parametrize("size", [7, 12])
def test_pytorch_pads_as_flax_does_for_even_and_odd_sizes(size):
    torch = pytest.importorskip("torch", reason="PyTorch is the extra 'bench'")
    from flax import linen as nn

    from experiments.benchmarks import torch_programs

    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, size, size, 3)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 3, 4)).astype(np.float32)
    module = nn.Conv(4, (3, 3), strides=2, padding="SAME", use_bias=False)
    expected = module.apply({"params": {"kernel": kernel}}, images)
    outputs = torch.nn.functional.conv2d(
        torch_programs.same_padding(torch.from_numpy(images).permute(0, 3, 1, 2)),
        torch_programs.to_tensors({"kernel": kernel})["kernel"],
        stride=2,
    )
    np.testing.assert_allclose(outputs.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_program_that_computes_something_else_is_refused(reference, factor):
    gradient, loss = reference.gradient()
    other = {name: factor * value for name, value in gradient.items()}
    nothing = lambda *_: None
    program = Program("other", lambda: (other, loss), nothing, nothing, nothing)
    with pytest.raises(ValueError, match=r"'other' and .* do not compute the same"):
        measure.check_agreement([program], reference, tolerance=1e-3)


def test_one_turn_is_its_own_quartiles():
    nothing = lambda *_: None
    program = Program("one", nothing, nothing, nothing, nothing)
    (row,) = measure.rows(
        [program],
        [Compilation(None, None)],
        {"one": [0.25]},
        {"one": None},
        flops=10**9,
        float64_errors={},
        float32_errors={"one": 0.0},
    )
    assert row["lower_quartile_ms"] == row["median_ms"] == row["upper_quartile_ms"] == 250
    assert row["ratio"] == 1


def test_gradients_with_other_leaves_are_refused():
    with pytest.raises(ValueError, match="other leaves"):
        relative_error({"a": np.ones(2)}, {"b": np.ones(2)})


@pytest.mark.slow
def test_a_step_is_adam_on_the_meta_gradient(reference):
    gradient, _ = reference.gradient()
    optimizer = optax.adam(TINY.outer_rate)
    updates, _ = optimizer.update(gradient, optimizer.init(WEIGHTS))
    expected = optax.apply_updates(WEIGHTS, updates)
    params, _ = reference.step(reference.init())
    weights = jax_programs.to_weights(params)
    assert weights.keys() == WEIGHTS.keys()
    # Adam takes the sign of a gradient that is rounding alone, such as that of a bias before a
    # normalisation, so only leaves with a real gradient are compared.
    for name, value in weights.items():
        if "conv" not in name or "kernel" in name:
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)


def constant_program(name: str, seconds: float):
    """A program that computes what its namesakes do, and does nothing a step."""

    def program(workload, weights, arrays, **form):
        own_name = ", ".join([name, *(key for key, value in form.items() if value is True)])
        compilation = Compilation(seconds, 5_000_000)
        return Program(
            own_name,
            lambda: (weights, 1.0),
            lambda: compilation,
            lambda: 0,
            lambda state: state + 1,
        )

    return program


def test_a_run_leaves_its_artefacts_and_names_missing_peers(tmp_path, monkeypatch):
    monkeypatch.setitem(meta_step.CELLS, "5-way 1-shot", TINY)
    monkeypatch.setitem(meta_step.CELLS, "MLP", FORMS["mlp"])
    monkeypatch.setattr(jax_programs, "metajax_program", constant_program("metajax", 2.0))
    monkeypatch.setattr(jax_programs, "ordinary_program", constant_program("ordinary", 1.0))
    monkeypatch.setattr(
        jax_programs, "compile_seconds", lambda *args, inner_steps: 1.0 + inner_steps / 10
    )
    monkeypatch.setattr(measure, "matmul_gflops", lambda: 123.4)
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setitem(sys.modules, "experiments.benchmarks.torch_programs", None)
    monkeypatch.delattr(experiments.benchmarks, "torch_programs", raising=False)
    config = meta_step.Config(
        cells=("5-way 1-shot", "MLP"), rounds=2, turn_seconds=1e-5, out=tmp_path / "bench"
    )
    table = meta_step.run(config)

    result = json.loads((config.out / "meta_step.json").read_text())
    names = [[row["name"] for row in cell["programs"]] for cell in result["cells"]]
    one_device = ["metajax"] if jax.local_device_count() > 1 else []
    assert names == [
        ["metajax", *one_device, "ordinary", "ordinary, of_the_mean"],
        ["metajax", "ordinary"],
    ]
    for cell in result["cells"]:
        assert cell["programs"][0]["ratio"] == 1
        for row in cell["programs"]:
            assert len(row["milliseconds"]) >= 2
            assert row["lower_quartile_ms"] <= row["median_ms"] <= row["upper_quartile_ms"]
            assert row["float32_error"] == 0
            assert row["gflops"] == pytest.approx(cell["flops"] / row["median_ms"] / 1e6)
    assert [row["median_seconds"] for row in result["compilation"]] == [1.1, 1.5, 4.2]
    assert "--cells '5-way 1-shot' MLP" in result["command"]
    assert str(tmp_path) not in json.dumps(result)

    assert (config.out / "meta_step.md").read_text() == table
    for peer in ("torch.func vmap", "higher", "TorchOpt"):
        assert f"| PyTorch, {peer} | not measured: PyTorch cannot be imported" in table
    assert "| 32 | 4.20 | +282 % |" in table
    assert (config.out / "meta_step.png").stat().st_size < 100_000


SMALL = {"n_way": 3, "query": 2, "image_size": 19, "features": 4}


@pytest.mark.slow
def test_a_step_of_prototypical_networks_is_the_same_in_pytorch(x64):
    pytest.importorskip("torch", reason="PyTorch is the extra 'bench'")
    from experiments.benchmarks import torch_prototypical

    config = prototypical.Config(k_shot=2, **SMALL)
    arguments = (config.workload(), *in_float64(*prototypical.data(config)))
    program = prototypical.metajax_program(*arguments)
    state = program.step(program.init())
    for channels_last in (False, True):
        peer = torch_prototypical.program(*arguments, channels_last=channels_last, compiled=False)
        measure.check_agreement([peer], program, tolerance=1e-10)
        model, _ = peer.step(peer.init())
        # PyTorch's running variance is that of a sample: n / (n - 1) times the batch's own.
        examples = 3 * (2 + 2)
        for layer, side in enumerate(config.workload().sides()):
            n = examples * side**2
            own, other = state.params["batch_stats"][f"norm_{layer}"], model[4 * layer + 1]
            np.testing.assert_allclose(own["mean"], other.running_mean, rtol=1e-9, atol=1e-12)
            variance = 0.9 + (own["var"] - 0.9) * n / (n - 1)
            np.testing.assert_allclose(variance, other.running_var, rtol=1e-9)


@pytest.mark.slow
def test_the_benchmark_of_prototypical_networks_leaves_its_artefacts(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "matmul_gflops", lambda: 123.4)
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setitem(sys.modules, "experiments.benchmarks.torch_prototypical", None)
    monkeypatch.delattr(experiments.benchmarks, "torch_prototypical", raising=False)
    config = prototypical.Config(rounds=2, turn_seconds=1e-5, out=tmp_path / "bench", **SMALL)
    table = prototypical.run(config)
    result = json.loads((config.out / "prototypical.json").read_text())
    assert [row["name"] for row in result["programs"]] == ["metajax"]
    assert "--n-way 3 --query 2" in result["command"]
    assert str(tmp_path) not in json.dumps(result)
    assert (config.out / "prototypical.md").read_text() == table
    assert "| PyTorch | not measured: it cannot be imported" in table
    assert (config.out / "prototypical.png").exists()


def test_a_program_that_cannot_be_compiled_is_named():
    def fail():
        raise RuntimeError("no C++ compiler\nand much more")

    nothing = lambda *_: None
    program = Program("compiled", nothing, fail, nothing, nothing)
    missing = {}
    assert prototypical.compile_all([program], missing) == {}
    assert missing == {"compiled": "no C++ compiler"}


def test_a_slow_program_sits_out(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    steps = {"quick": 0, "slow": 0}

    def program(name, seconds):
        def step(state):
            time.sleep(seconds)
            steps[name] += 1
            return state

        return Program(name, lambda: ({}, 1.0), lambda: Compilation(None, None), lambda: 0, step)

    programs = [program("quick", 0.0), program("slow", 0.02)]
    seconds, _ = measure.interleaved(programs, rounds=5, turn_seconds=1e-3, budget_seconds=0.05)
    assert len(seconds["slow"]) == 3  # and two before them, to warm up
    assert steps["slow"] == 5
    assert len(seconds["quick"]) >= 5


@pytest.mark.slow
def test_memory_is_measured_by_mode_steps_and_tasks(tmp_path):
    config = memory.Config(inner_steps=(2, 8), tasks=(2,), timed=1, features=2, out=tmp_path)
    table = memory.run(config, {"mixed": memory.MODES["mixed"]})
    result = json.loads((tmp_path / "memory.json").read_text())
    few, many = (row["temporary_bytes"] for row in result["by_steps"])
    assert few < many
    assert [row["together"] for row in result["by_tasks"]] == [False, True]
    assert (tmp_path / "memory.md").read_text() == table
    assert (tmp_path / "memory.png").exists()


@pytest.mark.slow
def test_the_modes_agree_on_a_transformer(tmp_path):
    config = transformer.Config(
        inner_steps=(3,), layers=1, width=8, heads=2, length=6, batch=2, repeats=1, out=tmp_path
    )
    modes = {name: transformer.MODES[name] for name in ("unrolled", "mixed")}
    table = transformer.run(config, modes)
    rows = json.loads((tmp_path / "transformer.json").read_text())["rows"]
    assert [row["mode"] for row in rows] == list(modes)
    assert all(row["deviation"] < 1e-3 for row in rows)
    assert (tmp_path / "transformer.md").read_text() == table
    assert (tmp_path / "transformer.png").exists()


def test_a_program_that_needs_too_much_memory_is_not_run(monkeypatch):
    analysis = types.SimpleNamespace(temp_size_in_bytes=11)
    compiled = types.SimpleNamespace(memory_analysis=lambda: analysis)  # and can't be called
    monkeypatch.setattr(transformer, "build", lambda *_: (compiled, (), 1.0))
    rows = transformer.measure(transformer.Config(memory_limit=10), 4)
    assert all((row["seconds"], row["temporary_bytes"]) == ([], 11) for row in rows)


@pytest.mark.parametrize(
    ("kind", "argument", "message"),
    [
        (Workload, {"form": "vgg"}, "form must be 'stride', 'pool' or 'mlp'; got 'vgg'"),
        (Workload, {"form": "pool", "image_size": 8}, "image_size must be at least 16"),
        (meta_step.Config, {"compile_steps": (0,)}, "compile_steps must be above zero"),
        (meta_step.Config, {"cells": ()}, "cells must name at least one cell"),
        (meta_step.Config, {"cells": ("6-way",)}, "cells: '6-way' is none of '5-way 1-shot'"),
        (memory.Config, {"tasks": ()}, "tasks must be numbers above zero"),
        (transformer.Config, {"heads": 5}, "width, 384, must be a multiple of heads, 5"),
    ],
)
def test_sizes_that_measure_nothing_are_refused(kind, argument, message):
    with pytest.raises(ValueError, match=message):
        kind(**argument)
