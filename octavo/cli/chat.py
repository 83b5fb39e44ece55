"""`octavo chat`: a conversation in the terminal; `octavo run` without a prompt, whose only word is a model."""

from __future__ import annotations

import argparse

from octavo.cli.flags import Parser
from octavo.cli.run import add_answer_flags, converse

USAGE = "[MODEL] [flags]"
DESCRIPTION = """\
Talk to a model in the terminal; /help there lists commands. A server on this machine that has the model is asked;
else, or with --local or any flag of the engine, the model is loaded here.

  octavo chat
  octavo chat Qwen/Qwen2.5-0.5B-Instruct --system "Answer in rhymes." """


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="the same as --model")
    add_answer_flags(parser)


def run(options: argparse.Namespace) -> int:
    return converse(options, options.model_argument, None)
