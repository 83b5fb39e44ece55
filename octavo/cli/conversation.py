"""A conversation with an engine, and the terminal loop around it.

`Conversation` keeps the history and streams answers; `talk` reads lines and commands. Models without a chat template
continue each text by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from octavo import env
from octavo.cli.terminal import without_echo
from octavo.config import EngineConfig
from octavo.errors import InvalidRequest, Overloaded, RequestFailed
from octavo.face import Engine
from octavo.request import FinishReason, SamplingParams

_HISTORY_LINES = 1000
_HELP = """\
  /system TEXT   set the system message and begin anew (without TEXT: show it)
  /clear         forget the conversation
  /bye           leave; so does Ctrl-D
  \"\"\"            begin or end a text of several lines
  Ctrl-C         stop the answer"""


class Conversation:
    """`ask` answers and remembers; what was said of an answer that was stopped is remembered too."""

    def __init__(
        self, engine: Engine, sampling: dict[str, Any], max_tokens: int | None = None, system: str | None = None
    ) -> None:
        self.engine = engine
        self.params = SamplingParams(**{**engine.default_sampling, **sampling}, max_tokens=max_tokens)
        self.system = system
        self.messages: list[dict[str, str]] = []
        self._requests = itertools.count()

    @classmethod
    async def start(
        cls, config: EngineConfig, sampling: dict[str, Any], max_tokens: int | None, system: str | None
    ) -> Conversation:
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
            return cls(engine, sampling, max_tokens, system)
        except BaseException:
            await engine.shutdown()
            raise

    async def close(self) -> None:
        await self.engine.shutdown()

    @property
    def chats(self) -> bool:
        """Whether the model knows turns; without a template it only continues texts."""
        return bool(self.engine.config.model.chat_template or self.engine.tokenizer.chat_template)

    def clear(self) -> None:
        self.messages.clear()

    async def ask(self, text: str, write: Callable[[str], None]) -> str | None:
        """Write the answer as it comes; returns why it was cut short, if it was.

        Raises what the engine raises; the question is forgotten then.
        """
        if not self.chats:
            _, prompt = await self.engine.encode(text)
            return await self._stream(prompt, write)
        self.messages.append({"role": "user", "content": text})
        answer: list[str] = []

        def note(piece: str) -> None:
            answer.append(piece)
            write(piece)

        try:
            return await self._stream(await self._prompt(), note)
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": "".join(answer)})
            else:
                self.messages.pop()

    async def _prompt(self) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        text = self.engine.chat_template.render([*system, *self.messages], add_generation_prompt=True)
        _, ids = await self.engine.encode(text, add_special_tokens=False)
        return ids

    async def _stream(self, prompt: list[int], write: Callable[[str], None]) -> str | None:
        tokens, reason = 0, None
        outputs = self.engine.generate(prompt, self.params, f"run-{next(self._requests)}", output_kind="delta")
        async with aclosing(outputs):  # type: ignore[type-var]
            async for output in outputs:
                part = output.outputs[0]
                tokens, reason = tokens + len(part.token_ids), part.finish_reason
                if part.text:
                    write(part.text)
        return self._cut(reason, tokens)

    def _cut(self, reason: FinishReason | None, tokens: int) -> str | None:
        if reason != "length":
            return None
        if tokens == self.params.max_tokens:
            return f"cut after {tokens} tokens; --max-tokens N sets another limit"
        return f"cut: the context of {self.engine.max_model_len} tokens is full"


async def _spin(note: str) -> None:
    """A sign of life on a terminal, which leaves no trace."""
    try:
        for frame in itertools.cycle("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"):
            sys.stderr.write(f"\r{frame} {note} ")
            sys.stderr.flush()
            await asyncio.sleep(0.1)
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def talk(conversation: Conversation, runner: asyncio.Runner, prompt: str | None) -> int:
    """One answer, or lines from the terminal until the user leaves; the exit status."""
    if prompt is not None:
        cut = None
        try:
            with without_echo():
                cut = runner.run(conversation.ask(prompt, _print))
        finally:
            _print("\n")
        if cut is not None:
            _print_note(f"({cut})\n")
        return 0
    _print_note(f"{conversation.engine.checkpoint.name}; /help lists commands, Ctrl-D leaves\n")
    if not conversation.chats:
        _print_note("this model has no chat template: it continues each text by itself\n")
    with Lines() as lines:
        while (text := lines.read()) is not None:
            if text.startswith("/"):
                if not _command(conversation, text):
                    break
            elif text.strip():
                _answer(conversation, runner, text)
    return 0


def _answer(conversation: Conversation, runner: asyncio.Runner, text: str) -> None:
    note = None
    try:
        with without_echo():
            note = runner.run(conversation.ask(text, _print))
        note = note and f"\n({note})"
    except KeyboardInterrupt:
        pass
    except InvalidRequest as error:
        hint = "; /clear begins anew" if conversation.messages else ""
        note = f"{error.message}{hint}"
    except (Overloaded, RequestFailed) as error:
        note = error.message
    _print_note(note or "")
    _print("\n")


def _command(conversation: Conversation, line: str) -> bool:
    """Obey a line that begins with a slash; False: leave."""
    name, _, rest = line.partition(" ")
    match name:
        case "/bye" | "/exit" | "/quit":
            return False
        case "/clear":
            conversation.clear()
        case "/system" if rest.strip():
            conversation.system = rest.strip()
            conversation.clear()
        case "/system":
            _print_note(f"{conversation.system or 'no system message'}\n")
        case "/help" | "/?":
            _print_note(_HELP + "\n")
        case _:
            _print_note(f"unknown command {name}\n{_HELP}\n")
    return True


class Lines:
    """What the user types, with history across sessions where readline is at hand."""

    def __init__(self) -> None:
        self._file: Path = env.CACHE_DIR / "history"

    def __enter__(self) -> Lines:
        with suppress(ImportError, OSError):
            import readline

            readline.set_history_length(_HISTORY_LINES)
            readline.read_history_file(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ImportError, OSError):
            import readline

            self._file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(self._file)
            self._file.chmod(0o600)

    def read(self) -> str | None:
        """A line, or the lines between two `\"\"\"`; None at the end. Ctrl-C drops what was typed."""
        try:
            line = input(">>> ")
            if not line.startswith('"""'):
                return line
            lines = [line.removeprefix('"""')]
            while not lines[-1].endswith('"""'):
                lines.append(input("... "))
            return "\n".join(lines).removesuffix('"""').strip()
        except KeyboardInterrupt:
            _print("\n")
            return ""
        except EOFError:
            _print("\n")
            return None


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_note(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
