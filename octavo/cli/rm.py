"""`octavo rm`: delete models from this machine, only those that a download brought."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from octavo.cli.display import size
from octavo.cli.flags import Parser
from octavo.errors import ConfigError

USAGE = "MODEL... [flags]"
DESCRIPTION = """\
Delete models that octavo list shows, and what only they need. Files and folders elsewhere are never touched.

  octavo rm Qwen/Qwen2.5-0.5B-Instruct"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a name that octavo list shows")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--download-dir", metavar="DIR", help="look there; default: the hub's own cache")


def run(options: argparse.Namespace) -> int:
    from octavo.checkpoint import store

    cache = Path(options.download_dir) if options.download_dir else None
    models = [store.get(name, cache) for name in options.models]
    for model in models:
        if not options.yes and not _sure(f"delete {model.name} ({size(model.size)})?"):
            print(f"{model.name} stays", file=sys.stderr)
            continue
        print(f"{model.name} is deleted; {size(store.remove(model, cache))} are free again")
    return 0


def _sure(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("nobody is here to ask; -y deletes without asking")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
