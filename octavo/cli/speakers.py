"""Who answers in a conversation: a model in this program, or a running server that has it."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from octavo.cli.client import NoServer, Server, said
from octavo.cli.conversation import Ended, Message, Settings, Write
from octavo.cli.event_client import ServerError, post_events
from octavo.config import EngineConfig
from octavo.errors import ModelNotFound, OctavoError, RequestFailed
from octavo.face import Engine
from octavo.request import SamplingParams, StructuredOutputs

_NEARBY_S = 0.5  # a server on this machine answers sooner, or is not worth waiting for


class Local:
    """An engine of this program's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._requests = itertools.count()

    @classmethod
    async def start(cls, config: EngineConfig) -> Local:
        """Load the model. Raises CheckpointError, ConfigError or EngineDead."""
        from octavo.engine.async_engine import AsyncLLMEngine

        engine = await AsyncLLMEngine.start(config)
        try:
            with_note = sys.stderr.isatty()
            spinner = asyncio.create_task(_spin(f"loading {engine.checkpoint.name}")) if with_note else None
            try:
                await engine.wait_ready()
            finally:
                if spinner is not None:
                    spinner.cancel()
                    await asyncio.wait({spinner})
            return cls(engine)
        except BaseException:
            await engine.shutdown()
            raise

    @property
    def name(self) -> str:
        return self._engine.checkpoint.name

    @property
    def where(self) -> str:
        return "in this program"

    @property
    def chats(self) -> bool:
        return bool(self._engine.config.model.chat_template or self._engine.tokenizer.chat_template)

    async def answer(self, messages: list[Message], settings: Settings, write: Write) -> Ended:
        began, first = time.monotonic(), None
        structure = StructuredOutputs(**settings.structure) if settings.structure else None
        params = SamplingParams(**{**self._engine.default_sampling, **settings.sampling}, structured_outputs=structure)
        prompt = await self._prompt(messages)
        tokens, reason = 0, None
        outputs = self._engine.generate(prompt, params, f"run-{next(self._requests)}", output_kind="delta")
        async with aclosing(outputs):  # type: ignore[type-var]
            async for output in outputs:
                part = output.outputs[0]
                tokens, reason = tokens + len(part.token_ids), part.finish_reason
                first = first or time.monotonic()
                if part.text:
                    write(part.text)
        return Ended(
            _cut(reason, tokens, params.max_tokens, self._engine.max_model_len),
            len(prompt),
            tokens,
            first and first - began,
            time.monotonic() - began,
        )

    async def _prompt(self, messages: list[Message]) -> list[int]:
        if not self.chats:
            return (await self._engine.encode(messages[-1]["content"]))[1]
        text = self._engine.chat_template.render(list(messages), add_generation_prompt=True)
        return (await self._engine.encode(text, add_special_tokens=False))[1]

    async def close(self) -> None:
        await self._engine.shutdown()


class Remote:
    """A model of a running server, through its OpenAI endpoints."""

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self.name = name
        self.chats = True  # until the server says otherwise

    @classmethod
    async def find(cls, server: Server, name: str | None) -> Remote:
        """The model of that name, or the only one. Raises NoServer or ModelNotFound."""
        names = await asyncio.to_thread(_served, server, None)
        if name is None and len(names) == 1:
            name = names[0]
        match = [each for each in names if name is not None and each.lower() == name.lower()]
        if not match:
            wish = "say which model" if name is None else f"it has no model {name!r}"
            raise ModelNotFound(f"{server.url}: {wish}; these are: {', '.join(names) or 'none'}")
        return cls(server, match[0])

    @classmethod
    def nearby(cls, server: Server, name: str) -> Remote | None:
        """The model of that name, if there is a server that has it and answers at once."""
        try:
            names = _served(server, _NEARBY_S)
        except OctavoError:
            return None
        match = [each for each in names if each.lower() == name.lower()]
        return cls(server, match[0]) if match else None

    @property
    def where(self) -> str:
        return f"at {self._server.url}"

    async def answer(self, messages: list[Message], settings: Settings, write: Write) -> Ended:
        began, first = time.monotonic(), None
        usage: dict[str, Any] = {}
        tokens_at_most, reason = settings.sampling.get("max_tokens"), None
        async with aclosing(self._events(messages, settings)) as events:  # type: ignore[type-var]
            async for event in events:
                usage = event.get("usage") or usage
                for choice in event.get("choices") or ():
                    reason = choice.get("finish_reason") or reason
                    delta = choice.get("delta") or {"content": choice.get("text")}
                    thought = delta.get("reasoning") or delta.get("reasoning_content")
                    if thought or delta.get("content"):
                        first = first or time.monotonic()
                    if thought:
                        write(thought, thought=True)
                    if delta.get("content"):
                        write(delta["content"])
        made = usage.get("completion_tokens")
        return Ended(
            _cut(reason, made, tokens_at_most, None),
            usage.get("prompt_tokens"),
            made,
            first and first - began,
            time.monotonic() - began,
        )

    async def _events(self, messages: list[Message], settings: Settings) -> AsyncIterator[dict[str, Any]]:
        common = {
            "model": self.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            **settings.sampling,
            **_response_format(settings.structure),
        }
        while True:
            what = {"messages": messages} if self.chats else {"prompt": messages[-1]["content"]}
            url = f"{self._server.url}/v1/{'chat/completions' if self.chats else 'completions'}"
            try:
                async with aclosing(post_events(url, {**common, **what}, self._server.headers)) as events:  # type: ignore[type-var]
                    async for data in events:
                        event = json.loads(data)
                        if "error" in event:
                            raise RequestFailed(said(data)[0] or "the server gave up the answer")
                        yield event
                return
            except ServerError as error:
                if not (self.chats and error.status == 400 and "no chat template" in str(error)):
                    raise self._refusal(error) from None
                self.chats = False  # and again, as a text to continue
            except (OSError, EOFError, ValueError) as error:
                raise RequestFailed(f"the server at {self._server.url} broke off: {error}") from None

    def _refusal(self, error: ServerError) -> OctavoError:
        if error.status is None:
            return RequestFailed(f"{self._server.url}: {error}")
        return self._server.refusal(error.status, error.body)

    async def close(self) -> None:
        """Nothing is kept."""


def _served(server: Server, patience_s: float | None) -> list[str]:
    answer = server.get("/v1/models") if patience_s is None else server.get("/v1/models", patience_s)
    try:
        return [str(card["id"]) for card in answer["data"]]
    except (LookupError, TypeError):
        raise NoServer(f"{server.url} is not a server of models") from None


def _response_format(structure: dict[str, Any] | None) -> dict[str, Any]:
    if structure is None:
        return {}
    if "json" in structure:
        schema = {"name": "answer", "schema": structure["json"]}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": "json_object"}}


def _cut(reason: str | None, tokens: int | None, most: int | None, context: int | None) -> str | None:
    if reason != "length":
        return None
    if tokens == most:
        return f"cut after {tokens} tokens; --max-tokens N or /set max_tokens N sets another limit"
    return f"cut: the context{f' of {context} tokens' if context else ''} is full"


async def _spin(note: str) -> None:
    """A sign of life on a terminal, which leaves no trace."""
    began = time.monotonic()
    try:
        for frame in itertools.cycle("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"):
            waited = time.monotonic() - began
            sys.stderr.write(f"\r{frame} {note}{f' {waited:.0f} s' if waited >= 2 else ''} ")
            sys.stderr.flush()
            await asyncio.sleep(0.1)
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
