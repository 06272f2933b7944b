"""Tokenizers by character and of Hugging Face folders, and chat templates beside transformers."""

import json
import subprocess
import sys

import pytest

import metajax
from metajax.lm import CharTokenizer, CheckpointError, load_tokenizer

TEXT = "the cat sat on the mat, and the dog sat on the log; naïve café — 東京"


def test_characters_there_and_back():
    tokenizer = CharTokenizer.of(TEXT, specials=("<pad>", "<end>"))
    assert tokenizer.characters == "".join(sorted(set(TEXT)))
    assert tokenizer.vocab_size == len(set(TEXT)) + 2
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert max(tokenizer.encode(TEXT)) == tokenizer.vocab_size - 1
    end = tokenizer.special("<end>")
    assert end == 1
    assert tokenizer.decode([*tokenizer.encode("cat"), end]) == "cat<end>"
    assert tokenizer.decode([*tokenizer.encode("cat"), end], skip_special_tokens=True) == "cat"
    assert tokenizer.encode("") == []


def test_characters_saved_and_loaded(tmp_path):
    tokenizer = CharTokenizer.of(TEXT + '\n"\\', specials=("<pad>",))
    tokenizer.save(tmp_path / "characters.json")
    assert CharTokenizer.load(tmp_path / "characters.json") == tokenizer
    assert [path.name for path in tmp_path.iterdir()] == ["characters.json"]
    (tmp_path / "other.json").write_text('{"characters": 3}')
    with pytest.raises(ValueError, match=r"other\.json: characters must be a text, got 3"):
        CharTokenizer.load(tmp_path / "other.json")


def test_bad_characters():
    tokenizer = CharTokenizer.of("abc", specials=("<pad>",))
    with pytest.raises(ValueError, match=r"without a token: 'x', 'y'\. Those with one are 'a'"):
        tokenizer.encode("axby")
    with pytest.raises(ValueError, match="ids must be from 0 to 3, got '-1', '4'"):
        tokenizer.decode([0, -1, 4])
    with pytest.raises(ValueError, match="token must be one of '<pad>', got '<end>'"):
        tokenizer.special("<end>")
    with pytest.raises(ValueError, match="characters must be distinct, got 'a' twice"):
        CharTokenizer("aba")
    with pytest.raises(ValueError, match="specials must be distinct"):
        CharTokenizer("ab", ("<pad>", "<pad>"))
    with pytest.raises(ValueError, match="and 80 more"):
        CharTokenizer("".join(map(chr, range(200, 300)))).encode("a")


CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}{{ tools | tojson(indent=2) }}{{- '<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('Unknown role: ' + message.role) }}
    {%- endif %}
    {%- if message.skipped is defined %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}
    {%- endgeneration %}{% else %}{{ message['content'] }}{% endif %}
    {{- eos_token + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>' }}
    {%- endif %}
{%- endif %}
"""
PLAIN = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
CHAT = [
    {"role": "system", "content": 'Answer <briefly> & "well".'},
    {"role": "user", "content": "the cat é?", "name": None},
    {"role": "assistant", "content": "  sat on the mat  "},
    {"role": "user", "content": "and the dog"},
]


@pytest.fixture(scope="module")
def trained():
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 5, trainer)
    # Not special here: the folder's config says that it is.
    backend.add_tokens(["<|im_end|>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return backend.to_str()


CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "bos_token": {"__type": "AddedToken", "content": "<s>", "normalized": False},
    "eos_token": "<|im_end|>",
    "pad_token": None,
    "chat_template": CHATML,
}


@pytest.fixture
def folder(tmp_path, trained):
    (tmp_path / "tokenizer.json").write_text(trained)
    configure(tmp_path)
    return tmp_path


def configure(folder, **fields):
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG | fields))


def reference(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


transformers_may_warn = pytest.mark.filterwarnings("ignore")


@transformers_may_warn
def test_a_folder_as_transformers_reads_it(folder):
    ours, theirs = load_tokenizer(folder), reference(folder)
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        None,
    )
    for text in (TEXT, "", " a\n\n  b\t", "<|im_start|>user\nthe cat<|im_end|>"):
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ids) == text == theirs.decode(ids)
    skipped = ours.decode(ids, skip_special_tokens=True)
    assert skipped == "user\nthe cat" == theirs.decode(ids, skip_special_tokens=True)
    assert ours.token_id("<|im_start|>") == ids[0]
    assert ours.token_id("<|nothing|>") is None


@transformers_may_warn
@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("where", ["string", "named", "file"])
def test_chat_templates_as_transformers_applies_them(folder, generation, where):
    if where == "named":
        both = {"default": CHATML, "tool_use": PLAIN}
        named = [{"name": name, "template": text} for name, text in both.items()]
        configure(folder, chat_template=named)
    if where == "file":
        configure(folder, chat_template=PLAIN)
        (folder / "chat_template.jinja").write_text(CHATML)
    ours, theirs = load_tokenizer(folder), reference(folder)
    tool = {"type": "function", "function": {"name": "größe", "parameters": {"n": [1, 2.5]}}}
    for variables in ({}, {"tools": [tool]}, {"enable_thinking": False}, {"eos_token": "."}):
        options = {"add_generation_prompt": generation, **variables}
        text = ours.apply_chat_template(CHAT, **options)
        assert text == theirs.apply_chat_template(CHAT, tokenize=False, **options)
        ids = theirs.apply_chat_template(CHAT, return_dict=False, **options)
        assert ours.encode(text) == ids
        assert (
            text.endswith("<|im_start|>assistant\n") == (generation and not variables) or variables
        )
    if where == "named":
        assert ours.apply_chat_template(CHAT, template="tool_use").startswith("<s>[system] Answer")


def test_the_date_in_a_template(folder):
    configure(folder, chat_template="{{ strftime_now('%Y') }}{{ messages | tojson }}")
    text = load_tokenizer(folder).apply_chat_template([{"role": "user", "content": "<é>"}])
    assert text[:2] == "20"
    assert text[4:] == '[{"role": "user", "content": "<é>"}]'


def test_chats_that_fail(folder):
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ValueError, match=r"messages: the chat template fails.*Unknown role: judge"):
        tokenizer.apply_chat_template([{"role": "judge", "content": "?"}])
    with pytest.raises(ValueError, match="messages must not be empty"):
        tokenizer.apply_chat_template([])
    with pytest.raises(ValueError, match="template must be one of 'default', got 'rag'"):
        tokenizer.apply_chat_template(CHAT, template="rag")


def test_a_template_is_kept_in_its_sandbox(folder):
    for source in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        configure(folder, chat_template=source)
        with pytest.raises(ValueError, match=r"unsafe|not safely"):
            load_tokenizer(folder).apply_chat_template(CHAT)


def test_bad_folders(folder, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is no folder"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty/tokenizer\.json is missing"):
        load_tokenizer(tmp_path / "empty")
    configure(folder, pad_token="<nothing>")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json hasn't: '<nothing>'"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json isn't JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json can't be used"):
        load_tokenizer(folder)


def test_a_panic_of_the_library_is_our_error(folder, monkeypatch):
    """It isn't an ``Exception``, so that nobody would catch it."""
    tokenizer = load_tokenizer(folder)

    class PanicException(BaseException):
        pass

    class Backend:
        def encode(self, text, **options):
            raise PanicException("index out of bounds")

        decode = encode

    tokenizer.backend = Backend()
    for call in (lambda: tokenizer.encode("text"), lambda: tokenizer.decode([1])):
        with pytest.raises(metajax.ArgumentError, match="index out of bounds"):
            call()


def test_a_hub_id_is_read_from_where_the_client_puts_it(folder, monkeypatch):
    class Hub:
        @staticmethod
        def snapshot_download(name, allow_patterns):
            assert name == "someone/model"
            assert {"*.json", "*.jinja"} < set(allow_patterns)
            return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert load_tokenizer("someone/model").eos_id == load_tokenizer(folder).eos_id is not None


def test_a_folder_without_a_config_and_with_truncation(tmp_path, trained):
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer.from_str(trained)
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_id is not None
    assert tokenizer.eos_id is None
    assert tokenizer.decode(tokenizer.encode(TEXT), skip_special_tokens=True) == TEXT


def test_a_missing_library_is_named():
    program = (
        "import sys\n"
        "for name in ('tokenizers', 'safetensors', 'jinja2'): sys.modules[name] = None\n"
        "from metajax import lm\n"
        "tokenizer = lm.HFTokenizer.__new__(lm.HFTokenizer)\n"
        "tokenizer.special_tokens, tokenizer.chat_templates = {}, {'default': ''}\n"
        "for call in (lambda: lm.load_tokenizer('.'),\n"
        "             lambda: lm.save_pretrained('.', None, {}),\n"
        "             lambda: tokenizer.apply_chat_template([{}])):\n"
        "    try: call()\n"
        "    except ImportError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120
    )
    lines = result.stdout.splitlines()
    assert [line.split()[-3:] for line in lines] == [["pip", "install", "'metajax[lm]'."]] * 3


def with_ends(trained, single):
    """tokenizer.json with ``single`` around a text; None for nothing."""
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer.from_str(trained)
    backend.post_processor = tokenizers.processors.ByteLevel()
    if single is not None:
        names = [piece for piece in single.split() if piece != "$A"]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=single, special_tokens=[(name, backend.token_to_id(name)) for name in names]
        )
    return backend.to_str()


@pytest.mark.parametrize(
    ("single", "flags", "before", "after"),
    [
        ("<s> $A", {}, 1, 0),
        ("<s> $A <|im_end|>", {}, 1, 1),
        (None, {}, 0, 0),
        (None, {"add_bos_token": True}, 1, 0),
        (None, {"add_bos_token": True, "add_eos_token": True}, 1, 1),
        (None, {"add_eos_token": True}, 0, 1),
        (None, {"add_bos_token": None}, 0, 0),
        ("<s> $A", {"add_bos_token": True, "add_eos_token": False}, 1, 0),
        ("<s> $A", {"add_bos_token": False}, 0, 0),
        ("<s> $A <|im_end|>", {"add_bos_token": False}, 0, 1),
        ("<s> $A <|im_end|>", {"add_eos_token": False}, 1, 0),
        (None, {"add_bos_token": True, "bos_token": None}, 0, 0),
    ],
)
def test_begin_and_end_token_are_added_as_the_folder_says(
    folder, trained, single, flags, before, after
):
    (folder / "tokenizer.json").write_text(with_ends(trained, single))
    configure(folder, **flags)
    tokenizer = load_tokenizer(folder)
    bos, eos = tokenizer.token_id("<s>"), tokenizer.token_id("<|im_end|>")
    for text in (TEXT, "the <s> cat"):
        plain = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(plain) == text
        wanted = [bos] * before + plain + [eos] * after
        assert tokenizer.encode(text) == tokenizer.encode(text, add_special_tokens=True) == wanted


def test_a_begin_token_that_the_text_has_is_not_added_twice(folder, trained):
    tokenizer = load_tokenizer(folder)  # which adds one
    bos = tokenizer.bos_id
    plain = tokenizer.encode("the cat", add_special_tokens=False)
    assert tokenizer.encode("<s>the cat") == [bos, *plain]
    assert tokenizer.encode("<s>the cat", add_special_tokens=False) == [bos, *plain]
    (folder / "tokenizer.json").write_text(with_ends(trained, None))
    assert load_tokenizer(folder).encode("<s><s>the cat") == [bos, bos, *plain]


@pytest.mark.parametrize("begins", [True, False])
def test_a_chat_has_the_begin_token_that_its_template_writes(folder, begins):
    configure(folder, chat_template=PLAIN if begins else PLAIN.removeprefix("{{ bos_token }}"))
    tokenizer = load_tokenizer(folder)
    text = tokenizer.apply_chat_template(CHAT)
    assert text.startswith("<s>") == begins
    ids = tokenizer.encode(text)
    assert ids == tokenizer.encode(str(text), add_special_tokens=False)
    bos = tokenizer.token_id("<s>")
    assert [token for token in ids if token == bos] == [bos] * begins
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert [token for token in ids if token == bos] == [bos]


def test_a_tokenizer_without_template_or_special_tokens_says_so(folder):
    configure(folder, chat_template=None)
    tokenizer = load_tokenizer(folder)
    for template in (None, "default", "rag"):
        with pytest.raises(ValueError, match=r"the folder has no chat template\. Set chat_templa"):
            tokenizer.apply_chat_template(CHAT, template=template)
    tokenizer.chat_templates["default"] = PLAIN
    assert tokenizer.apply_chat_template(CHAT).startswith("<s>[system] Answer")
    with pytest.raises(ValueError, match="the tokenizer has no special tokens, got '<s>'"):
        CharTokenizer("ab").special("<s>")
    with pytest.raises(ValueError, match="Those with one are none"):
        CharTokenizer("").encode("a")
