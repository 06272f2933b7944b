"""Chat templates: Jinja programs that come with a tokenizer, by the rules of transformers."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metajax._extras import import_extra
from metajax.errors import ArgumentError
from metajax.files import read_text
from metajax.lm._folder import CheckpointError, checkpoint_errors
from metajax.lm._template_sandbox import sandbox

Message = Mapping[str, Any]
"""One turn of a chat, such as ``{"role": "user", "content": "Hello"}``."""


def read(folder: Path, configured: Any) -> dict[str, str]:
    """A folder's templates by name; a single one is ``"default"``.

    They are chat_template.jinja and additional_chat_templates/NAME.jinja. Without these files they
    are in tokenizer_config.json: one text, or a list of named ones.

    Raises:
        CheckpointError: a file can't be read, or tokenizer_config.json has neither.
    """
    more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files = {path.stem: path for path in more}
    if (folder / "chat_template.jinja").exists():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: _text(path) for name, path in files.items()}
    if configured is None:
        return {}
    if isinstance(configured, str):
        return {"default": configured}
    try:
        found = {entry["name"]: entry["template"] for entry in configured}
        if all(isinstance(text, str) for pair in found.items() for text in pair):
            return found
    except (TypeError, KeyError):
        pass
    raise CheckpointError(
        f"{folder / 'tokenizer_config.json'}: chat_template must be a text, or a list of objects "
        "with the texts 'name' and 'template'."
    )


def _text(path: Path) -> str:
    with checkpoint_errors():
        return read_text(path)


def render(
    source: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """The text that a template makes of a chat.

    Args:
        source: the template.
        messages: the turns; keys whose value is None are left out.
        add_generation_prompt: whether the text ends with the beginning of an answer.
        **variables: others that the template reads.

    Raises:
        ArgumentError: if there is no message, or the template fails on them. It fails too if it
            loops or grows without end, or reaches for what Python keeps inside of values.
        ImportError: if Jinja isn't installed.

    Example:
        >>> source = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
        >>> render(source, [{"role": "user", "content": "Hello"}])
        '<user>Hello'
    """
    jinja2 = import_extra("jinja2", extra="lm")
    extensions = import_extra("jinja2.ext", extra="lm")
    if not messages:
        raise ArgumentError(f"messages must not be empty, got {messages!r}.")

    class Generation(extensions.Extension):
        """``{% generation %}`` marks what the model itself is to write, and changes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        # Jinja's own escapes HTML.
        return json.dumps(value, **{"ensure_ascii": False, **options})

    def strftime_now(form: str) -> str:
        environment.before("%", (form,))
        return datetime.datetime.now().strftime(form)

    given = {"tools": None, "documents": None, **variables}
    try:
        turns = [{k: v for k, v in message.items() if v is not None} for message in messages]
        given |= {"messages": turns, "add_generation_prompt": add_generation_prompt}
        environment = sandbox(
            given,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, extensions.loopcontrols],
        )
        environment.filters["tojson"] = environment.counted("tojson", to_json)
        environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        return environment.from_string(source).render(given)
    except Exception as error:  # a template may divide by zero, add a text to a number, ...
        raise ArgumentError(f"messages: the chat template fails on them: {error}") from error
