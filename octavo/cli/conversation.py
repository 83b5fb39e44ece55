"""A conversation: what was said, how to answer, and who answers. Knows neither terminal nor network.

`Speaker` is who answers: a model in this program (`speakers.Local`) or a running server (`speakers.Remote`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from octavo.errors import ConfigError

#: What /set and the flags may change, by the names of requests.
SETTINGS: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "seed": int,
    "max_tokens": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
}
_MOST_FILE_BYTES = 64 << 20

Message = dict[str, str]


class Write(Protocol):
    def __call__(self, text: str, *, thought: bool = False) -> None:
        """A piece of the answer, or of what is thought before it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer that came to its end. Seconds count from the question."""

    cut: str | None  # why it was cut short, if it was
    prompt_tokens: int | None
    output_tokens: int | None
    first_token_s: float | None
    seconds: float


@dataclass(slots=True)
class Settings:
    sampling: dict[str, Any] = field(default_factory=dict)  # what was said of SETTINGS
    structure: dict[str, Any] | None = None  # StructuredOutputs' fields: json or json_object


class Speaker(Protocol):
    @property
    def name(self) -> str:
        """The model's."""

    @property
    def where(self) -> str:
        """For people: where it runs."""

    @property
    def chats(self) -> bool:
        """Whether the model knows turns; without a template it only continues texts."""

    async def answer(self, messages: list[Message], settings: Settings, write: Write) -> Ended:
        """Raises an OctavoError. Cancelled, it stops the answer."""
        ...

    async def close(self) -> None: ...


class Conversation:
    """`ask` answers and remembers; what was said of an answer that was stopped is remembered too.

    find: makes the speaker of a model's name, for `change`. Without it there is no other.
    """

    def __init__(
        self,
        speaker: Speaker,
        settings: Settings | None = None,
        system: str | None = None,
        find: Callable[[str], Awaitable[Speaker]] | None = None,
    ) -> None:
        self.speaker = speaker
        self.settings = settings or Settings()
        self.system = system
        self.messages: list[Message] = []
        self._find = find

    async def close(self) -> None:
        await self.speaker.close()

    def clear(self) -> None:
        self.messages.clear()

    async def ask(self, text: str, write: Write) -> Ended:
        """Raises what the speaker raises; the question is forgotten then."""
        asked = {"role": "user", "content": text}
        if not self.speaker.chats:
            return await self.speaker.answer([asked], self.settings, write)
        self.messages.append(asked)
        answer: list[str] = []

        def note(text: str, *, thought: bool = False) -> None:
            if not thought:
                answer.append(text)
            write(text, thought=thought)

        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            return await self.speaker.answer([*system, *self.messages], self.settings, note)
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": "".join(answer)})
            else:
                self.messages.pop()

    def take_back(self) -> str | None:
        """The last question, which is forgotten with its answer; None: there is none."""
        while self.messages:
            last = self.messages.pop()
            if last["role"] == "user":
                return last["content"]
        return None

    def set(self, name: str, value: str | None) -> None:
        """Change a setting; None: back to the model's default. Raises ConfigError."""
        if name not in SETTINGS:
            raise ConfigError(f"{name!r} is no setting; these are: {', '.join(SETTINGS)}")
        if value is None:
            self.settings.sampling.pop(name, None)
            return
        from octavo.request import SamplingParams

        try:
            number = SETTINGS[name](value)
        except ValueError:
            raise ConfigError(f"{name} is a number, not {value!r}") from None
        SamplingParams(**{name: number})  # raises InvalidRequest, saying the range
        self.settings.sampling[name] = number

    async def change(self, name: str) -> None:
        """Go on with another model; what was said stays. Raises an OctavoError, and the one before stays."""
        if self._find is None:
            raise ConfigError("no other model can be had here")
        found = await self._find(name)
        before, self.speaker = self.speaker, found
        await before.close()

    def save(self, path: Path) -> None:
        """For its owner's eyes only. Raises ConfigError."""
        content = {
            "model": self.speaker.name,
            "system": self.system,
            "settings": self.settings.sampling,
            "messages": self.messages,
        }
        try:
            with open(os.open(path.expanduser(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(content, file, indent=2, ensure_ascii=False)
                file.write("\n")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    def load(self, path: Path) -> None:
        """What `save` wrote, in place of what was said here; the model stays. Raises ConfigError."""
        try:
            with path.expanduser().open() as file:
                content = json.loads(file.read(_MOST_FILE_BYTES))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise ConfigError(f"{path}: is not a conversation that /save wrote") from None
        messages, system = _said(path, content)
        settings = content.get("settings", {})
        kept = {name: kind for name, kind in SETTINGS.items() if isinstance(settings, dict) and name in settings}
        self.messages, self.system = messages, system
        for name in kept:
            self.set(name, str(settings[name]))


def _said(path: Path, content: Any) -> tuple[list[Message], str | None]:
    with suppress(KeyError, TypeError):
        messages = [{"role": entry["role"], "content": entry["content"]} for entry in content["messages"]]
        system = content.get("system")
        right = all(entry["role"] in ("user", "assistant") and isinstance(entry["content"], str) for entry in messages)
        if right and (system is None or isinstance(system, str)):
            return messages, system
    raise ConfigError(f"{path}: is not a conversation that /save wrote")
