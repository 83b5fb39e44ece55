"""The terminal around a conversation: one answer, or lines and commands until the user leaves.

What the model says goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import TextIO

from octavo.cli.conversation import SETTINGS, Conversation, Ended, Write
from octavo.cli.display import dim
from octavo.cli.flags import suggestion
from octavo.cli.lines import Lines
from octavo.cli.terminal import without_echo
from octavo.cli.wrapping import Wrapping
from octavo.errors import EngineDead, OctavoError

_COMMANDS = {
    "/help": "",
    "/clear": "forget what was said",
    "/system": "[TEXT]  set the system message and begin anew; alone: show it",
    "/set": "[NAME [VALUE]]  change a setting, such as /set temperature 0.3; without VALUE: back to the default",
    "/show": "the model, the settings, how much was said",
    "/retry": "answer the last question again",
    "/save": "FILE  write the conversation",
    "/load": "FILE  go on with one that was saved",
    "/model": "NAME  go on with another model",
    "/bye": "leave; so does Ctrl-D",
}
_KEYS = '''\
  """       begin or end a text of several lines; a \\ at the end of a line goes on too, and Alt-Enter
  Ctrl-C    stop the answer
'''
_SYNONYMS = {"/?": "/help", "/exit": "/bye", "/quit": "/bye"}


def talk(
    conversation: Conversation,
    runner: asyncio.Runner,
    prompt: str | None,
    *,
    verbose: bool = False,
    history: bool = True,
) -> int:
    """The exit status."""
    if prompt is not None:
        return _answer_once(conversation, runner, prompt, verbose)
    speaker = conversation.speaker
    _print_note(f"{speaker.name} {speaker.where}; /help lists commands, Ctrl-D leaves")
    if not speaker.chats:
        _print_note("this model has no chat template: it continues each text by itself")
    with Lines(history) as lines:
        while (text := lines.read()) is not None:
            if text.startswith("/"):
                if not _command(conversation, runner, text, verbose):
                    break
            elif text.strip():
                _answer(conversation, runner, text, verbose)
    return 0


def _answer_once(conversation: Conversation, runner: asyncio.Runner, prompt: str, verbose: bool) -> int:
    ended, written, shown = None, False, _writer()

    def write(text: str, *, thought: bool = False) -> None:
        nonlocal written
        written = True
        shown(text, thought=thought)

    try:
        with without_echo():
            ended = runner.run(conversation.ask(prompt, write))
    finally:
        if written or ended is not None:  # else an error is all there is to read
            _print("\n")
    for note in _notes(ended, verbose):
        _print_note(note)
    return 0


def _answer(conversation: Conversation, runner: asyncio.Runner, text: str, verbose: bool) -> None:
    notes = []
    chats = conversation.speaker.chats
    try:
        with without_echo():
            ended = runner.run(conversation.ask(text, _writer()))
        notes = _notes(ended, verbose)
        if chats and not conversation.speaker.chats:
            notes.append("this model has no chat template: it continues each text by itself")
    except KeyboardInterrupt:
        pass
    except EngineDead:
        raise
    except OctavoError as error:
        full = error.code == "context_length_exceeded" and conversation.messages
        notes = [f"{error.message}{'; /clear begins anew' if full else ''}"]
    _print("\n")
    for note in notes:
        _print_note(note)


def _notes(ended: Ended | None, verbose: bool) -> list[str]:
    if ended is None:
        return []
    notes = [] if ended.cut is None else [f"({ended.cut})"]
    if verbose:
        notes.append(f"({_timings(ended)})")
    return notes


def _timings(ended: Ended) -> str:
    parts = []
    if ended.prompt_tokens is not None:
        parts.append(f"prompt {ended.prompt_tokens} tokens")
    if ended.first_token_s is not None:
        parts.append(f"first token after {ended.first_token_s:.2f} s")
    if ended.output_tokens is not None:
        after = ended.seconds - (ended.first_token_s or 0.0)
        rate = f" at {(ended.output_tokens - 1) / after:.1f} tokens/s" if ended.output_tokens > 1 and after > 0 else ""
        parts.append(f"answer {ended.output_tokens} tokens{rate}")
    return ", ".join([*parts, f"{ended.seconds:.2f} s in all"])


def _command(conversation: Conversation, runner: asyncio.Runner, line: str, verbose: bool) -> bool:
    """Obey a line that begins with a slash; False: leave."""
    typed, _, rest = line.strip().partition(" ")
    name = _SYNONYMS.get(typed, typed)
    if name == "/bye":
        return False
    try:
        note = _obey(conversation, runner, name, rest.strip(), verbose)
    except KeyboardInterrupt:
        note = "stopped"
    except EngineDead:
        raise
    except OctavoError as error:
        note = error.message
    if note:
        _print_note(note)
    return True


def _obey(conversation: Conversation, runner: asyncio.Runner, name: str, rest: str, verbose: bool) -> str | None:
    """What a command says. Raises OctavoError."""
    match name:
        case "/help":
            return _help()
        case "/clear":
            conversation.clear()
            return "forgotten"
        case "/system":
            return _system(conversation, rest)
        case "/set":
            return _set(conversation, rest)
        case "/show":
            return _show(conversation)
        case "/retry":
            text = conversation.take_back()
            if text is None:
                return "nothing was asked yet"
            _answer(conversation, runner, text, verbose)
            return None
        case "/save" | "/load" | "/model" if not rest:
            return f"{name} needs {_COMMANDS[name].partition(' ')[0]}"
        case "/save":
            conversation.save(Path(rest))
            return f"written to {rest}"
        case "/load":
            conversation.load(Path(rest))
            return f"{len(conversation.messages)} messages from {rest}"
        case "/model":
            runner.run(conversation.change(rest))
            return f"{conversation.speaker.name} {conversation.speaker.where}"
    return f"there is no command {name}{suggestion(name, _COMMANDS)}\n{_help()}"


def _help() -> str:
    return "\n".join(f"  {name:<8}  {text}" for name, text in _COMMANDS.items() if text) + f"\n{_KEYS.rstrip()}"


def _system(conversation: Conversation, text: str) -> str:
    if not text:
        return conversation.system or "no system message"
    conversation.system = text
    conversation.clear()
    return "set; the conversation begins anew"


def _set(conversation: Conversation, rest: str) -> str:
    if not rest:
        others = [name for name in SETTINGS if name not in conversation.settings.sampling]
        return f"{_settings(conversation)}; /set knows also {', '.join(others)}"
    name, _, value = rest.replace("=", " ").partition(" ")
    conversation.set(name.replace("-", "_"), value.strip() or None)
    return _settings(conversation)


def _settings(conversation: Conversation) -> str:
    chosen = conversation.settings.sampling
    text = ", ".join(f"{name} {chosen[name]}" for name in SETTINGS if name in chosen)
    return text or "the model's own"


def _show(conversation: Conversation) -> str:
    speaker = conversation.speaker
    lines = [
        f"model     {speaker.name} {speaker.where}",
        f"system    {conversation.system or 'none'}",
        f"settings  {_settings(conversation)}",
        f"messages  {len(conversation.messages)}",
    ]
    if conversation.settings.structure:
        lines.append("answers   JSON")
    return "\n".join(lines)


def _writer() -> Write:
    """For the pieces of one answer."""
    wrapping = Wrapping(shutil.get_terminal_size().columns)

    def wrapped(text: str, stream: TextIO) -> str:
        """What is piped stays as it is, and so do lines of terminals that know no controls."""
        return wrapping.wrap(text) if stream.isatty() and os.environ.get("TERM") != "dumb" else text

    def write(text: str, *, thought: bool = False) -> None:
        if not thought:
            _print(wrapped(text, sys.stdout))
        elif sys.stderr.isatty():  # nobody pipes a thought
            sys.stderr.write(dim(wrapped(text, sys.stderr), sys.stderr))
            sys.stderr.flush()

    return write


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_note(text: str) -> None:
    sys.stderr.write(dim(text, sys.stderr) + "\n")
    sys.stderr.flush()
