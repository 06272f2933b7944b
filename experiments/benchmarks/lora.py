"""Low-rank adaptation of a language model to many tasks, beside peft with one task after another.

    python -m experiments.benchmarks.lora

A Llama of 14 million random parameters, read by both from one checkpoint, and for each of 32 tasks
ten Adam steps from the same initial factors, in float32. Small tasks are a few examples each, which
is what adaptation to a prompt's examples has; large ones show where the machine's products are
the limit. A peer's tasks follow one another, so that a few of them are timed for all. The losses
before each step are compared before timing.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.figure import Figure

import metajax
from experiments import common
from experiments.benchmarks import measure, torch_lora
from experiments.benchmarks.report import bars, provenance, say, write
from metajax import lm
from metajax.lm import lora
from metajax.lm.peft_format import save_adapters
from metajax.models import Transformer, TransformerConfig

MODEL = TransformerConfig.llama(
    vocab_size=4096, width=384, n_layers=6, n_heads=6, mlp_width=1024, scan=False
)
QUERY_VALUE, ALL = r"attention/(query|value)/kernel", r"(attention|mlp)/\w+/kernel"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A task's size, how many are computed together, and which matrices have factors.

    The loss is on all tokens, or on the last ``answer`` of each sequence. Some have a vocabulary
    other than the model's.

    The numbers at once were the fastest in trials: activations of some 500 tokens stay in cache.
    """

    sequences: int
    length: int
    at_once: int
    targets: str = QUERY_VALUE
    answer: int = 0
    vocabulary: int = 0

    @property
    def name(self) -> str:
        """The cell in words."""
        matrices = "query and value" if self.targets == QUERY_VALUE else "all matrices"
        loss = f", loss on {self.answer}" if self.answer else ""
        vocabulary = f", of a vocabulary of {self.vocabulary:,}" if self.vocabulary else ""
        return f"{self.sequences} × {self.length} tokens{loss}{vocabulary}, {matrices}"

    @property
    def model(self) -> TransformerConfig:
        """The model that adapts."""
        return dataclasses.replace(MODEL, vocab_size=self.vocabulary or MODEL.vocab_size)

    @property
    def batch(self) -> lm.TokenBatch:
        """The mask of a task, and the places of its targets, with tokens to be filled in."""
        shape = (self.sequences, self.length + 1)
        mask = np.arange(shape[1]) >= shape[1] - (self.answer or self.length)
        zeros = np.zeros(shape, np.int32)
        return lm.with_places(lm.TokenBatch(zeros, mask=np.broadcast_to(mask, shape)))


