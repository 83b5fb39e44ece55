"""`octavo serve`: flags to configs, then `octavo.api.serving`. Port and TLS files are tried before anything slow."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from octavo.cli.flags import Parser, add_engine_flags, add_flags, engine_config, given
from octavo.cli.leaving import leave
from octavo.config import SECTIONS, RepositoryConfig, ServerConfig
from octavo.errors import ConfigError

USAGE = "[MODEL] [flags]"
DESCRIPTION = """\
Serve models over HTTP with OpenAI's, Anthropic's and Ollama's APIs, and a page at /.

  octavo serve                                  the embedded SmolLM2-135M-Instruct
  octavo serve Qwen/Qwen2.5-0.5B-Instruct       from the Hugging Face hub
  octavo serve ./model.gguf --api-key-file keys.toml
                                                a local file, for those with a key from `octavo keys new`
  octavo serve --config octavo.toml             many models and versions; see docs/models.md"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="the same as --model")
    add_flags(parser, (ServerConfig, RepositoryConfig))
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    import uvloop

    from octavo.api.server import bind, bind_admin
    from octavo.api.serving import serve
    from octavo.logs import configure_logging
    from octavo.repository.declared import of_flags
    from octavo.repository.watching import watch

    server_config = ServerConfig(**given(options, (ServerConfig,)))
    if server_config.api_key:
        _refuse_a_second_key(options.model_argument)
    configure_logging(server_config.log_level, server_config.log_format)
    many = _many(options)
    source = of_flags(engine_config(options, options.model_argument)) if many is None else watch(*many)
    listener, admin = bind(server_config), bind_admin(server_config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(serve(source, server_config, listener, admin))
        leave(status)
        return status


def _refuse_a_second_key(word: str | None) -> None:
    """`--api-key A B` makes a model of B, and errors about models name them. Raises ConfigError, which does not."""
    from octavo.checkpoint import embedded, hub

    if word is None or word.lower() in embedded.EMBEDDED or Path(word).expanduser().exists():
        return
    hub_id = hub.parse(word)
    if hub_id is None or "/" not in hub_id.repo:
        raise ConfigError(
            "the word in the place of MODEL is no model that octavo knows (not shown: it may be a key); for more keys "
            "give --api-key again, and a model of the hub can be named with --model"
        )


def _many(options: argparse.Namespace) -> tuple[RepositoryConfig, dict[str, Any]] | None:
    """Where several models are declared, and flags for all of their engines; None: one model. Raises ConfigError."""
    chosen = given(options, (RepositoryConfig,))
    config = RepositoryConfig(**chosen)
    if config.config is None and config.model_repository is None:
        if chosen:
            flag = min(chosen).replace("_", "-")
            raise ConfigError(f"--{flag} is for --config or --model-repository; it says nothing of a single model")
        return None
    defaults = given(options, SECTIONS)
    if options.model_argument is not None or defaults.keys() & {"model", "served_model_name"}:
        raise ConfigError("--config and --model-repository say which models to serve; leave MODEL and its name out")
    return config, defaults
