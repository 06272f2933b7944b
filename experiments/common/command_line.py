"""How a command line becomes a config, and a config the command that makes it again."""

import dataclasses
import errno
import gc
import inspect
import logging
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from experiments.common.config import DistributedConfig
from experiments.common.processes import ending_together
from metajax.errors import ArgumentError, MetajaxError

ConfigT = TypeVar("ConfigT")


def parse(
    kind: type[ConfigT],
    arguments: Sequence[str] | None,
    description: str,
    *,
    preset: Callable[..., ConfigT] | None = None,
) -> ConfigT:
    """The config that a command line asks for; ``--help`` is made from its field docstrings.

    A wrong value prints what is accepted and exits with status 2. Compiled programs are kept in the
    config's ``compilation_cache`` from here on.

    Args:
        kind: a frozen dataclass, such as a subclass of ``RunConfig``.
        arguments: the words after the program's name; None takes ``sys.argv``'s.
        description: the help's first paragraphs, usually the script's docstring.
        preset: a function of some of the options (``method``, say) that returns the config with
            their defaults for all others; without it, the defaults are the dataclass's.

    >>> from experiments.common import RunConfig
    >>> parse(RunConfig, ["--steps", "200", "--compilation-cache", "none"], "An experiment.").steps
    200
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    running = getattr(sys.modules["__main__"], "__spec__", None)
    options: dict[str, Any] = {"config": (tyro.conf.FlagCreatePairsOff,)}
    if running is not None:
        options["prog"] = f"python -m {running.name.removesuffix('.__main__')}"
    if preset is not None:
        # Twice: first the options that choose the defaults, then all of them.
        choosing = [word for word in words if word not in ("-h", "--help")]
        try:
            options["default"], _ = tyro.cli(
                preset, args=choosing, return_unknown_args=True, **options
            )
        except ArgumentError as error:  # tyro shows those of a dataclass alone
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    description = f"{description.rstrip()}\n\n--debug shows where in the code an error began."
    config = tyro.cli(kind, args=words, description=description, **options)
    keep_compiled(getattr(config, "compilation_cache", "none"))
    return config


def keep_compiled(folder: Path | str) -> None:
    """Has JAX keep compiled programs in a folder, small ones too; ``"none"`` changes nothing.

    What they compute doesn't change. A folder that JAX was told of otherwise
    (``JAX_COMPILATION_CACHE_DIR``) stays.

    >>> keep_compiled("none")
    """
    if folder == "none" or getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def command(module: str, config: Any, *, preset: Callable[..., Any] | None = None) -> str:
    """The command that makes this again, without the options that name a machine's folders or the
    processes that shared it; of any config that is a dataclass.

    Args:
        module: the experiment, as ``python -m`` knows it.
        config: what it was run with.
        preset: as ``parse`` was given it.

    >>> from experiments.common import RunConfig
    >>> command("experiments.fewshot.sinusoid", RunConfig(steps=5, seed=3))
    'python -m experiments.fewshot.sinusoid --steps 5 --seed 3'
    >>> sizes = dataclasses.make_dataclass("Sizes", [("tasks", tuple, (1, 4)), ("timed", int, 3)])
    >>> command("experiments.sizes", sizes(tasks=(2, 8)))
    'python -m experiments.sizes --tasks 2 8'
    >>> data = dataclasses.make_dataclass("Data", [("data", str, "omniglot")])
    >>> command("experiments.data", data(__file__))
    'python -m experiments.data --data command_line.py'
    """
    words = ["python", "-m", module]
    defaults = _defaults(config, preset)
    # What a machine or a moment has, not the run.
    omitted = (DistributedConfig.may_differ - {"non_finite"}) | {"out"}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == defaults[field.name] or isinstance(value, Path) or field.name in omitted:
            continue
        words.append("--" + field.name.replace("_", "-"))
        if isinstance(value, str) and "/" in value and Path(value).exists():
            value = Path(value).name  # where it lies on this machine is no part of the run
        if value is not True:
            words += map(str, value if isinstance(value, tuple) else (value,))
    return shlex.join(words)


def _defaults(config: Any, preset: Callable[..., Any] | None) -> Mapping[str, Any]:
    """What each field would be if the command line didn't name it, given those it must name."""
    if preset is None:
        return {field.name: field.default for field in dataclasses.fields(config)}
    chosen = inspect.signature(preset).parameters
    made = preset(**{name: getattr(config, name) for name in chosen})
    return vars(made) | {name: parameter.default for name, parameter in chosen.items()}


def guard(main: Callable[[], None]) -> None:
    """Runs a script's main function; an error is one line, without a traceback.

    The traceback of an error that no user can mend is kept in a file. With ``--debug`` among the
    words of the command line all are shown. What metajax logs (what ``tasks_per_chunk="auto"``
    picked, say) is shown too.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    # Tracing a program makes many small objects, none of them garbage for long: a collector that
    # runs seldom, and passes over what was imported, saves a fifth of the time to the first step.
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("metajax").setLevel(logging.INFO)
    try:
        with ending_together():
            main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # what read the output has gone, such as head
        sys.stdout = None
        sys.exit(141)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, MetajaxError):
            sys.exit(f"error: {error}")
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            sys.exit(
                f"error: {error}. Mend that, then go on with --resume; what was written is kept"
            )
        kept = Path(tempfile.mkdtemp(prefix="metajax-")) / "error.txt"
        kept.write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(
            f"error: {type(error).__name__}: {error}\nThis shouldn't happen. Where it began is in "
            f"{kept}; --debug shows it. Please report it."
        )
