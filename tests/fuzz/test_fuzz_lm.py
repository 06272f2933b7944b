"""Any content of a Hugging Face folder, of adapters' files, of tokenizers and chat templates."""

import contextlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import VALUES, changed, contained, damaged, examples
from hypothesis import given
from hypothesis import strategies as st

from metajax import lm
from metajax.errors import MetajaxError
from metajax.lm import _chat_templates, _gguf, _hf_config, _hf_tensors, lora
from metajax.lm._folder import JsonFile
from metajax.models import Rotary, Transformer, TransformerConfig

SIZES = {"vocab_size": 8, "width": 4, "n_layers": 1, "n_heads": 2, "max_length": 8}
LLAMA3 = Rotary(scaling="llama3", factor=2.0, original_length=4)
CONFIGS = {
    "gpt2": TransformerConfig.gpt2(**SIZES),
    "llama": TransformerConfig.llama(**SIZES, rotary=LLAMA3),
    "qwen2": TransformerConfig.qwen2(**SIZES),
    "qwen3": TransformerConfig.qwen3(**SIZES, windows=(2,)),
    "mistral": TransformerConfig.llama(**SIZES, windows=(2,)),
    "gemma3": TransformerConfig.gemma3(**SIZES),
}


def shaped(config):
    tree = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 2), int))
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), tree["params"])


@pytest.mark.parametrize("name", CONFIGS)
def test_any_fields_of_a_config(name):
    fields = _hf_config.to_hf(CONFIGS[name], "float32")

    @examples(60)
    @given(changed(fields))
    def any_fields(fields):
        with contextlib.suppress(lm.CheckpointError):
            _hf_config.from_hf(JsonFile(fields, "config.json"))

    any_fields()


@pytest.fixture
def checkpoint(sandbox):
    folder = sandbox / "files" / "model"
    config = CONFIGS["llama"]
    lm.save_pretrained(folder, config, shaped(config), shard_bytes=512)
    generation = {"eos_token_id": [1, 2], "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model-00001-of-*.safetensors",
    ],
)
def test_any_file_of_a_checkpoint(name, checkpoint, sandbox):
    (file,) = checkpoint.glob(name)
    content = file.read_bytes()
    contents = damaged(content)
    if file.suffix == ".json":
        contents |= changed(json.loads(content)).map(lambda fields: json.dumps(fields).encode())

    @examples(25)
    @given(contents)
    def any_content(content):
        file.write_bytes(content)
        with contained(sandbox):
            lm.load_pretrained(checkpoint)

    any_content()


@pytest.fixture
def gguf_file(sandbox):
    gguf = pytest.importorskip("gguf")
    config, file = TransformerConfig.qwen3(**SIZES | {"head_dim": 4}), sandbox / "files" / "m.gguf"
    writer = gguf.GGUFWriter(file, "qwen3")
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_length)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.n_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<s>", *"abcdef", "ab"])
    writer.add_token_scores([-1.0] * 8)
    writer.add_token_types([3] + [1] * 7)
    writer.add_bos_token_id(0)
    for tensor in _hf_tensors.tensors(config, _gguf.NAMES):
        writer.add_tensor(tensor.name, np.ones(tensor.shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lm.load_pretrained(file)
    return file


@pytest.mark.parametrize("load", [lm.load_pretrained, lm.load_tokenizer])
def test_any_gguf_file(gguf_file, sandbox, load):
    content = gguf_file.read_bytes()

    @examples(100)
    @given(damaged(content))
    def any_content(content):
        gguf_file.write_bytes(content)
        with contained(sandbox):
            load(gguf_file)

    any_content()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_any_file_of_an_adapter(name, sandbox):
    folder, config = sandbox / "files" / "adapter", CONFIGS["gpt2"]
    factors = lora.init(shaped(config), jax.random.key(0), rank=1, targets="attention/.*kernel")
    lm.save_adapters(folder, factors, config=config)
    file = folder / name
    content = file.read_bytes()
    contents = damaged(content)
    if file.suffix == ".json":
        fields = json.loads(content) | {"exclude_modules": None, "layers_to_transform": [0]}
        contents |= changed(fields).map(lambda fields: json.dumps(fields).encode())

    @examples(40)
    @given(contents)
    def any_content(content):
        file.write_bytes(content)
        with contained(sandbox):
            lm.load_adapters(folder, config=config)

    any_content()


@pytest.fixture
def tokenizer(sandbox):
    tokenizers = pytest.importorskip("tokenizers")
    folder = sandbox / "files" / "tokenizer"
    folder.mkdir()
    words = tokenizers.models.WordLevel({"<s>": 0, "hello": 1, "world": 2}, unk_token="<s>")
    backend = tokenizers.Tokenizer(words)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.save(str(folder / "tokenizer.json"))
    fields = {"bos_token": {"content": "<s>"}, "eos_token": "<s>", "add_bos_token": True}
    fields["chat_template"] = [{"name": "default", "template": "{{ messages[0].content }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}{% endfor %}")
    return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_any_file_of_a_tokenizer(name, tokenizer, sandbox):
    file = tokenizer / name
    content = file.read_bytes()
    contents = damaged(content)
    if file.suffix == ".json":
        (tokenizer / "chat_template.jinja").unlink()
        contents |= changed(json.loads(content)).map(lambda fields: json.dumps(fields).encode())

    @examples(40)
    @given(contents)
    def any_content(content):
        file.write_bytes(content)
        with contained(sandbox):
            found = lm.load_tokenizer(tokenizer)
            assert isinstance(found.decode(found.encode("hello world")), str)
            found.apply_chat_template([{"role": "user", "content": "hello"}])

    any_content()


def test_any_character_tokenizer(sandbox):
    file = sandbox / "files" / "characters.json"
    lm.CharTokenizer("abc", ("<pad>",)).save(file)
    content = file.read_bytes()
    some = changed(json.loads(content)).map(lambda fields: json.dumps(fields).encode())

    @examples(40)
    @given(some | damaged(content))
    def any_content(content):
        file.write_bytes(content)
        with contained(sandbox):
            found = lm.CharTokenizer.load(file)
            assert found.decode(range(found.vocab_size)) == "".join(
                (*found.specials, found.characters)
            )

    any_content()


PIECES = st.sampled_from(
    ["{{ messages", "[0]", ".content", " + 1", " / 0", "|tojson", "}}", "{% for m in messages %}",
     "{% endfor %}", "{{ m.__class__", "{% if tools %}", "{% generation %}", "{{ range(9**9)",
     "{{ raise_exception('no')", "{{ strftime_now(1)", "{% break %}", "text"]
)  # fmt: skip


@examples(50)
@given(
    st.lists(PIECES | st.text(max_size=6), max_size=8).map("".join), st.lists(VALUES, max_size=2)
)
def test_any_chat_template_and_chat(source, messages):
    try:
        found = _chat_templates.render(source, messages)
    except MetajaxError:
        return
    assert isinstance(found, str)


def test_a_folder_is_not_what_is_read(checkpoint):
    """Nor is anything else that isn't a file: a pipe would never end."""
    for name in ("config.json", "model.safetensors.index.json"):
        file = checkpoint / name
        content = file.read_bytes()
        file.unlink()
        file.mkdir()
        with pytest.raises(lm.CheckpointError, match=name):
            lm.load_pretrained(checkpoint)
        file.rmdir()
        file.write_bytes(content)
    shutil.rmtree(checkpoint)
