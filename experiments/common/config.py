"""What every experiment can be told, and how a command line becomes a frozen config."""

import dataclasses
import errno
import logging
import math
import os
import shlex
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import platformdirs
import tyro

from metajax.errors import ArgumentError, MetajaxError

_ON_THE_SIDE = frozenset({"out", "resume", "tensorboard"})
_PLACE = frozenset({"distributed", "coordinator", "processes", "process_id"})


class RunError(MetajaxError, ValueError):
    """A run cannot start or go on; the message says why and what to do."""


def cache_folder() -> Path:
    """The folder ``METAJAX_CACHE`` names, or the user's own for what can be made again."""
    return Path(os.environ.get("METAJAX_CACHE") or platformdirs.user_cache_dir("metajax"))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The options that all experiments share; an experiment adds its own in a subclass."""

    steps: int | None = None
    """Outer updates (meta-steps); without it, the number of the experiment's own schedule."""
    seed: int = 0
    """Seed of the initial parameters and of the training tasks. Test tasks have a fixed seed."""
    out: Path | None = None
    """Run folder, new or empty; without it, a new numbered folder under runs/."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder (without --out: in the newest one)."""
    tensorboard: bool = False
    """Write TensorBoard events too (needs the extra: pip install 'metajax[tensorboard]')."""
    log_every: int = 100
    """Meta-steps in one dispatch to the device, and in one line of metrics.jsonl."""
    checkpoint_every: int = 1000
    """Meta-steps between checkpoints; one is written at the end in any case."""

    may_differ: ClassVar[frozenset[str]] = _ON_THE_SIDE
    """The fields that do not change what is computed: a resumed run may set them anew."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "steps", "log_every", "checkpoint_every")
        if not 0 <= self.seed < 2**32:
            raise ArgumentError(f"seed must be between 0 and 2**32 - 1; got {self.seed}")

    def goes_on_from(self, steps: int | None) -> bool:
        """Whether a run that was started with ``steps`` may be resumed with this config's steps.

        Only the same number, unless an experiment knows that its first steps don't depend on it.
        """
        return self.steps == steps


@dataclasses.dataclass(frozen=True)
class TrainingConfig(RunConfig):
    """These, and one for experiments whose trainer has a policy for NaNs and infinities."""

    non_finite: Literal["raise", "skip", "clip"] | None = None
    """What a meta-step does whose loss or meta-gradient is NaN or infinite: "skip" passes over it,
    "clip" replaces the gradient's bad elements, "raise" stops with a checkpoint of the state before
    it. Without it the run stops after the dispatch, and its last checkpoint is older."""

    # Where no meta-step is bad all compute the same; after a bad one a run may try another.
    may_differ: ClassVar[frozenset[str]] = RunConfig.may_differ | {"non_finite"}


def check_types(config: Any) -> None:
    """Raises ``ArgumentError`` for a field of a config that isn't of its declared type.

    A float must be finite, and may be given as an int; a path may not hold a null character.

    >>> check_types(RunConfig(seed=3))
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        if name not in config.__dataclass_fields__ or typing.get_origin(hint) is ClassVar:
            continue
        value = getattr(config, name)
        if not _is_of(value, hint):
            wanted = " or ".join(map(_shown, _alternatives(hint)))
            raise ArgumentError(f"{name} must be {wanted}; got {value!r}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _shown(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return {int: "an integer", float: "a finite number", bool: "True or False"}.get(
        hint, "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
    )


def _is_of(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_is_of(value, each) for each in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return any(type(value) is type(each) and value == each for each in typing.get_args(hint))
    if hint in (int, float):
        number = isinstance(value, int | hint) and not isinstance(value, bool)
        return number and abs(value) < math.inf
    if hint is Path:
        return isinstance(value, Path) and "\0" not in str(value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def check_positive(config: Any, *names: str) -> None:
    """Raises ``ArgumentError`` for a named field that is set and is not above zero.

    >>> check_positive(RunConfig(), "log_every")
    """
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise ArgumentError(f"{name} must be above zero; got {value}")


ConfigT = TypeVar("ConfigT")


def parse(kind: type[ConfigT], arguments: Sequence[str] | None, description: str) -> ConfigT:
    """The config that a command line asks for; ``--help`` is made from its field docstrings.

    A wrong value prints what is accepted and exits with status 2.

    Args:
        kind: a frozen dataclass, such as a subclass of ``RunConfig``.
        arguments: the words after the program's name; None takes ``sys.argv``'s.
        description: the help's first paragraphs, usually the script's docstring.

    >>> parse(RunConfig, ["--steps", "200"], "An experiment.").steps
    200
    """
    return tyro.cli(
        kind,
        args=arguments,
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


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


def command(module: str, config: Any) -> str:
    """The command that makes this again, without the options that name a machine's folders or the
    processes that shared it; of any config that is a dataclass.

    >>> command("experiments.fewshot.demo", RunConfig(seed=3))
    'python -m experiments.fewshot.demo --seed 3'
    >>> sizes = dataclasses.make_dataclass("Sizes", [("tasks", tuple, (1, 4)), ("timed", int, 3)])
    >>> command("experiments.sizes", sizes(tasks=(2, 8)))
    'python -m experiments.sizes --tasks 2 8'
    """
    words = ["python", "-m", module]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or isinstance(value, Path):
            continue
        if field.name in _ON_THE_SIDE | _PLACE:
            continue
        words.append("--" + field.name.replace("_", "-"))
        if value is not True:
            words += map(str, value if isinstance(value, tuple) else (value,))
    return shlex.join(words)


def guard(main: Callable[[], None]) -> None:
    """Runs a script's main function; errors a user can mend are shown without a traceback.

    What metajax logs (what ``tasks_per_chunk="auto"`` picked, say) is shown too.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("metajax").setLevel(logging.INFO)
    from experiments.common.processes import ending_together  # which knows this module

    try:
        with ending_together():
            main()
    except MetajaxError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        sys.exit(f"error: {error}. Mend that, then go on with --resume; what was written is kept")
    except KeyboardInterrupt:
        sys.exit(130)
