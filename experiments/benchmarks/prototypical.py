"""Times a training step of Prototypical Networks beside the same network in PyTorch.

    make bench                        (or: python -m experiments.benchmarks.prototypical)

One step of ``experiments.fewshot.omniglot.metric`` on an episode of 60 classes, one support and
five query images of each: Conv-4 with max-pooling on all 360 images together, normalised by their
statistics, the running ones updated, and Adam. PyTorch computes it in four forms: channels first or
last, eagerly or by ``torch.compile``, which needs a C++ compiler. Loss and gradient are compared
first, and nothing is timed unless they agree. It takes three minutes on two idle cores.
"""

import dataclasses
import functools
import itertools
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure

import metajax
from experiments import common
from experiments.benchmarks import jax_programs, measure, meta_step, report
from experiments.benchmarks.workload import (
    Arrays,
    Compilation,
    Program,
    Weights,
    Workload,
    in_float64,
    initial_weights,
    random_episodes,
)
from metajax.models import Conv4

CHECKED_WAYS = 20
"""Classes of the comparison in float64. With 50, a float64 product of jaxlib 0.10.2 ends the
process with a segmentation fault on a CPU with AVX-512."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    n_way: int = 60
    """Classes of the episode."""
    k_shot: int = 1
    """Support images a class."""
    query: int = 5
    """Query images a class."""
    image_size: int = 28
    """Height and width in pixels."""
    features: int = 64
    """Filters of each convolution."""
    rounds: int = 20
    """Turns of each program."""
    turn_seconds: float = 1.0
    """How long a turn takes; one step at least."""
    tolerance: float = 1e-9
    """Largest relative difference of two programs' gradients (Euclidean norm) in float64."""
    float32_tolerance: float = 1e-2
    """The same in float32, where a rounding error moves some of millions of activations across the
    kink of a ReLU or of a maximum."""
    platform: Literal["cpu", "gpu"] = "cpu"
    """Where the programs run."""
    seed: int = 0
    """Seed of the episode and the initial weights."""
    out: Path = Path("runs/bench")
    """Folder for prototypical.json, .md and .png; existing ones are replaced."""

    def __post_init__(self) -> None:
        common.check_positive(self, "rounds", "turn_seconds", "tolerance", "float32_tolerance")
        self.workload()

    def workload(self) -> Workload:
        """The sizes; what they say of an inner loop isn't used."""
        return Workload(
            tasks=1,
            n_way=self.n_way,
            k_shot=self.k_shot,
            query=self.query,
            form="pool",
            image_size=self.image_size,
            features=self.features,
        )


def flops(workload: Workload) -> int:
    """Floating-point operations of a step's convolutions: three products a layer, two in the
    first, whose input has no gradient."""
    first, *others = workload.forward_flops()[:-1]
    return workload.n_way * (workload.k_shot + workload.query) * (2 * first + 3 * sum(others))


def data(config: Config) -> tuple[Weights, Arrays]:
    """The initial weights, without a head, and the episode."""
    weights = initial_weights(config.workload(), config.seed)
    body = {name: value for name, value in weights.items() if not name.startswith("head")}
    return body, random_episodes(config.workload(), config.seed + 1)


def metajax_program(workload: Workload, weights: Weights, arrays: Arrays) -> Program:
    """The step of ``metajax.meta_trainer``, on one device, whose operations all cores share.

    The temporary memory is that of the gradient.
    """
    episodes = jax_programs.as_episodes(arrays)
    body = Conv4(None, features=workload.features, form="pool", norm="running")
    size, channels = workload.image_size, workload.channels
    variables, apply = metajax.from_linen(
        body, jax.random.key(0), jnp.zeros((1, size, size, channels))
    )
    variables = {**variables, "params": jax_programs.to_tree(weights)}

    def embed(variables, inputs):
        return apply(variables, inputs, mutable=["batch_stats"])

    learner = metajax.prototypical(embed, n_way=workload.n_way)
    trainer = metajax.meta_trainer(
        learner,
        optax.adam(workload.outer_rate),
        lambda key: jax.tree.map(lambda leaf: leaf[0], episodes),
        meta_batch=1,
        carry=metajax.carry_statistics,
    )

    @functools.cache
    def compiled_gradient():
        return jax.jit(metajax.meta_gradient(learner)).lower(variables, episodes).compile()

    def gradient() -> tuple[Weights, float]:
        tree, metrics = compiled_gradient()(variables, episodes)
        return jax_programs.to_weights(tree["params"]), float(metrics["loss"])

    def compile_it() -> Compilation:
        start = time.perf_counter()
        step(init())
        seconds = time.perf_counter() - start
        return Compilation(seconds, jax_programs.temporary_bytes(compiled_gradient()))

    def init() -> metajax.TrainState:
        return trainer.init(variables, jax.random.key(0))

    def step(state: metajax.TrainState) -> metajax.TrainState:
        state, _ = trainer.step(state)
        return jax.block_until_ready(state)

    return Program(jax_programs.METAJAX, gradient, compile_it, init, step)


def torch_programs(
    config: Config, weights: Weights, arrays: Arrays
) -> tuple[list[Program], dict[str, str]]:
    """PyTorch's forms, and why they can't be had."""
    try:
        from experiments.benchmarks import torch_prototypical
    except ImportError as error:
        return [], {"PyTorch": f"it cannot be imported ({error}); pip install 'metajax[bench]'"}
    device = "cpu" if config.platform == "cpu" else "cuda"
    programs = [
        torch_prototypical.program(
            config.workload(),
            weights,
            arrays,
            channels_last=channels_last,
            compiled=compiled,
            device=device,
        )
        for compiled, channels_last in itertools.product((False, True), repeat=2)
    ]
    return programs, {}


