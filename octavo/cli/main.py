"""`octavo VERB`: finds the verb's module and runs it. Nothing heavier than argparse is imported before that.

A verb is a module with `USAGE`, `DESCRIPTION`, `add_arguments(parser)` and `run(options) -> exit status`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from octavo import __version__
from octavo.cli.flags import Parser, suggestion
from octavo.errors import OctavoError

VERBS = {
    "serve": ("serve", "serve models over HTTP with OpenAI's, Anthropic's and Ollama's APIs"),
    "run": ("run", "answer one prompt"),
    "chat": ("chat", "talk to a model in the terminal"),
    "pull": ("pull", "fetch a model"),
    "list": ("list", "the models on this machine"),
    "show": ("show", "what a model is"),
    "rm": ("rm", "delete a model"),
    "ps": ("ps", "what a running server has loaded"),
    "stop": ("stop", "have a running server unload a model"),
    "plan": ("plan", "what a model would take of this machine, and give"),
    "keys new": ("keys_new", "make an API key for a server's file of keys"),
    "completion": ("completion", "a script that completes what is typed in a shell"),
    "bench latency": ("bench_latency", "how long one batch takes"),
    "bench throughput": ("bench_throughput", "how many tokens a second many prompts give"),
    "bench serve": ("bench_serve", "load a running server and measure what its clients see"),
}

_HEADER = f"""\
octavo {__version__}: an LLM serving engine

usage: octavo VERB [arguments]
"""
_FOOTER = """\
  octavo VERB --help says what a verb takes. Without a model, SmolLM2-135M-Instruct is used.
"""
#: By the first word of the verbs that are listed; else these.
_EXAMPLES = {
    "keys": "  octavo keys new alice --file keys.toml\n",
    "bench": "  octavo bench latency\n  octavo bench serve --base-url http://127.0.0.1:8080\n",
    "": '  octavo serve Qwen/Qwen2.5-0.5B-Instruct --port 9000\n  octavo run "Why is the sky blue?"\n',
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(VERBS))
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"octavo {__version__}")
        return 0
    verb = _verb(words)
    if verb is None:
        return _lost(words)
    return _run(verb, words[len(verb.split()) :])


def _verb(words: Sequence[str]) -> str | None:
    both = " ".join(words[:2])
    return words[0] if words[0] in VERBS else both if both in VERBS else None


def _lost(words: Sequence[str]) -> int:
    """Words that begin with no verb: the list of what they could begin, or what they may have meant."""
    family = {verb: entry for verb, entry in VERBS.items() if verb.startswith(words[0] + " ")}
    if family and words[1:2] in ([], ["-h"], ["--help"]):
        print(_overview(family))
        return 0
    typed = " ".join(words[:2]) if family else words[0]
    known = family or {verb.split()[0] for verb in VERBS}
    print(f"octavo: there is no verb {typed!r}{suggestion(typed, known)}\n(see octavo --help)", file=sys.stderr)
    return 2


def _run(verb: str, words: Sequence[str]) -> int:
    options = parser_of(verb).parse(words)
    try:
        status = _module(verb).run(options)
        assert isinstance(status, int)
        return status
    except OctavoError as error:
        print(f"octavo: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does the flush at exit find it
        return 141


def parser_of(verb: str) -> Parser:
    """What a verb takes."""
    module = _module(verb)
    parser = Parser(f"octavo {verb}", module.USAGE, module.DESCRIPTION)
    module.add_arguments(parser)
    return parser


def _module(verb: str) -> Any:
    return import_module(f"octavo.cli.{VERBS[verb][0]}")


def _overview(verbs: dict[str, tuple[str, str]]) -> str:
    width = max(map(len, verbs))
    lines = [f"  {verb:<{width}}  {help_text}" for verb, (_, help_text) in verbs.items()]
    families = {verb.split()[0] for verb in verbs}
    examples = _EXAMPLES[families.pop() if len(families) == 1 else ""]
    return "\n".join([_HEADER, *lines, "", _FOOTER, examples])
