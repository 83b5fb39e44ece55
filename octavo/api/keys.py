"""API keys: where they are kept, hashed, and whose they are.

A file of keys is TOML, a table `[[key]]` for each; the key itself is not in it, only its SHA-256, which is enough for
keys of 256 random bits. It is read again when it changes; a version that cannot be read, or has lost all its keys,
changes nothing.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta, Struct

from octavo.api.tenants import Clock, Role, Share, Tenant
from octavo.config import ServerConfig
from octavo.errors import ConfigError

logger = logging.getLogger("octavo.api")

_LOOK_SECONDS = 1.0  # between two looks at the file

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]  # may stand in a line of the log
PerMinute = Annotated[int, Meta(ge=1, le=10**12)]

_COUNT = "a whole number, at least 1"
_RULES = {
    "name": "1 to 64 letters, digits and . _ @ -, beginning with a letter or digit",
    "sha256": "64 hexadecimal digits in lower case, as `octavo keys new` writes them",
    "role": "user or admin",
    **dict.fromkeys(Share.__struct_fields__, _COUNT),
}


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One `[[key]]` of the file."""

    name: Name
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    role: Role = "user"
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    concurrent_requests: PerMinute | None = None

    @property
    def share(self) -> Share:
        return Share(**{name: getattr(self, name) for name in Share.__struct_fields__})


def read(path: Path) -> list[Entry]:
    """Raises ConfigError."""
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the keys in {path}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path} is no file of keys: it is nested too deeply") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is no file of keys: {error}") from None
    tables = content.pop("key", [])
    if content:
        raise ConfigError(f"{path} has {next(iter(content))!r} in it; a file of keys has only tables [[key]]")
    if not isinstance(tables, list):
        raise ConfigError(f"{path}: each key is a table [[key]], in double brackets")
    entries = [_entry(table, f"{path}, {_label(table, place)}") for place, table in enumerate(tables, 1)]
    for what in ("name", "sha256"):
        values = [getattr(entry, what) for entry in entries]
        if twice := [value for value in values if values.count(value) > 1]:
            raise ConfigError(f"{path}: two keys have the same {what}, {twice[0]}")
    return entries


def _label(table: Any, place: int) -> str:
    name = table.get("name") if isinstance(table, dict) else None
    return f"the key named {name[:64]!r}" if isinstance(name, str) else f"key {place}"


def _entry(fields: Any, where: str) -> Entry:
    """Raises ConfigError."""
    try:
        return msgspec.convert(fields, Entry)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_complaint(str(error))}") from None


def _complaint(message: str) -> str:
    """msgspec's complaint about an entry, in words."""
    if unknown := re.search("unknown field `(.*)`", message):
        close = difflib.get_close_matches(unknown[1], _RULES, n=1)
        return f"there is no field {unknown[1]!r}" + (f"; did you mean {close[0]}?" if close else "")
    field = re.search(r"(?:required field `|at `\$\.)(\w+)", message)
    return f"{field[1]} must be {_RULES[field[1]]}" if field else "it must be a table [[key]]"


def issue(path: Path, name: str, role: Role, share: Share) -> str:
    """A new key, whose hash is appended to the file. Raises ConfigError."""
    key = "octavo-" + secrets.token_urlsafe(32)
    fields = {"name": name, "sha256": _digest(key.encode()).hex(), "role": role, **msgspec.structs.asdict(share)}
    entry = _entry(fields, "there can be no such key")
    if path.exists() and name in {known.name for known in read(path)}:
        raise ConfigError(f"{path} has a key named {name} already; choose another name, or take that one out first")
    lines = [f"{field} = {msgspec.json.encode(value).decode()}" for field, value in msgspec.to_builtins(entry).items()]
    if role == "user":
        lines.insert(2, 'role = "user"')  # said although it is the default: a reader may not know that
    try:
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
            gap = "\n" if file.tell() else ""  # an editor may have left the last line without its end
            file.write(gap + "\n".join(["[[key]]", *lines, ""]))
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {error.strerror}") from None
    return key


class Keyring:
    """Finds the tenant of a key. Keys from flags are their operator's: administrators without limits."""

    def __init__(self, keys: Sequence[str] = (), path: Path | None = None, clock: Clock = time.monotonic) -> None:
        """Raises ConfigError for a file that cannot be read."""
        self._clock = clock
        self._path = path
        self._version: object = None
        self._of_flags = [(_digest(key.encode()), Tenant(f"api-key:{place}")) for place, key in enumerate(keys)]
        self._of_file: list[tuple[bytes, Tenant]] = []
        if path is not None:
            self._version = _version(path)
            self._take(read(path))
            if not self._of_file and not self._of_flags:
                logger.warning("%s holds no key: nobody can come in until `octavo keys new` has added one", path)

    @classmethod
    def of(cls, config: ServerConfig) -> Self | None:
        """None if this server asks nobody for a key. Raises ConfigError."""
        if not config.api_key and config.api_key_file is None:
            return None
        return cls(config.api_key, None if config.api_key_file is None else Path(config.api_key_file))

    def find(self, key: bytes) -> Tenant | None:
        """Takes the same time for every wrong key."""
        digest = _digest(key)
        found = None
        for known, tenant in (*self._of_flags, *self._of_file):
            if hmac.compare_digest(digest, known):
                found = tenant  # and on: leaving early would tell where
        return found

    def named(self, name: str) -> Tenant | None:
        """Whose key has this name."""
        return next((tenant for _, tenant in (*self._of_flags, *self._of_file) if tenant.name == name), None)

    async def watch(self) -> None:
        """Have the file read again within a second of a change, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Read the file again if it has changed."""
        if self._path is None or (version := _version(self._path)) == self._version:
            return
        self._version = version
        try:
            entries = read(self._path)
            if not entries and self._of_file:  # an editor that saves empties it first
                raise ConfigError(f"{self._path} holds no key any more")
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error.message)
            return
        self._take(entries)
        logger.info("keys were read again: %d", len(entries))

    def _take(self, entries: Sequence[Entry]) -> None:
        """Tenants who stay keep what they have used."""
        known = {tenant.name: tenant for _, tenant in self._of_file}
        self._of_file = []
        for entry in entries:
            tenant = known.get(entry.name) or Tenant(entry.name, entry.role, entry.share, self._clock)
            tenant.change(entry.role, entry.share)
            self._of_file.append((bytes.fromhex(entry.sha256), tenant))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _version(path: Path) -> object:
    """Differs when the file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
