"""Measurements of programs beside each other, in one process."""

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.benchmarks.workload import Compilation, Program, relative_error

PAUSE = 0.02
"""Seconds between two programs' turns, in which the last one's idle threads stop spinning."""


def check_agreement(
    programs: Sequence[Program], reference: Program, *, tolerance: float
) -> dict[str, float]:
    """That all programs compute the same meta-gradient and loss, before any is timed.

    Args:
        programs: what to check.
        reference: what to check them against.
        tolerance: the largest relative Euclidean error of the gradient, all leaves together.

    Returns:
        The relative error of each program's gradient, by name.

    Raises:
        RunError: if one differs by more, or isn't finite.
    """
    gradient, loss = reference.gradient()
    errors = {}
    for program in programs:
        found, found_loss = program.gradient()
        error = relative_error(found, gradient)
        loss_error = abs(found_loss - loss) / abs(loss)
        # Written so that NaN fails.
        if not (error <= tolerance and loss_error <= tolerance):
            raise common.RunError(
                f"{program.name!r} and {reference.name!r} do not compute the same meta-step: the "
                f"gradient differs by {error:.1e} and the loss by {loss_error:.1e}, relatively; "
                f"at most {tolerance:.1e} is accepted. Nothing was timed."
            )
        errors[program.name] = error
    return errors


def peak_memory_increase(run: Callable[[], object]) -> int | None:
    """Bytes by which the process's resident memory peaks above its level before ``run``.

    None where the system doesn't tell: Linux with the GNU C library does.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed would serve unseen
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status_bytes("VmRSS")
        run()
        return max(_status_bytes("VmHWM") - before, 0)
    except (OSError, AttributeError):
        run()
        return None


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def interleaved(
    programs: Sequence[Program], *, rounds: int, turn_seconds: float, budget_seconds: float
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Times meta-steps in turns, A B C A B C ..., so that the machine's moods meet all alike.

    A turn begins with a step that isn't timed, since it finds caches and threads as the last
    program left them; where a step takes longer than ``turn_seconds`` that hardly matters, and it
    is timed.

    Args:
        programs: what to time.
        rounds: turns of each program.
        turn_seconds: how long a turn takes, one timed step at least.
        budget_seconds: a program that has taken longer sits out further rounds after its third.

    Returns:
        Seconds of each meta-step by program, and the peak memory increase of its first two
        meta-steps, which aren't timed.
    """
    states, memory, last = {}, {}, {}
    for program in programs:

        def warm_up(program=program):
            state = program.step(program.init())
            start = time.perf_counter()
            states[program.name] = program.step(state)
            last[program.name] = time.perf_counter() - start

        memory[program.name] = peak_memory_increase(warm_up)
    seconds: dict[str, list[float]] = {program.name: [] for program in programs}
    with common.progress("turns", 0, rounds * len(programs), unit="turn") as bar:
        for done in range(rounds):
            for program in programs:
                name = program.name
                if done < 3 or sum(seconds[name]) < budget_seconds:
                    time.sleep(PAUSE)
                    state = states[name]
                    if last[name] < turn_seconds:
                        state = program.step(state)
                    deadline = time.perf_counter() + turn_seconds
                    while True:
                        start = time.perf_counter()
                        state = program.step(state)
                        end = time.perf_counter()
                        seconds[name].append(end - start)
                        if end >= deadline:
                            break
                    states[name] = state
                bar.update()
    return seconds, memory


def rows(
    programs: Sequence[Program],
    compilations: Sequence[Compilation],
    seconds: Mapping[str, Sequence[float]],
    peaks: Mapping[str, int | None],
    *,
    flops: int,
    float64_errors: Mapping[str, float],
    float32_errors: Mapping[str, float],
) -> list[dict[str, Any]]:
    """What was found of each program, as JSON values; ratios are to the first one's median.

    Args:
        programs: what was timed.
        compilations: what compiling each took.
        seconds: as ``interleaved`` returns them, by name.
        peaks: the same.
        flops: floating-point operations of a step's products.
        float64_errors: as ``check_agreement`` returns them; a program may be missing.
        float32_errors: the same, of all programs.
    """
    base = statistics.median(seconds[programs[0].name])
    found = []
    for program, compilation in zip(programs, compilations, strict=True):
        times = seconds[program.name]
        # One turn is its own quartiles.
        twice = times if len(times) > 1 else [*times, *times]
        lower, median, upper = statistics.quantiles(twice, n=4, method="inclusive")
        found.append(
            {
                "name": program.name,
                "median_ms": 1e3 * median,
                "lower_quartile_ms": 1e3 * lower,
                "upper_quartile_ms": 1e3 * upper,
                "ratio": median / base,
                "gflops": flops / median / 1e9,
                "compile_seconds": compilation.seconds,
                "temporary_bytes": compilation.temporary_bytes,
                "peak_bytes": peaks[program.name],
                "float64_error": float64_errors.get(program.name),
                "float32_error": float32_errors[program.name],
                "milliseconds": [round(1e3 * value, 2) for value in times],
            }
        )
    return found


def matmul_gflops(size: int = 2048, repeats: int = 10) -> float:
    """The most GFLOP/s that a float32 matrix product reached in XLA: what the machine can do."""
    matrix = jnp.asarray(np.random.default_rng(0).random((size, size), np.float32))
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9
