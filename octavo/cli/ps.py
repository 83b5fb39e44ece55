"""`octavo ps`: what a running server has loaded."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

from octavo.cli.client import Server, add_server_flags
from octavo.cli.display import duration, print_json, size, table
from octavo.cli.flags import Parser

USAGE = "[flags]"
DESCRIPTION = """\
List the models of a running server that take memory, or all with --all. With keys it has to be an admin's.

  octavo ps
  OCTAVO_API_KEY=... octavo ps --url https://models.example.org"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="also those that are not loaded")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    add_server_flags(parser)


def run(options: argparse.Namespace) -> int:
    models = Server.of(options).get("/v1/admin/models")["data"]
    found = [
        (model, version)
        for model in models
        for version in model["versions"]
        if options.all or version["state"] not in ("declared", "failed")
    ]
    if options.json:
        print_json([{"model": model["name"], **version} for model, version in found])
    elif not found:
        print("no model is loaded; octavo ps --all lists those that a request would load" if models else "no models")
    else:
        now = time.time()
        heads = ("NAME", "VERSION", "STATE", "MEMORY", "REQUESTS", "WAITING", "UNTIL")
        print(table(heads, [_row(model, version, now) for model, version in found]))
        for model, version in found:
            if version.get("reason"):
                print(f"{model['name']} version {version['version']}: {version['reason']}")
    return 0


def _row(model: Mapping[str, Any], version: Mapping[str, Any], now: float) -> tuple[str, ...]:
    memory = version["memory"]
    return (
        model["name"],
        str(version["version"]),
        "asleep" if version.get("asleep") else version["state"],
        "?" if memory is None else size(memory),
        str(version["requests"]),
        str(version["waiting"]),
        _until(version, now),
    )


def _until(version: Mapping[str, Any], now: float) -> str:
    if version["state"] != "ready":
        return ""
    at = version["expires_at"]
    return "forever" if at is None else f"{duration(max(at - now, 0))} from now"