def build_programs(
    config: Config, weights: Weights, arrays: Arrays
) -> tuple[list[Program], dict[str, str]]:
    """All programs, metajax first, and why others can't be had."""
    programs, missing = torch_programs(config, weights, arrays)
    return [metajax_program(config.workload(), weights, arrays), *programs], missing


def compile_all(programs: list[Program], missing: dict[str, str]) -> dict[str, Compilation]:
    """Compiles each, by name; one that can't be is added to ``missing``."""
    found = {}
    for program in programs:
        try:
            found[program.name] = program.compile()
        except RuntimeError as error:  # torch.compile without a C++ compiler
            if program.name == jax_programs.METAJAX:
                raise
            missing[program.name] = str(error).strip().split("\n")[0]
    return found


def results(config: Config) -> dict[str, Any]:
    """Builds, checks and times the programs; JSON values.

    Raises:
        RunError: if they don't compute the same.
    """
    environment = common.environment()
    environment["versions"] |= meta_step.peer_versions(("torch",))
    meta_step.prepare_torch(environment["cores"])
    weights, arrays = data(config)
    programs, missing = build_programs(config, weights, arrays)
    report.say("compiling ...")
    compilations = compile_all(programs, missing)
    programs = [program for program in programs if program.name in compilations]

    report.say("comparing the gradients, in float64 and float32 ...")
    with jax.enable_x64(True):
        fewer = dataclasses.replace(config, n_way=min(CHECKED_WAYS, config.n_way))
        doubles, _ = build_programs(fewer, *in_float64(*data(fewer)))
        doubles = [program for program in doubles if program.name in compilations]
        float64_errors = measure.check_agreement(doubles, doubles[0], tolerance=config.tolerance)
    errors = measure.check_agreement(programs, programs[0], tolerance=config.float32_tolerance)

    report.say(f"timing {'; '.join(program.name for program in programs)} ...")
    seconds, peaks = measure.interleaved(
        programs,
        rounds=config.rounds,
        turn_seconds=config.turn_seconds,
        budget_seconds=float("inf"),
    )
    rows = measure.rows(
        programs,
        [compilations[program.name] for program in programs],
        seconds,
        peaks,
        flops=flops(config.workload()),
        float64_errors=float64_errors,
        float32_errors=errors,
    )
    return {
        "command": common.command("experiments.benchmarks.prototypical", config),
        "environment": environment,
        "rounds": config.rounds,
        "turn_seconds": config.turn_seconds,
        "tolerance": config.tolerance,
        "checked_ways": min(CHECKED_WAYS, config.n_way),
        "float32_tolerance": config.float32_tolerance,
        "workload": {
            name: getattr(config, name)
            for name in ("n_way", "k_shot", "query", "image_size", "features")
        },
        "flops": flops(config.workload()),
        "matmul_gflops": measure.matmul_gflops(),
        "programs": rows,
        "missing": missing,
    }


def title(result: dict[str, Any]) -> str:
    """The step's sizes in words."""
    sizes = result["workload"]
    return (
        f"{sizes['n_way']}-way {sizes['k_shot']}-shot, {sizes['query']} query images a class, "
        f"Conv-4 with max-pooling of {sizes['features']} filters, images "
        f"{sizes['image_size']}×{sizes['image_size']}×1"
    )


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "One training step of Prototypical Networks with Adam's update, float32; × is how many "
        "times as long as metajax a program takes.",
        "",
        f"{title(result)}; {result['flops'] / 1e9:.1f} GFLOP; the matmul peak was "
        f"{result['matmul_gflops']:.0f} GFLOP/s.",
        "",
        *report.program_lines(result["programs"], result["missing"]),
        "",
        f"One process, programs in turns, {result['rounds']} rounds of turns of "
        f"{result['turn_seconds']} s. Before timing, losses and gradients were compared with "
        f"metajax's: in float64 with {result['checked_ways']} classes, where a relative deviation "
        f"of {result['tolerance']:.0e} is accepted, and in float32 with all "
        f"({result['float32_tolerance']:.0e}: rounding moves activations "
        "across the kinks of ReLU and maximum).",
        "",
        "GFLOP counts the convolutions' products once, as they are defined: three a layer, two in "
        "the first, whose input has no gradient.",
        "",
        *report.provenance(result),
    ]
    return "\n".join(lines) + "\n"


def chart(result: dict[str, Any], path: Path) -> None:
    """A bar a program."""
    rows, environment = result["programs"], result["environment"]
    figure = Figure(figsize=(10, 0.3 * len(rows) + 0.9), dpi=72, layout="constrained")
    axes = figure.subplots()
    report.bars(axes, rows, title(result))
    axes.set_xlabel(
        f"ms a training step (median, quartiles), {environment['device']}, "
        f"{environment['cores']} cores"
    )
    figure.savefig(path)


def run(config: Config) -> str:
    """Measures, and writes the files into ``config.out``; returns the table."""
    config.out.mkdir(parents=True, exist_ok=True)
    result = results(config)
    report.write(config.out, "prototypical", result, table(result), chart)
    return table(result)


def main() -> None:
    """The command line."""
    config = common.parse(Config, None, __doc__ or "")
    meta_step.prepare_jax(config.platform)
    print(run(config))
    report.say(f"written to {config.out}")


if __name__ == "__main__":
    common.guard(main)
