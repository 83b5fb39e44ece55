"""`octavo run`: one answer, or a conversation, in the terminal.

A running server that has the model answers; else the model is loaded here, in a process of its own, so Ctrl-C stops an
answer and nothing else. What the model says goes to standard output and everything else to standard error, so answers
can be piped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import stat
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from octavo import env
from octavo.cli.client import DEFAULT_URL, Server
from octavo.cli.conversation import Conversation, Settings, Speaker
from octavo.cli.flags import Parser, add_engine_flags, engine_config, given, number
from octavo.cli.leaving import leave
from octavo.cli.measure import count_flag
from octavo.config import SECTIONS, EngineConfig, replace
from octavo.errors import CheckpointError, ConfigError
from octavo.request import SamplingParams

USAGE = "[MODEL] [PROMPT] [flags]"
DESCRIPTION = """\
Answer one prompt, from the command line or a pipe, or chat when there is none. Of both, what comes through the pipe
follows the prompt. A server on this machine that has the model is asked; else, or with --local or any flag of the
engine, the model is loaded here.

  octavo run "Why is the sky blue?"
  octavo run Qwen/Qwen2.5-0.5B-Instruct
  echo "Say hello in French." | octavo run
  cat report.txt | octavo run "Summarise this:"
  octavo run "Name three rivers" --json-schema rivers.json

The first word is a model if it is a file or folder, ends in .gguf, or has the form of a hub id such as org/name."""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("words", nargs="*", metavar="MODEL, PROMPT", help="a model, a prompt, or a model and a prompt")
    add_answer_flags(parser)


def add_answer_flags(parser: Parser) -> None:
    group = parser.add_argument_group("How it answers")
    group.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    group.add_argument("--temperature", type=number(float), metavar="X", help="0: always the likeliest token")
    group.add_argument("--top-p", type=number(float), metavar="X", help="draw from the likeliest tokens of this share")
    group.add_argument("--top-k", type=number(int), metavar="N", help="draw from the N likeliest tokens")
    count_flag(group, "--max-tokens", 1024, "tokens of the longest answer")  # a small model may never end by itself
    group.add_argument(
        "--seed",
        dest="sampling_seed",
        type=number(int),
        metavar="N",
        help="of the draws: equal seeds give equal answers",
    )
    group.add_argument("--format", choices=("json",), help="json: the answer is a JSON object")
    group.add_argument("--json-schema", metavar="FILE", help="the answer follows the JSON schema in this file")
    group.add_argument("--verbose", action="store_true", help="say how long each answer took")
    group.add_argument("--no-history", action="store_true", help="keep nothing of what is typed")
    where = parser.add_argument_group("Who answers")
    where.add_argument(
        "--url",
        metavar="URL",
        help="a server; a key for it is taken from the environment variable OCTAVO_API_KEY "
        f"(default: {DEFAULT_URL} if it has the model)",
    )
    where.add_argument("--local", action="store_true", help="load the model here, whatever server runs")
    add_engine_flags(parser, without=("seed",))


def run(options: argparse.Namespace) -> int:
    model, prompt = split_words(options.words)
    return converse(options, *_served_here(options, model, prompt))


def converse(options: argparse.Namespace, model: str | None, prompt: str | None) -> int:
    """Answer a prompt, or whoever sits at the terminal. Returns the exit status."""
    from octavo.cli.talk import talk
    from octavo.logs import configure_logging

    configure_logging("warning")
    config = engine_config(options, model)
    settings = Settings(sampling(options), structure(options.format, options.json_schema))
    prompt = read_prompt(model, prompt)

    async def find(name: str | None) -> Speaker:
        return await find_speaker(options, replace(config, model=replace(config.model, model=name)))

    with asyncio.Runner() as runner:
        try:
            speaker = runner.run(find(config.model.model))
        except KeyboardInterrupt:
            leave(130)
            raise
        conversation = Conversation(speaker, settings, options.system, find)
        try:
            return talk(conversation, runner, prompt, verbose=options.verbose, history=not options.no_history)
        finally:
            runner.run(conversation.close())


async def find_speaker(options: argparse.Namespace, config: EngineConfig) -> Speaker:
    """A server that was named or is near and has the model, else the model itself. Raises OctavoError."""
    from octavo.checkpoint.embedded import DEFAULT
    from octavo.cli.speakers import Local, Remote

    name = config.model.model
    if options.url is not None:
        return await Remote.find(Server(options.url, env.API_KEY), name)
    if may_be_near(options, name):
        near = await asyncio.to_thread(Remote.nearby, Server(DEFAULT_URL, env.API_KEY), name or DEFAULT.name)
        if near is not None:
            return near
    await _fetch(config)
    return await Local.start(config)


def may_be_near(options: argparse.Namespace, name: str | None) -> bool:
    """Whether a server's model could stand for the one meant here: flags of the engine say how it has to be loaded."""
    flags = given(options, SECTIONS).keys() - {"model"}
    return not options.local and not flags and not (name and Path(name).expanduser().exists())


