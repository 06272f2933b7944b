"""A page to draw on: one example of each of two to five classes, then a drawing to recognise.

python -m experiments.fewshot.playground serves it at http://127.0.0.1:8000 and shows what MAML says
before its adaptation and after each inner step, beside a Prototypical Network. The first time it
trains the two; they are kept in a folder under runs/ and found again. A training that was stopped
goes on by itself.

They are trained on characters drawn from fonts (no download), or on Omniglot where --data, or
METAJAX_OMNIGLOT, names its folder, or --data-set omniglot asks for it.

Expected, with glyphs and seed 0: MAML recognises 94.1 ± 0.6 % in tasks of five new characters, the
Prototypical Network 98.6 ± 0.3 % (400 tasks). The trainings take three minutes of processor time,
which two cores share; an answer takes 20 ms.

--static FOLDER writes the page for any web server, with nothing to run behind it: the browser
adapts by itself. make playground-static brings what that needs.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import metajax
from experiments import common
from experiments.common.folder import ROOT
from experiments.fewshot.playground import models
from experiments.fewshot.playground.program import compiled
from metajax.data import ClassData, glyphs, omniglot
from metajax.errors import ArgumentError


def _data_set() -> Literal["glyphs", "omniglot"]:
    return "omniglot" if os.environ.get("METAJAX_OMNIGLOT") else "glyphs"


@dataclasses.dataclass(frozen=True)
class Config(common.RunConfig):
    """Options of the playground; the run folder has one folder for each model."""

    steps: int = 800
    """Meta-steps of MAML's training; the Prototypical Network, which learns faster, takes a third
    of them."""
    host: str = "127.0.0.1"
    """Where the server listens; 0.0.0.0 lets other machines draw too."""
    port: int = 8000
    """The server's port; 0 takes a free one."""
    data_set: Literal["glyphs", "omniglot"] = dataclasses.field(default_factory=_data_set)
    """What the models are trained on: characters drawn from fonts, or Omniglot."""
    data: Path | None = None
    """Folder with Omniglot's zip files, or with them unpacked; as for omniglot itself."""

    static: Path | None = None
    """Write the page and its models into this folder in place of serving it."""
    runtime: Path | None = None
    """onnxruntime-web's folder dist, which --static copies from."""

    may_differ: ClassVar[frozenset[str]] = common.RunConfig.may_differ | {
        "host",
        "port",
        "data",
        "static",
        "runtime",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None and self.data_set != "omniglot":
            object.__setattr__(self, "data_set", "omniglot")
        if (self.static is None) != (self.runtime is None):
            raise ArgumentError("static and runtime go together: give both, or neither")
        if not 0 <= self.port < 1 << 16:
            raise ArgumentError(f"port must be from 0 to 65535; got {self.port}")


def load(config: Config, split: Any) -> ClassData:
    """A split of the data that the models are trained on."""
    return omniglot(split, folder=config.data) if config.data_set == "omniglot" else glyphs(split)


def description_of(config: Config, ready: dict[models.Name, models.Trained]) -> dict[str, Any]:
    """What the page is told of the models."""
    data = models.DATA_SETS[config.data_set]
    maml, prototypical = (f"{ready[name].rows[0]['mean']:.0f} %" for name in models.TITLES)
    return {
        "image": {"side": data.side, "width": data.width},
        "models": [{"name": name, "title": models.TITLES[name]} for name in ready],
        "facts": f"Both were trained on {data.title}. In tasks of five new ones, with one example"
        f" of each, MAML recognises {maml} of the drawings, and the Prototypical Network"
        f" {prototypical}.",
    }


def found(config: Config, out: Path) -> dict[models.Name, models.Trained]:
    """The models in the run folder, trained before where they aren't there."""
    options = {
        "data_set": config.data_set,
        "command": common.command("experiments.fewshot.playground", config),
    }
    cached = functools.cache(functools.partial(load, config))
    return {
        name: models.trained(name, config, out / name, cached, **options) for name in models.TITLES
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the models where they aren't there, compiles their program, and serves the page."""
    metajax.use_every_core()
    config = common.parse(Config, arguments, __doc__ or "")
    out = config.out or ROOT / f"playground-{config.data_set}"
    try:
        if config.static is not None and config.runtime is not None:
            from experiments.fewshot.playground import static

            ready = found(config, out)
            static.write(config.static, ready, description_of(config, ready), config.runtime)
            print(f"The page is in {config.static}; python -m http.server serves it, say.")
            return
        from experiments.fewshot.playground import server
    except ImportError as error:
        target = "playground" if config.static is None else "playground-static"
        raise common.RunError(
            f"the page needs libraries that make {target} installs ({error})"
        ) from error
    with server.listen(config.host, config.port) as listening:  # before the training's minutes
        ready = found(config, out)
        print("Compiling ...", flush=True)
        app = server.app_of(compiled(ready), description_of(config, ready))
        address = "http://{}:{}".format(*listening.getsockname()[:2])
        print(f"Draw at {address} (Ctrl-C ends it). The models are in {out}.", flush=True)
        server.serve(app, listening)


if __name__ == "__main__":
    common.guard(main)
