"""The options that experiments share."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from metajax.data import cache_folder
from metajax.errors import ArgumentError, MetajaxError


class RunError(MetajaxError, ValueError):
    """A run cannot start or go on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The options of every experiment; an experiment adds its own in a subclass."""

    steps: int
    """Outer updates (meta-steps)."""
    seed: int = 0
    """Seed of the initial parameters and of the training tasks. Test tasks have a fixed seed."""
    out: Path | None = None
    """Run folder, new or empty; without it, a new numbered folder under runs/."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder (without --out: in the newest one)."""
    tensorboard: bool = False
    """Write TensorBoard events too (needs the extra: pip install 'metajax[tensorboard]')."""
    compilation_cache: Literal["none"] | Path = dataclasses.field(
        default_factory=lambda: cache_folder() / "compiled"
    )
    """Folder where compiled programs are kept for the next run; "none" keeps none."""
    log_every: int = 100
    """Meta-steps in one dispatch to the device, and in one line of metrics.jsonl."""
    checkpoint_every: int = 1000
    """Meta-steps between checkpoints; one is written at the end in any case."""

    may_differ: ClassVar[frozenset[str]] = frozenset(
        {"out", "resume", "tensorboard", "compilation_cache"}
    )
    """The fields that do not change what is computed: a resumed run may set them anew."""
    may_take_no_step: ClassVar[bool] = False
    """Whether steps may be 0: the model is a trained one."""

    def __post_init__(self) -> None:
        check_positive(self, "log_every", "checkpoint_every")
        if self.steps or not self.may_take_no_step:
            check_positive(self, "steps")
        if not 0 <= self.seed < 2**32:
            raise ArgumentError(f"seed must be between 0 and 2**32 - 1; got {self.seed}")

    def goes_on_from(self, steps: int) -> bool:
        """Whether a run that was started with ``steps`` may be resumed with this config's steps.

        Only the same number, unless an experiment knows that its first steps don't depend on it.
        """
        return self.steps == steps


@dataclasses.dataclass(frozen=True)
class TrainingConfig(RunConfig):
    """Adds what is done about a NaN or an infinity in training."""

    non_finite: Literal["raise", "skip", "clip"] | None = None
    """What a meta-step does whose loss or meta-gradient is NaN or infinite: "skip" passes over it,
    "clip" replaces the gradient's bad elements, "raise" stops with a checkpoint of the state before
    it. Without it the run stops after the dispatch, and its last checkpoint is older."""

    # Where no meta-step is bad all compute the same; after a bad one a run may try another.
    may_differ: ClassVar[frozenset[str]] = RunConfig.may_differ | {"non_finite"}


@dataclasses.dataclass(frozen=True)
class DistributedConfig(TrainingConfig):
    """Adds the options of an experiment that several processes can run together."""

    distributed: bool = False
    """Run as one of several processes (see docs/distributed.md). On SLURM and on TPU pods they find
    one another; elsewhere give the three options below, too."""
    coordinator: str | None = None
    """host:port of the first process, at which the others find it; any free port."""
    processes: int | None = None
    """How many processes run together."""
    process_id: int | None = None
    """Which of them this is, from 0."""

    may_differ: ClassVar[frozenset[str]] = TrainingConfig.may_differ | {
        "distributed",
        "coordinator",
        "processes",
        "process_id",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        where = {name: getattr(self, name) for name in ("coordinator", "processes", "process_id")}
        given = [name for name, value in where.items() if value is not None]
        if given and not self.distributed:
            raise ArgumentError(f"{given[0]} says where a process is, which needs --distributed")
        if given and len(given) < len(where):
            missing = next(name for name in where if name not in given)
            raise ArgumentError(
                f"{missing} is missing: give coordinator, processes and process_id, or none of"
                " them where SLURM or a TPU pod says them"
            )
        if self.coordinator is not None and not re.fullmatch(r".+:\d{1,5}", self.coordinator):
            raise ArgumentError(f"coordinator must be host:port; got {self.coordinator!r}")
        check_positive(self, "processes")
        if self.process_id is not None and not 0 <= self.process_id < (self.processes or 1):
            raise ArgumentError(
                f"process_id must be from 0 to processes - 1, {(self.processes or 1) - 1}; got"
                f" {self.process_id}"
            )


def check_positive(config: Any, *names: str) -> None:
    """Raises ``ArgumentError`` for a named field that is set and is not above zero, or not finite.

    >>> check_positive(RunConfig(steps=5), "log_every")
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ArgumentError(f"{name} must be above zero; got {value}")


def identity(config: RunConfig) -> dict[str, Any]:
    """The fields that make a run what it is, as JSON values.

    >>> identity(RunConfig(steps=5, seed=1))["steps"]
    5
    """
    return {
        field.name: str(value) if isinstance(value, Path) else value
        for field in dataclasses.fields(config)
        if field.name not in config.may_differ
        for value in [getattr(config, field.name)]
    }