def _served_here(options: argparse.Namespace, model: str | None, prompt: str | None) -> tuple[str | None, str | None]:
    """A single word that a server near calls one of its models is no prompt."""
    from octavo.cli.speakers import Remote

    one_word = model is None and prompt is not None and not any(character.isspace() for character in prompt)
    if prompt is None or not one_word or not may_be_near(options, None):
        return model, prompt
    near = Remote.nearby(Server(options.url or DEFAULT_URL, env.API_KEY), prompt)
    return (near.name, None) if near is not None else (model, prompt)


def structure(form: str | None, schema: str | None) -> dict[str, Any] | None:
    """What the flags say an answer has to look like, as StructuredOutputs' fields. Raises ConfigError."""
    if schema is None:
        return {"json_object": True} if form == "json" else None
    try:
        return {"json": json.loads(Path(schema).expanduser().read_text())}
    except OSError as error:
        raise ConfigError(f"--json-schema {schema}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--json-schema {schema}: is not JSON: {error}") from None


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of drawing. Raises InvalidRequest for what cannot be, before anything is fetched or loaded."""
    asked = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "seed": options.sampling_seed,
        "max_tokens": options.max_tokens,
    }
    chosen = {name: value for name, value in asked.items() if value is not None}
    SamplingParams(**chosen)
    return chosen


async def _fetch(config: EngineConfig) -> None:
    """With a bar, what would else be fetched while the model is being loaded. Errors are loading's to tell."""
    from octavo.checkpoint import embedded, hub, store
    from octavo.cli.display import Bar
    from octavo.cli.pull import stoppable

    model = config.model
    name = model.model or embedded.DEFAULT.name
    own = name.lower() in embedded.EMBEDDED
    cache = Path(model.download_dir) if model.download_dir else None
    if model.load_format == "dummy" or Path(name).expanduser().exists() or not (own or hub.parse(name)):
        return
    kept = store.find(name, cache)
    if env.OFFLINE or not sys.stderr.isatty() or (kept is not None and kept.complete):
        return
    stop = threading.Event()
    with Bar(name.rpartition("/")[2]) as bar, suppress(CheckpointError):
        try:
            report = stoppable(bar.report, stop)
            await asyncio.to_thread(store.pull, name, revision=model.revision, cache=cache, report=report)
        except asyncio.CancelledError:
            stop.set()
            raise


def read_prompt(model: str | None, prompt: str | None) -> str | None:
    """The prompt and then what is piped; None: whoever sits at the terminal will say. Raises ConfigError."""
    if sys.stdin is not None and sys.stdin.isatty():
        return prompt
    silent = sys.stdin is None or (prompt is not None and not brings_text(sys.stdin))
    piped = "" if silent else sys.stdin.read().rstrip("\r\n")  # the shell's line end is no part of the prompt
    texts = [text for text in (prompt, piped) if text and text.strip()]
    if not texts and prompt is None:
        read = "" if model is None else f"{model!r} was read as a model, and "
        raise ConfigError(f"{read}standard input is empty; give a prompt, or run in a terminal to chat")
    return "\n\n".join(texts) if texts else prompt


def brings_text(stdin: TextIO) -> bool:
    """Other inputs than pipes and files may be open for ever without anybody writing, such as a remote shell's."""
    kind = os.fstat(stdin.fileno()).st_mode
    return stat.S_ISFIFO(kind) or stat.S_ISREG(kind)


def split_words(words: Sequence[str]) -> tuple[str | None, str | None]:
    """Model and prompt, each of which may be left out."""
    if len(words) > 2:
        raise ConfigError("too many words; put the prompt in quotes")
    if len(words) == 2:
        return words[0], words[1]
    if not words:
        return None, None
    return (words[0], None) if looks_like_model(words[0]) else (None, words[0])


def looks_like_model(word: str) -> bool:
    from octavo.checkpoint.embedded import EMBEDDED

    if word.lower() in EMBEDDED or word.endswith(".gguf"):
        return True
    one_word = not any(character.isspace() for character in word)
    return one_word and (Path(word).expanduser().exists() or "/" in word)
