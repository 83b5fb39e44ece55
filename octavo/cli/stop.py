"""`octavo stop`: have a running server unload a model."""

from __future__ import annotations

import argparse

from octavo.cli.client import Server, add_server_flags, in_path
from octavo.cli.flags import Parser, suggestion
from octavo.errors import ModelNotFound

USAGE = "MODEL [flags]"
DESCRIPTION = """\
Have a running server unload a model once its requests are finished; the next request for it loads it again. The server
itself goes on. With keys it has to be an admin's.

  octavo stop SmolLM2-135M-Instruct"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name that octavo ps shows")
    add_server_flags(parser)


def run(options: argparse.Namespace) -> int:
    server = Server.of(options)
    try:
        status = server.post(f"/v1/admin/models/{in_path(options.model)}/unload")
    except ModelNotFound as error:
        names = [model["name"] for model in server.get("/v1/admin/models")["data"]]
        raise ModelNotFound(f"{error.message.rstrip('.')}{suggestion(options.model, names)}") from None
    running = sum(version["requests"] for version in status["versions"] if version["state"] == "draining")
    after = (
        f" when its {running} request{'s' if running > 1 else ''} end{'' if running > 1 else 's'}" if running else ""
    )
    print(f"{status['name']} is unloaded{after}")
    return 0
