"""A declaration that lies in files, read again when they change. One that is not right changes nothing.

Looking is enough: a second's delay costs nobody anything, and it works on every file system.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from octavo.config import RepositoryConfig
from octavo.errors import ConfigError
from octavo.repository.declared import Declared, read_file, read_folder

logger = logging.getLogger("octavo.repository")

LOOK_SECONDS = 1.0  # between two looks
_DEPTH = 3  # MODEL/VERSION/FILE
_MOST_ENTRIES = 100_000


class Watch:
    """`read` makes a declaration of what is at `path`, a file or a folder."""

    def __init__(self, path: Path, read: Callable[[], Declared]) -> None:
        """Raises ConfigError if there is none."""
        self._path = path
        self._read = read
        self._seen = self._taken = _state(path)
        self.declared = read()

    async def run(self, take: Callable[[Declared], None]) -> None:
        """Give away each new declaration, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if (declared := await asyncio.to_thread(self.look)) is not None:
                take(declared)

    def look(self) -> Declared | None:
        """The declaration, if there is another one. What is being written is left alone until it rests."""
        state = _state(self._path)
        resting, self._seen = state == self._seen, state
        if state == self._taken or not resting:
            return None
        self._taken = state
        try:
            self.declared = self._read()
        except ConfigError as error:
            logger.error("the models stay as they were: %s", error.message)
            return None
        logger.info("%s was read again", self._path)
        return self.declared


def watch(config: RepositoryConfig, defaults: Mapping[str, Any]) -> Watch:
    """The models of a file or folder. defaults: flags of engines that do not say otherwise. Raises ConfigError."""
    if config.config is not None:
        path = Path(config.config)
        return Watch(path, lambda: read_file(path, config, defaults))
    assert config.model_repository is not None
    folder = Path(config.model_repository)
    return Watch(folder, lambda: read_folder(folder, config, defaults))


def _state(path: Path) -> object:
    """Differs when the file does, or anything in the folder."""
    try:
        if not path.is_dir():
            return _stamp(path.stat())
        return tuple(_entries(path, _DEPTH))[:_MOST_ENTRIES]
    except OSError:
        return None


def _entries(folder: Path, depth: int) -> Iterator[object]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            try:
                stamp = _stamp(entry.stat())
            except OSError:  # a link that leads nowhere, say: the rest is looked at all the same
                stamp = None
            yield entry.path, stamp
            if depth > 1 and entry.is_dir():
                yield from _entries(Path(entry.path), depth - 1)


def _stamp(found: os.stat_result) -> object:
    return found.st_ino, found.st_mtime_ns, found.st_size
