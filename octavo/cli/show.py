"""`octavo show`: what a model on this machine is, from its headers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from octavo.cli.display import amount, print_json, size, table
from octavo.cli.flags import Parser

USAGE = "MODEL [flags]"
DESCRIPTION = """\
Show what a model on this machine is: architecture, sizes, how its tensors are stored, licence, sampling defaults.

  octavo show SmolLM2-135M-Instruct
  octavo show ./model.gguf --template"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name that octavo list shows, a folder or a .gguf file")
    parser.add_argument("--template", action="store_true", help="the chat template alone")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument("--download-dir", metavar="DIR", help="look there; default: the hub's own cache")


def run(options: argparse.Namespace) -> int:
    from octavo.checkpoint.description import describe
    from octavo.checkpoint.store import open_here
    from octavo.errors import ConfigError

    told = describe(open_here(options.model, Path(options.download_dir) if options.download_dir else None))
    if options.template and told.template is None:
        raise ConfigError(f"{told.name} has no chat template: it continues texts")
    if options.template:
        print(told.template)
    elif options.json:
        print_json(_entry(told))
    else:
        print(_page(told))
    return 0


def _page(told: Any) -> str:
    facts = {
        "model": told.name,
        "architecture": f"{told.architecture} ({told.family})",
        "parameters": amount(told.parameters),
        "context": f"{told.context:,} tokens" if told.context else "unknown",
        "layers, width": f"{told.layers or '?'}, {told.width or '?'}",
        "format": f"{told.format}, {told.quantization}",
        "chat template": "yes (--template shows it)" if told.template else "no: it continues texts",
        "licence": told.license or "not said",
        "sampling": ", ".join(f"{name} {value}" for name, value in told.sampling.items()) or "no defaults",
    }
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    kinds = [(kind.type, str(kind.tensors), amount(kind.parameters), size(kind.bytes)) for kind in told.kinds]
    files = [(path.name, size(count)) for path, count in told.files]
    if kinds:
        lines += ["", table(("TENSORS", "COUNT", "PARAMETERS", "SIZE"), kinds)]
    return "\n".join([*lines, "", table(("FILE", "SIZE"), files)])


def _entry(told: Any) -> dict[str, Any]:
    return {
        "name": told.name,
        "format": told.format,
        "architecture": told.architecture,
        "family": told.family,
        "parameters": told.parameters,
        "quantization": told.quantization,
        "tensors": [
            {"type": kind.type, "count": kind.tensors, "parameters": kind.parameters, "bytes": kind.bytes}
            for kind in told.kinds
        ],
        "context": told.context,
        "layers": told.layers,
        "width": told.width,
        "template": told.template,
        "license": told.license,
        "sampling": told.sampling,
        "size": told.size,
        "files": [{"path": str(path), "size": count} for path, count in told.files],
    }
