"""`octavo run` and `octavo chat`: one answer, or a conversation, in the terminal.

The engine works in a process of its own, so Ctrl-C stops an answer and nothing else. What the model says goes to
standard output and everything else to standard error, so answers can be piped.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from octavo.cli.flags import Parser, add_engine_flags, engine_config, number
from octavo.cli.leaving import leave
from octavo.cli.measure import count_flag
from octavo.errors import ConfigError

USAGE = "[MODEL] [PROMPT] [flags]"
DESCRIPTION = """\
Answer one prompt, from the command line or a pipe, or chat when there is none. Of both, what comes through the pipe
follows the prompt.

  octavo run "Why is the sky blue?"
  octavo run Qwen/Qwen2.5-0.5B-Instruct
  echo "Say hello in French." | octavo run
  octavo run "Summarise this:" < report.txt

The first word is a model if it is a file or folder, ends in .gguf, or has the form of a hub id such as org/name."""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("words", nargs="*", metavar="MODEL, PROMPT", help="a model, a prompt, or a model and a prompt")
    group = parser.add_argument_group("How it answers")
    group.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    group.add_argument("--temperature", type=number(float), metavar="X", help="0: always the likeliest token")
    group.add_argument("--top-p", type=number(float), metavar="X", help="draw from the likeliest tokens of this share")
    group.add_argument("--top-k", type=number(int), metavar="N", help="draw from the N likeliest tokens")
    count_flag(group, "--max-tokens", 1024, "tokens of the longest answer")  # a small model may never end by itself
    group.add_argument("--seed", dest="sampling_seed", type=number(int), metavar="N", help="for answers that repeat")
    add_engine_flags(parser, without=("seed",))


def run(options: argparse.Namespace) -> int:
    import asyncio

    from octavo.cli.conversation import Conversation, talk
    from octavo.logs import configure_logging

    configure_logging("warning")
    model, prompt = split_words(options.words)
    config = engine_config(options, model)
    prompt = read_prompt(model, prompt)
    sampling = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "seed": options.sampling_seed,
    }
    given = {name: value for name, value in sampling.items() if value is not None}
    with asyncio.Runner() as runner:
        try:
            conversation = runner.run(Conversation.start(config, given, options.max_tokens, options.system))
        except KeyboardInterrupt:
            leave(130)
            raise
        try:
            return talk(conversation, runner, prompt)
        finally:
            runner.run(conversation.close())


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
