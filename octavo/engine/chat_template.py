"""Messages to the one text a chat model was trained on, by the model's own Jinja template.

The template comes with the model and runs in a sandbox (`octavo.engine.sandbox`) with the functions Hugging Face gives
it; what users write only ever fills it in. Knows nothing of tokens or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from octavo.config import ModelConfig
from octavo.engine import sandbox
from octavo.engine.sandbox import BoundedSandbox
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import CheckpointError, ConfigError, InvalidRequest

Message = dict[str, Any]

# What running a template can raise when the messages are not what it expects.
_TEMPLATE_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    MemoryError,
)

# Stands at the end of a message that is to be continued. Its last character counts as a space that nobody writes: if it
# is gone afterwards, the template strips messages.
_MARK, _PROBE = "\ue000continue here\ue001", "\v"


class ChatTemplate:
    """A compiled template, or the lack of one."""

    def __init__(self, source: str | None, tokenizer: Tokenizer) -> None:
        """Raises CheckpointError for a template that is not valid Jinja."""
        self.source = source
        self._special_tokens = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
        try:
            self._template = None if source is None else _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise CheckpointError(
                f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"
            ) from None
        except (RecursionError, SyntaxError):  # the latter from the Python that Jinja writes
            raise CheckpointError("the chat template nests too deeply") from None

    @classmethod
    def for_model(cls, config: ModelConfig, tokenizer: Tokenizer) -> ChatTemplate:
        """The template of --chat-template, else the model's own. Raises ConfigError or CheckpointError."""
        if config.chat_template is None:
            return cls(tokenizer.chat_template, tokenizer)
        file = Path(config.chat_template).expanduser()
        try:
            return cls(file.read_text(encoding="utf-8"), tokenizer)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--chat-template {file}: cannot be read: {error}") from None

    def render(
        self,
        /,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The text to encode, without adding special tokens: the template writes them.

        add_generation_prompt: end with the header of the assistant's answer. continue_final_message: end inside the
        last message, so the model goes on writing it. Raises InvalidRequest if the template refuses the messages.
        """
        if self._template is None:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions, or start the server with --chat-template FILE",
                param="messages",
            )
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        sent = _marked(messages) if continue_final_message else list(messages)
        variables = {
            **self._special_tokens,
            **kwargs,
            "messages": sent,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            text = sandbox.render(self._template, variables)
        except _TEMPLATE_FAULTS as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from None
        return _cut_at_mark(text) if continue_final_message else text


def _environment() -> BoundedSandbox:
    environment = BoundedSandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    environment.filters["tojson"] = sandbox.bounded(_to_json)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for those who train; here it is only its contents."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own tojson escapes for HTML, which models have not seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _marked(messages: Sequence[Message]) -> list[Message]:
    """The messages with a mark at the end of the last one's text."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, str):
        marked: Any = content + _MARK + _PROBE
    elif isinstance(content, list) and content and isinstance(content[-1], dict) and "text" in content[-1]:
        marked = [*content[:-1], {**content[-1], "text": content[-1]["text"] + _MARK + _PROBE}]
    else:
        raise InvalidRequest("there is no text in the last message to continue", param="continue_final_message")
    return [*messages[:-1], {**messages[-1], "content": marked}]


def _cut_at_mark(text: str) -> str:
    before, found, after = text.rpartition(_MARK)
    if not found:
        raise InvalidRequest(
            "the model's chat template does not end with the last message, so it cannot be continued",
            param="continue_final_message",
        )
    return before if after.startswith(_PROBE) else before.rstrip()
