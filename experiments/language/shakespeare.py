"""A language model of characters, on the plays of Shakespeare: nanoGPT's setting for a CPU.

python -m experiments.language.shakespeare downloads a megabyte of text, the first time, and trains a
transformer on nine tenths of it: 4 layers, 4 heads, width 128, 0.8 million parameters, 2,000 steps
of 12 windows of 64 characters, no dropout. For this, nanoGPT's README gives a validation loss of
1.88 (github.com/karpathy/nanoGPT, "I only have a macbook").

Expected: 1.58 on all of the validation text (seed 0), after 2 minutes on two CPU cores. The form is
Llama's and the optimizer Muon where nanoGPT has GPT-2 and AdamW. With these, --form gpt2
--optimizer adamw --rate 1e-3, it is 1.89; with Llama and AdamW 1.70 (at 3e-3, 1.71). The defaults
were chosen by this validation loss, so it is no test; but its margin is far larger than what so few
trials can choose.
"""

import dataclasses
import json
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments import common
from experiments.common import plots
from experiments.common.report import duration, markdown_table
from metajax.data import DataNotFoundError, cache_folder
from metajax.errors import ArgumentError
from metajax.files import write_atomically
from metajax.lm import generate, training
from metajax.lm.optimizers import muon
from metajax.lm.tokenizers import CharTokenizer
from metajax.models import Transformer, TransformerConfig
from metajax.types import Params

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
CHARACTERS = 1_115_394
"""As many has the text at ``URL``."""
PUBLISHED = 1.88
TEMPERATURE = 0.8


@dataclasses.dataclass(frozen=True)
class Config(common.RunConfig):
    """Options of the experiment."""

    steps: int = 2000
    """Updates."""
    data: Path | None = None
    """A text file; without it, Shakespeare's plays from the cache, or a download."""
    form: Literal["llama", "gpt2"] = "llama"
    """RMSNorm, rotary positions, a gated network and no biases; or GPT-2, as nanoGPT has it."""
    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads."""
    width: int = 128
    """Width of the residual stream."""
    length: int = 64
    """Characters that the model sees."""
    batch: int = 12
    """Windows in a step."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the blocks' matrices and Adam for the rest; or AdamW for all, as in nanoGPT."""
    rate: float = 4e-3
    """Learning rate after the warm-up (nanoGPT's is 1e-3)."""
    validate_every: int = 500
    """Steps between validations, each on the whole of the validation text."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is written at the end in any case."""

    may_differ: ClassVar[frozenset[str]] = common.RunConfig.may_differ | {"data"}

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "layers", "heads", "width", "batch", "rate", "validate_every")
        if self.length < 2:
            raise ArgumentError(f"length must be at least 2; got {self.length}")


def read_text(path: Path | None) -> str:
    """The text of a file, or Shakespeare's, which is kept in the cache.

    Raises:
        DataNotFoundError: there is no such file, or the download fails.
        RunError: the file isn't UTF-8.
    """
    if path is not None:
        if not path.is_file():
            raise DataNotFoundError(f"data: there is no file {path}.")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise common.RunError(f"data: {path} is not a text in UTF-8 ({error})") from error
    cached = cache_folder() / "text" / "tinyshakespeare.txt"
    if cached.is_file():
        return _checked(cached.read_text(encoding="utf-8"), f"the file {cached}")
    print(f"Downloading {URL} ...", flush=True)
    try:
        with urllib.request.urlopen(URL, timeout=60) as response:
            text = response.read().decode("utf-8")
    except (OSError, ValueError) as error:
        raise DataNotFoundError(
            f"Shakespeare's text could not be downloaded from {URL} ({error}). Without a network,"
            " name a text of yours: --data FILE"
        ) from error
    text = _checked(text, f"what {URL} sent")
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, text)
    return text


def _checked(text: str, what: str) -> str:
    if len(text) <= 1_000_000 or not text.startswith("First Citizen"):
        raise DataNotFoundError(
            f"{what} is not Shakespeare's plays: {len(text)} characters that begin with"
            f" {text[:20]!r}. Remove it, or name another text: --data FILE"
        )
    return text