CELLS: dict[str, Cell] = {
    "2x16": Cell(2, 16, 8),
    "4x16": Cell(4, 16, 8),
    "4x16-all": Cell(4, 16, 8, ALL),
    "8x32": Cell(8, 32, 2),
    "8x64-answers": Cell(8, 64, 1, answer=12, vocabulary=262144),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    cells: tuple[str, ...] = tuple(CELLS)[:4]
    """Which of them."""
    tasks: int = 32
    """Tasks that are adapted."""
    peer_tasks: int = 4
    """How many of them are compared, and timed for all where they follow one another."""
    steps: int = 10
    """Adam steps of each."""
    rank: int = 8
    """Rank of the factors; alpha is twice that."""
    rate: float = 1e-3
    """Adam's."""
    rounds: int = 3
    """Timed calls of each program, in turns."""
    tolerance: float = 1e-4
    """Largest relative difference of a loss from peft's, before any step of a compared task."""
    out: Path = Path("runs/bench")
    """Folder for lora.json, .md and .png; existing ones are replaced."""

    def __post_init__(self) -> None:
        common.check_positive(
            self, "tasks", "peer_tasks", "steps", "rank", "rate", "rounds", "tolerance"
        )
        if self.peer_tasks > self.tasks:
            raise ValueError(f"peer_tasks must be at most {self.tasks}; got {self.peer_tasks}")
        for name in self.cells:
            if name not in CELLS:
                raise ValueError(f"cells must be some of {', '.join(CELLS)}; got {name}")


@dataclasses.dataclass(frozen=True)
class Program:
    """``call() -> losses [tasks, steps]`` of ``tasks`` tasks."""

    name: str
    call: Callable[[], np.ndarray]
    tasks: int


def ours(config: Config, cell: Cell, params: Any, factors: Any, tokens: Any) -> Program:
    """All tasks in one program, in chunks, shared between the cores."""
    apply: Any = Transformer(cell.model).apply
    loss_fn = lm.next_token_loss(apply)
    mesh = metajax.task_mesh(config.tasks)

    def adapted(params, factors, tokens):
        def one_task(tokens):
            variables, info = metajax.adapt(
                loss_fn,
                {"params": params, "lora": factors},
                cell.batch._replace(tokens=tokens),
                optimizer=optax.adam(config.rate),
                steps=config.steps,
                mode=metajax.first_order(),  # nothing is differentiated through adaptation
                trainable=lora.is_factor,
            )
            return variables["lora"], info.loss

        batch_size = None if cell.at_once == 1 else cell.at_once
        return jax.lax.map(one_task, tokens, batch_size=batch_size)

    shared, by_task = PartitionSpec(), PartitionSpec("tasks")
    program = jax.jit(
        jax.shard_map(
            adapted,
            mesh=mesh,
            in_specs=(shared, shared, by_task),
            out_specs=by_task,
            check_vma=False,
        )
    )
    params, factors = jax.device_put((params, factors), NamedSharding(mesh, shared))
    tokens = jax.device_put(tokens, NamedSharding(mesh, by_task))

    def call() -> np.ndarray:
        _, losses = jax.block_until_ready(program(params, factors, tokens))
        return np.asarray(losses)

    return Program(
        f"metajax, {mesh.size} device(s), {cell.at_once} tasks at once", call, config.tasks
    )


def peers(config: Config, cell: Cell, folder: Path, tokens: np.ndarray) -> list[Program]:
    """peft with one thread and with one a core; the tasks one after another."""
    tokens = tokens[: config.peer_tasks]
    adapt = torch_lora.adapter(
        folder, tokens, cell.batch.mask, steps=config.steps, rate=config.rate
    )

    def program(threads: int) -> Program:
        plural = "s" if threads > 1 else ""
        return Program(f"peft, {threads} thread{plural}", lambda: adapt(threads), len(tokens))

    return [program(threads) for threads in sorted({1, common.environment()["cores"]})]


def programs(config: Config, cell: Cell, folder: Path) -> list[Program]:
    """metajax's and peft's, from one checkpoint and one adapter."""
    key = jax.random.key(0)
    params: Any = jax.jit(Transformer(cell.model).init)(key, jnp.zeros((1, 2), jnp.int32))["params"]
    factors = lora.init(
        params,
        jax.random.fold_in(key, 1),
        rank=config.rank,
        targets=cell.targets,
        alpha=2 * config.rank,
    )
    lm.save_pretrained(folder / "base", cell.model, params)
    save_adapters(folder / "adapter", factors, config=cell.model)
    tokens = np.random.default_rng(0).integers(
        0, cell.model.vocab_size, (config.tasks, cell.sequences, cell.length + 1), np.int32
    )
    return [ours(config, cell, params, factors, tokens), *peers(config, cell, folder, tokens)]


def gigaflops(config: Config, cell: Cell) -> float:
    """The products with base matrices of all tasks: forward, and back to their inputs.

    Nothing is differentiated below the first block's factors, nor with respect to base matrices.
    The head's products are those of the tokens with a loss.
    """
    shapes = jax.eval_shape(
        Transformer(cell.model).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    )
    flat = jax.tree.leaves_with_path(shapes["params"])
    kernels = sum(leaf.size for path, leaf in flat if path[-1].key == "kernel")
    first = MODEL.width * MODEL.head_dim * (MODEL.n_heads + 2 * MODEL.n_kv_heads)
    tokens = config.tasks * config.steps * cell.sequences * cell.length
    head = MODEL.width * cell.model.vocab_size
    spared = 1 - cell.answer / cell.length if cell.answer else 0
    return 2 * tokens * (2 * (kernels - spared * head) - first) / 1e9


def measured(config: Config, cell: Cell) -> dict[str, Any]:
    """Losses compared, and times of all programs in turns."""
    with tempfile.TemporaryDirectory() as folder:
        every = programs(config, cell, Path(folder))
    found = {program.name: program.call()[: config.peer_tasks] for program in every}
    wanted = found[every[-1].name]
    differences = {name: float(np.abs(row / wanted - 1).max()) for name, row in found.items()}
    for name, difference in differences.items():
        if not difference <= config.tolerance:
            raise ValueError(
                f"{cell.name}: losses of {name!r} differ by {difference:.1e} from peft's, more "
                f"than tolerance={config.tolerance}."
            )
    seconds: dict[str, list[float]] = {program.name: [] for program in every}
    for _ in range(config.rounds):
        for program in every:
            start = time.perf_counter()
            program.call()
            taken = time.perf_counter() - start
            seconds[program.name].append(taken * config.tasks / program.tasks)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours, *others = medians.values()
    row = {
        "cell": cell.name,
        "gigaflops": gigaflops(config, cell),
        "matmul_gflops": measure.matmul_gflops(),
        "losses": [float(wanted[:, step].mean()) for step in (0, -1)],
        "seconds": seconds,
        "medians": medians,
        "differences": differences,
        "ratio": min(others) / ours,
    }
    say(f"{cell.name}: {ours:.1f} and {min(others):.1f} s, {row['ratio']:.2f} ×")
    return row


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        f"{result['tasks']} tasks, {result['steps']} Adam steps each on factors of rank "
        f"{result['rank']}, in float32; the median of {result['rounds']} calls. peft's tasks "
        f"follow one another: {result['peer_tasks']} are timed, for all.",
        "",
        "| a task | program | seconds (least to most) | × metajax "
        "| GFLOP/s | losses' largest relative difference |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ours = next(iter(row["medians"].values()))
        for name, median in row["medians"].items():
            times = row["seconds"][name]
            lines.append(
                f"| {row['cell']} | {name} | {median:.2f} ({min(times):.2f} to {max(times):.2f}) "
                f"| {median / ours:.2f} | {row['gigaflops'] / median:.0f} "
                f"| {row['differences'][name]:.0e} |"
            )
    lines += ["", "| a task | peft's best, × metajax's | at the products' peak it would be |"]
    lines += ["|---|---|---|"]
    for row in result["rows"]:
        peer = row["ratio"] * next(iter(row["medians"].values()))
        limit = peer * row["matmul_gflops"] / row["gigaflops"]
        lines.append(f"| {row['cell']} | **{row['ratio']:.2f}** | {limit:.2f} |")
    lines += [
        "",
        "GFLOP counts the products with the base matrices, forward and back to their inputs; the "
        "peak is that of a large product in XLA, "
        f"{min(row['matmul_gflops'] for row in result['rows']):.0f} to "
        f"{max(row['matmul_gflops'] for row in result['rows']):.0f} GFLOP/s here.",
        "",
    ]
    return "\n".join([*lines, *provenance(result)]) + "\n"


def chart(result: dict[str, Any], path: Path) -> None:
    """A panel a cell, a bar a program."""
    rows = result["rows"]
    figure = Figure(figsize=(9, 1.5 * len(rows)), dpi=72, layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, row in zip(panels, rows, strict=True):
        ours = next(iter(row["medians"].values()))
        found = [
            {
                "name": name,
                "median_ms": 1e3 * median,
                "lower_quartile_ms": 1e3 * min(row["seconds"][name]),
                "upper_quartile_ms": 1e3 * max(row["seconds"][name]),
                "ratio": median / ours,
            }
            for name, median in row["medians"].items()
        ]
        bars(axes, found, row["cell"])
    panels[-1].set_xlabel(f"ms for {result['tasks']} tasks (median, least to most)")
    figure.savefig(path)


def run(config: Config) -> str:
    """Measures, and writes the files into ``config.out``; returns the table."""
    config.out.mkdir(parents=True, exist_ok=True)
    sizes = ("tasks", "peer_tasks", "steps", "rank", "rate", "rounds", "tolerance")
    result = {
        "command": common.command("experiments.benchmarks.lora", config),
        "environment": common.environment(),
        **{name: getattr(config, name) for name in sizes},
        "rows": [measured(config, CELLS[name]) for name in config.cells],
    }
    write(config.out, "lora", result, table(result), chart)
    return table(result)


def main() -> None:
    """The command line."""
    metajax.use_every_core()
    config = common.parse(Config, None, __doc__ or "")
    print(run(config))
    say(f"written to {config.out}")


if __name__ == "__main__":
    common.guard(main)
