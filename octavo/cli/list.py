"""`octavo list`: the models on this machine."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from octavo.cli.display import ago, print_json, size, table
from octavo.cli.flags import Parser

USAGE = "[flags]"
DESCRIPTION = """\
List the models on this machine: those that the hub's library keeps, whoever fetched them, and octavo's own. Files and
folders elsewhere can be served by their path."""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument("--download-dir", metavar="DIR", help="look there; default: the hub's own cache")


def run(options: argparse.Namespace) -> int:
    from octavo.checkpoint import store

    models = store.stored(Path(options.download_dir) if options.download_dir else None)
    if options.json:
        print_json([_entry(model) for model in models])
    elif not models:
        print("no models yet; octavo pull fetches one, and octavo run without a model fetches a small one")
    else:
        now = time.time()
        rows = [
            (model.name, size(model.size), model.format, _quantization(model), ago(now - model.modified))
            for model in models
        ]
        print(table(("NAME", "SIZE", "FORMAT", "TYPE", "MODIFIED"), rows))
    return 0


def _entry(model: Any) -> dict[str, Any]:
    return {
        "name": model.name,
        "size": model.size,
        "modified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(model.modified)),
        "format": model.format,
        "quantization": _quantization(model),
        "complete": model.complete,
        "source": model.source,
        "digest": model.digest,
        "path": str(model.path),
    }


def _quantization(model: Any) -> str:
    from octavo.checkpoint.description import describe
    from octavo.errors import CheckpointError

    if not model.complete:
        return "incomplete"
    try:
        return describe(model.open()).quantization
    except CheckpointError:
        return "unreadable"
