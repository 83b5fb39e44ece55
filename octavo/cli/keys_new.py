"""`octavo keys new`: a key for a server's `--api-key-file`, printed once and kept only as a hash."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from octavo.cli.flags import Parser, number

USAGE = "NAME --file FILE [flags]"
DESCRIPTION = """\
Make an API key, print it, and append its hash to a file for `octavo serve --api-key-file FILE`. The key cannot be shown
again. A running server takes the new key within a second; to take one back, delete its [[key]] table from the file.

  octavo keys new alice --file keys.toml --requests-per-minute 60 --tokens-per-minute 100000
  octavo keys new operator --file keys.toml --role admin"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="whose key it is: letters, digits and . _ @ -")
    parser.add_argument("--file", required=True, metavar="FILE", help="file of keys; made if there is none")
    parser.add_argument(
        "--role",
        choices=("user", "admin"),
        default="user",
        help="admins may also look after models (default: %(default)s)",
    )
    for flag, most in (
        ("--requests-per-minute", "requests a minute"),
        ("--tokens-per-minute", "tokens a minute, of prompts and answers together"),
        ("--concurrent-requests", "requests at a time"),
    ):
        parser.add_argument(flag, type=number(int), metavar="N", help=f"most {most}; default: no limit")


def run(options: argparse.Namespace) -> int:
    from octavo.api.keys import issue
    from octavo.api.tenants import Share

    share = Share(**{name: getattr(options, name) for name in Share.__struct_fields__})
    print(issue(Path(options.file), options.name, options.role, share))
    print(f"This is the only time that the key is shown; {options.file} has its hash alone.", file=sys.stderr)
    return 0