def model_config(config: Config, vocab_size: int) -> TransformerConfig:
    """The transformer; both forms have as many parameters, up to a percent."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "width": config.width,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "max_length": config.length,
        "scan": False,
    }
    if config.form == "gpt2":
        return TransformerConfig.gpt2(**sizes)
    # A gated network has three matrices in place of two.
    return TransformerConfig.llama(mlp_width=8 * round(config.width / 3), **sizes)


def optimizer_of(config: Config) -> optax.GradientTransformation:
    """Warm-up over 100 steps, then a cosine down to a tenth of the rate."""
    warmup = min(100, config.steps // 2)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.rate, warmup, config.steps, end_value=config.rate / 10
    )
    if config.optimizer == "adamw":
        matrices = lambda params: jax.tree.map(lambda leaf: jnp.ndim(leaf) == 2, params)
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(rate, b2=0.99, weight_decay=0.1, mask=matrices),
        )
    return muon(rate)


def text_loss(
    loss_fn: Callable[..., Any], tokens: np.ndarray, *, length: int, batch: int = 64
) -> Callable[[Params], float]:
    """The mean loss over all of a text, window after window, each target once.

    Args:
        loss_fn: from ``next_token_loss``.
        tokens: the text ``[n]``.
        length: what the model reads of a window; the first target of each is predicted from one
            token, the last from ``length``.
        batch: windows at a time.
    """
    rows = training.pack([tokens], length)
    missing = -len(rows.tokens) % batch
    rows = training.TokenBatch(*(np.pad(part, ((0, missing), (0, 0))) for part in rows))
    batches = jax.tree.map(lambda part: jnp.asarray(part).reshape(-1, batch, length + 1), rows)

    @jax.jit
    def mean(params, batches):
        def total(batch):
            loss, metrics = loss_fn(params, batch)
            return loss * metrics["tokens"], metrics["tokens"]

        losses, counts = jax.lax.map(total, batches)
        return losses.sum() / counts.sum()

    return lambda params: float(mean(params, batches))


def write_samples(
    model: Transformer, params: Params, tokenizer: CharTokenizer, key: jax.Array, *, characters: int
) -> list[str]:
    """Three texts of so many characters and more, each begun by a line break.

    The model sees ``max_length`` characters: half of them are written at a time, and the last half
    of the text so far is read again.
    """
    half = model.config.max_length // 2
    start = tokenizer.encode("\n" if "\n" in tokenizer.characters else tokenizer.characters[0])
    tokens = np.array([start] * 3)
    while tokens.shape[1] <= characters:
        key, key_now = jax.random.split(key)
        seen, options = tokens[:, -half:], {"max_new_tokens": half, "temperature": TEMPERATURE}
        written = generate(model, params, seen, key_now, **options)
        tokens = np.concatenate([tokens, np.asarray(written.tokens[:, 0])], axis=1)
    return [tokenizer.decode(row[1:]) for row in tokens]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, validates, writes texts, and leaves everything in the run folder."""
    config = common.parse(Config, arguments, __doc__ or "")
    run = common.open_run("shakespeare", config)
    text = read_text(config.data)
    tokenizer = CharTokenizer.of(text)
    tokens = np.array(tokenizer.encode(text), np.int32)
    train, validation = np.split(tokens, [int(0.9 * len(tokens))])
    if min(len(train), len(validation)) <= config.length:
        raise common.RunError(
            f"data: a text of {len(text)} characters is too short for windows of {config.length}"
        )

    key_params, key_text, key_samples = jax.random.split(jax.random.key(config.seed), 3)
    model = Transformer(model_config(config, tokenizer.vocab_size))
    params, apply = metajax.from_linen(model, key_params, jnp.zeros((1, 2), jnp.int32))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{len(text):,} characters of {tokenizer.vocab_size}; {parameters:,} parameters")
    loss_fn = training.next_token_loss(apply)
    draw = training.text_sampler(train, length=config.length, batch=config.batch)
    trainer = metajax.meta_trainer(
        training.supervised(loss_fn), optimizer_of(config), training.as_episodes(draw), meta_batch=1
    )
    validation_loss = text_loss(loss_fn, validation, length=config.length)
    fitted = common.fit(
        run,
        trainer,
        trainer.init(params, key_text),
        steps=config.steps,
        validate=lambda params: {"loss": validation_loss(params)},
        validate_every=config.validate_every,
        per_step={"characters": config.batch * config.length},
    )

    started, params, last = time.perf_counter(), fitted.state.params, fitted.metrics[-1]
    samples = write_samples(model, params, tokenizer, key_samples, characters=400)
    tokenizer.save(run.path / "characters.json")
    write_atomically(run.path / "samples.txt", "\n\n----\n\n".join(samples) + "\n")
    plots.training_curve(run.path / "training.png", fitted.metrics, metric="loss", adapts=False)
    result = {
        "validation_loss": last["validation_loss"],
        "training_loss": last["loss"],
        "published": PUBLISHED if len(text) == CHARACTERS else None,
        "parameters": parameters,
        "seconds": {"training": fitted.seconds, "samples": time.perf_counter() - started},
        "command": common.command("experiments.language.shakespeare", config),
        "environment": common.environment(),
    }
    write_atomically(run.path / "result.json", json.dumps(result, indent=2) + "\n")
    table = table_of(config, result)
    write_atomically(run.path / "table.md", table)
    print(f"\n{samples[0]}\n\n{table}\nEverything is in {run.path}; see samples.txt.")


def table_of(config: Config, result: Mapping[str, Any]) -> str:
    """The result as Markdown: the table, then what made it."""
    columns = {
        "nats a character": ["validation text, all of it", f"last {config.log_every} steps"],
        "ours": [f"{result[name]:.3f}" for name in ("validation_loss", "training_loss")],
        "nanoGPT's README": [str(result["published"] or "–"), "–"],
    }
    how = (
        f"{config.form}, {result['parameters']:,} parameters; {config.optimizer}, rate"
        f" {config.rate:g}, {config.steps} steps of {config.batch} windows of {config.length}"
    )
    facts = {
        "Training": f"{how}, seed {config.seed}",
        "Time": ", ".join(f"{name} {duration(s)}" for name, s in result["seconds"].items()),
        "Machine": f"{result['environment']['device']}, {result['environment']['cores']} cores",
        "Command": f"`{result['command']}`",
    }
    notes = [f"- {name}: {text}" for name, text in facts.items()]
    title = "# A language model of characters"
    return "\n".join([title, "", *markdown_table(columns), "", *notes, ""])


if __name__ == "__main__":
    common.guard(main)
