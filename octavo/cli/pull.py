"""`octavo pull`: fetch a model before it is needed."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from octavo.cli.display import Bar, size
from octavo.cli.flags import Parser
from octavo.cli.leaving import leave

USAGE = "MODEL [flags]"
DESCRIPTION = """\
Fetch a model from the Hugging Face hub, or one of octavo's own, so that later starts need no network. What is here
already is not fetched again.

  octavo pull Qwen/Qwen2.5-0.5B-Instruct
  octavo pull Qwen/Qwen2.5-0.5B-Instruct-GGUF:qwen2.5-0.5b-instruct-q4_k_m.gguf
  octavo pull SmolLM2-135M-Instruct"""

_PATIENCE_S = 5.0  # for threads to clean up after Ctrl-C


class Stopped(Exception):
    """Ctrl-C, said to the threads of a download."""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, hub id:FILE.gguf, or an embedded model's name")
    parser.add_argument("--revision", metavar="REVISION", help="branch, tag or commit of a hub id")
    parser.add_argument("--download-dir", metavar="DIR", help="where it is kept; default: the hub's own cache")


def run(options: argparse.Namespace) -> int:
    from octavo.checkpoint import store

    cache = Path(options.download_dir) if options.download_dir else None
    with Bar(options.model.rpartition("/")[2]) as bar:
        stop = threading.Event()
        report = stoppable(bar.report, stop)

        def pull() -> Any:
            return store.pull(options.model, revision=options.revision, cache=cache, report=report)

        model = _interruptible(pull, stop)
    print(f"{model.name}: {model.format}, {size(model.size)}; try octavo run {model.name}")
    return 0


def stoppable(report: Callable[[tuple[int, int]], None], stop: threading.Event) -> Callable[[tuple[int, int]], None]:
    """The same, ending the download that calls it once `stop` is set."""

    def stopping(progress: tuple[int, int]) -> None:
        if stop.is_set():
            raise Stopped
        report(progress)

    return stopping


def _interruptible(work: Callable[[], Any], stop: threading.Event) -> Any:
    """The work's result. At Ctrl-C it is told to stop, and not waited for if it does not hear."""
    threads = ThreadPoolExecutor(1)
    result: Future[Any] | None = None
    try:
        result = threads.submit(work)
        return result.result()
    except KeyboardInterrupt:
        stop.set()
        print("stopped; files that are whole stay, and the same command fetches the rest", file=sys.stderr)
        with suppress(Exception, KeyboardInterrupt):  # whatever it ends with, nobody asks any more
            if result is not None:
                result.result(_PATIENCE_S)
        threads.shutdown(wait=False)
        leave(130)
        raise
    finally:
        threads.shutdown(wait=False)
