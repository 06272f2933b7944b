"""Whatever lies where a file is read: a pipe, a device, a folder, a link, a file without end."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import metajax
from experiments import common
from experiments.common.disk import damage_in
from metajax import data, files, lm
from metajax.data import _cache, _omniglot_sources
from metajax.lm import lora
from metajax.models import Transformer, TransformerConfig

CONFIG = TransformerConfig.llama(vocab_size=8, width=4, n_layers=1, n_heads=2, max_length=8)
KINDS = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with one of everything that is read."""
    folder = tmp_path_factory.mktemp("whole")
    zeros = lambda leaf: jnp.zeros(leaf.shape)
    params = jax.tree.map(
        zeros, jax.eval_shape(Transformer(CONFIG).init, jax.random.key(0), jnp.zeros((1, 2), int))
    )["params"]
    lm.save_pretrained(folder / "shards", CONFIG, params, shard_bytes=512)
    lm.save_pretrained(folder / "model", CONFIG, params)
    (folder / "shards" / "generation_config.json").write_text("{}")
    factors = lora.init(params, jax.random.key(0), rank=1, targets="query/kernel")
    lm.save_adapters(folder / "adapter", factors, config=CONFIG)
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"<s>": 0, "hello": 1}, unk_token="<s>")
    (folder / "tokenizer").mkdir()
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer" / "tokenizer.json"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / "tokenizer" / name).write_text("{}")
    (folder / "tokenizer" / "chat_template.jinja").write_text("text")
    (folder / "model.gguf").write_bytes(b"GGUF")
    lm.CharTokenizer("abc").save(folder / "characters.json")
    (folder / "images" / "cat").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "images" / "cat" / "1.png")
    (folder / "split.csv").write_text("filename,label\n1.png,cat\n")
    (folder / "images_evaluation").mkdir()
    (folder / "images_background.zip").write_bytes(b"")
    _cache.write(folder / "cache.npz", _cache.Cached(np.zeros((2, 2), np.uint8), ""), "")
    run = common.open_run("toy", common.RunConfig(steps=5, out=folder / "run"))
    common.create(run)
    (folder / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    with common.Checkpoints(folder / "run" / "checkpoints") as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)})
    return folder


def run_again(folder):
    config = common.RunConfig(steps=5, out=folder / "run", resume=True)
    return common.open_run("toy", config)


def restore(folder):
    with common.Checkpoints(folder / "run" / "checkpoints") as checkpoints:
        return checkpoints.restore({"w": jnp.ones(2)})


def log(folder):
    with common.MetricsLog(folder / "run") as opened:
        opened.append(2, {"loss": 1.0})


READS = {
    "shards/config.json": lambda folder: lm.load_pretrained(folder / "shards"),
    "shards/generation_config.json": lambda folder: lm.load_pretrained(folder / "shards"),
    "shards/model.safetensors.index.json": lambda folder: lm.load_pretrained(folder / "shards"),
    "shards/model-00001-of-00003.safetensors": lambda folder: lm.load_pretrained(folder / "shards"),
    "model/model.safetensors": lambda folder: lm.load_pretrained(folder / "model"),
    "adapter/adapter_config.json": lambda f: lm.load_adapters(f / "adapter", config=CONFIG),
    "adapter/adapter_model.safetensors": lambda f: lm.load_adapters(f / "adapter", config=CONFIG),
    "tokenizer/tokenizer.json": lambda folder: lm.load_tokenizer(folder / "tokenizer"),
    "tokenizer/tokenizer_config.json": lambda folder: lm.load_tokenizer(folder / "tokenizer"),
    "tokenizer/special_tokens_map.json": lambda folder: lm.load_tokenizer(folder / "tokenizer"),
    "tokenizer/chat_template.jinja": lambda folder: lm.load_tokenizer(folder / "tokenizer"),
    "model.gguf": lambda folder: lm.load_pretrained(folder / "model.gguf"),
    "characters.json": lambda folder: lm.CharTokenizer.load(folder / "characters.json"),
    "images/cat/1.png": lambda folder: data.from_folder(folder / "images", size=4),
    "split.csv": lambda f: data.from_splits(f / "images", f / "split.csv", size=4),
    "images_background.zip": lambda folder: _omniglot_sources.from_folder(folder),
    "cache.npz": lambda folder: _cache.read(folder / "cache.npz", (2, 2)),
    "run/config.json": run_again,
    "run/metrics.jsonl": log,
    "run/checkpoints/1/SHA256SUMS": restore,
    "run/.lock": lambda folder: common.create(run_again(folder)),
}
AS_GOOD_AS_NONE = {
    *("shards/generation_config.json", "cache.npz"),
    *(f"tokenizer/{name}" for name in ("tokenizer_config.json", "special_tokens_map.json")),
    "tokenizer/chat_template.jinja",
}
"""Where a link to nothing is no error."""


@pytest.fixture
def at_once():
    """Fails a test that waits."""

    def stop(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READS)
@pytest.mark.filterwarnings("ignore:the checkpoint")
def test_what_is_no_file_is_refused_by_name(name, kind, whole, tmp_path, at_once):
    folder = tmp_path / "folder"
    shutil.copytree(whole, folder)
    path = folder / name
    path.unlink()
    KINDS[kind](path)
    if kind == "a link to nothing" and name in AS_GOOD_AS_NONE:
        return
    if kind == "a folder" and path.suffix == ".zip":  # as it was before it was packed
        return
    with pytest.raises(metajax.MetajaxError) as caught:
        READS[name](folder)
    stated = "run/checkpoints" if name.startswith("run/checkpoints") else path.name
    assert stated in str(caught.value)


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_what_a_link_leads_to_is_not_written_to(name, tmp_path):
    run = common.open_run("toy", common.RunConfig(steps=5, out=tmp_path / "run"))
    common.create(run)
    precious = tmp_path / "precious"
    precious.write_text("of another program\n")
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(precious)
    refused = pytest.raises(metajax.MetajaxError, match=r"cannot be written|is not a line of")
    with refused, common.locked(run.path), common.MetricsLog(run.path) as opened:
        opened.append(1, {})
    assert precious.read_text() == "of another program\n"


def test_a_link_where_a_temporary_file_is_written_is_replaced(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("of another program")
    (tmp_path / f".a.json.{os.getpid()}").symlink_to(precious)
    files.write_atomically(tmp_path / "a.json", json.dumps({}))
    assert precious.read_text() == "of another program"
    assert files.read_json(tmp_path / "a.json") == {}


def test_bounds(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xff" * 8)
    with pytest.raises(metajax.FileError, match=r"a\.txt can't be read: it has more than 7 bytes"):
        files.read_bytes(file, most=7)
    with pytest.raises(metajax.FileError, match=r"a\.txt can't be read: 'utf-8'"):
        files.read_text(file)
    file.write_text("[" * 100_000)
    with pytest.raises(metajax.FileError, match=r"a\.txt isn't JSON"):
        files.read_json(file)
    file.write_text('{"n": ' + "9" * 5000 + "}")
    with pytest.raises(metajax.FileError, match=r"a\.txt isn't JSON"):
        files.read_json(file)
    assert damage_in(tmp_path) is not None
