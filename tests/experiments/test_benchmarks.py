"""The benchmark compares programs that compute the same, and says so only where they do."""

import json
import sys

import jax
import numpy as np
import optax
import pytest

import experiments.benchmarks
from experiments.benchmarks import jax_programs, measure, meta_step
from experiments.benchmarks.workload import (
    Program,
    Workload,
    initial_weights,
    random_episodes,
    relative_error,
)

TINY = Workload(tasks=3, n_way=3, k_shot=2, image_size=12, features=4, inner_steps=2)
WEIGHTS = initial_weights(TINY, seed=0)
ARRAYS = random_episodes(TINY, seed=1)


@pytest.fixture(scope="module")
def reference():
    return jax_programs.ordinary_program(TINY, WEIGHTS, ARRAYS)


def test_metajax_computes_what_ordinary_flax_does(reference):
    gradient_fn = jax.jit(jax_programs.metajax_gradient(TINY))
    tree, loss = gradient_fn(jax_programs.to_tree(WEIGHTS), jax_programs.as_episodes(ARRAYS))
    gradient, expected_loss = reference.gradient()
    assert relative_error(jax_programs.to_weights(tree), gradient) < 1e-4
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.parametrize("name", ["functional_program", "higher_program"])
def test_pytorch_computes_what_ordinary_flax_does(reference, name):
    pytest.importorskip("torch", reason="PyTorch is the extra 'bench'")
    if name == "higher_program":
        pytest.importorskip("higher", reason="higher is the extra 'bench'")
    from experiments.benchmarks import torch_programs

    program = getattr(torch_programs, name)(TINY, WEIGHTS, ARRAYS)
    measure.check_agreement([program], reference, tolerance=1e-4)


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


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_program_that_computes_something_else_is_refused(reference, factor):
    gradient, loss = reference.gradient()
    other = {name: factor * value for name, value in gradient.items()}
    program = Program("other", lambda: (other, loss), lambda: None, lambda state: state, None, None)
    with pytest.raises(ValueError, match=r"'other' and .* do not compute the same"):
        measure.check_agreement([program], reference, tolerance=1e-3)


def test_gradients_with_other_leaves_are_refused():
    with pytest.raises(ValueError, match="other leaves"):
        relative_error({"a": np.ones(2)}, {"b": np.ones(2)})


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


def constant_program(name: str, seconds: float) -> Program:
    """A program that computes what its namesakes do, and does nothing a step."""

    def program(workload, weights, arrays, **form):
        own_name = ", ".join([name, *(key for key, value in form.items() if value)])
        return Program(
            own_name, lambda: (weights, 1.0), lambda: 0, lambda state: state + 1, seconds, 5_000_000
        )

    return program


def test_a_run_leaves_its_artefacts_and_names_missing_peers(tmp_path, monkeypatch):
    monkeypatch.setattr(jax_programs, "metajax_program", constant_program("metajax", 2.0))
    monkeypatch.setattr(jax_programs, "ordinary_program", constant_program("ordinary", 1.0))
    monkeypatch.setattr(
        jax_programs, "compile_seconds", lambda *args, inner_steps: 1.0 + inner_steps / 10
    )
    monkeypatch.setattr(measure, "matmul_gflops", lambda: 123.4)
    monkeypatch.setitem(sys.modules, "experiments.benchmarks.torch_programs", None)
    monkeypatch.delattr(experiments.benchmarks, "torch_programs", raising=False)
    config = meta_step.Config(workload=TINY, rounds=2, steps_per_turn=2, out=tmp_path / "bench")
    table = meta_step.run(config)

    result = json.loads((config.out / "meta_step.json").read_text())
    names = ["metajax, shared", "metajax", "ordinary", "ordinary, of_the_mean"]
    assert [row["name"] for row in result["programs"]] == names
    for row in result["programs"]:
        assert len(row["milliseconds"]) == 4
        assert row["lower_quartile_ms"] <= row["median_ms"] <= row["upper_quartile_ms"]
    assert result["programs"][0]["ratio"] == 1
    assert result["agreement"]["errors"] == dict.fromkeys(names, 0)
    assert [row["median_seconds"] for row in result["compilation"]] == [1.1, 1.5, 4.2]
    assert result["workload"]["tasks"] == 3
    assert "--workload.tasks 3" in result["command"]
    assert str(tmp_path) not in json.dumps(result)

    assert (config.out / "meta_step.md").read_text() == table
    assert "| PyTorch, torch.func vmap | not measured: PyTorch cannot be imported" in table
    assert "| 32 | 4.20 | +282 % |" in table
    assert (config.out / "meta_step.png").stat().st_size < 100_000


@pytest.mark.parametrize(
    ("kind", "argument"),
    [
        (Workload, {"tasks": 0}),
        (Workload, {"inner_rate": -1.0}),
        (meta_step.Config, {"rounds": 0}),
        (meta_step.Config, {"compile_steps": ()}),
    ],
)
def test_sizes_that_measure_nothing_are_refused(kind, argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))} must be above zero"):
        kind(**argument)
