"""The one table of OCTAVO_* environment variables: typed, read once at import, bad values refused.

Everything else is a field of `octavo.config`; an environment variable exists only for what must be known before a
config is (where files live) or by people who do not start the process (packagers, test runs).
"""

from __future__ import annotations

import os
from pathlib import Path

from octavo.errors import ConfigError


def _flag(name: str) -> bool:
    value = os.environ.get(name, "0")
    if value not in ("0", "1"):
        raise ConfigError(f"{name} must be 0 or 1, not {value!r}")
    return value == "1"


def _folder(name: str, default: Path) -> Path:
    return Path(os.environ[name]).expanduser() if os.environ.get(name) else default


_CACHE_HOME = _folder("XDG_CACHE_HOME", Path.home() / ".cache")

#: Where octavo keeps what it downloads itself (the embedded default model).
CACHE_DIR: Path = _folder("OCTAVO_CACHE", _CACHE_HOME / "octavo")
#: 1: never touch the network; a model that is not cached is an error.
OFFLINE: bool = _flag("OCTAVO_OFFLINE")
#: Sent by the verbs that speak to a running server. Not a flag: other users of a machine see those.
API_KEY: str | None = os.environ.get("OCTAVO_API_KEY") or None
#: 1: ignore the compiled kernels and run on plain torch.
NO_NATIVE: bool = _flag("OCTAVO_NO_NATIVE")
