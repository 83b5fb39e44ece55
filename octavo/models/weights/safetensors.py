"""Weights from safetensors: one file, or shards and their index.

Headers are checked first; the library then maps the data. Knows nothing of model families.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.checkpoint import Checkpoint
from octavo.checkpoint.checkpoint import shown
from octavo.checkpoint.safetensors import read_header, weight_files
from octavo.errors import CheckpointError


def safetensors_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of every file, as stored. Raises CheckpointError naming the file and the tensor."""
    files, promised = weight_files(checkpoint.path)
    home: dict[str, Path] = {}
    for file in files:
        for name in read_header(file):
            if name in home:
                raise CheckpointError(f"{file}: tensor {shown(name)} is already in {home[name].name}")
            home[name] = file
    for name, shard in promised.items():
        if home.get(name, Path()).name != shard:
            raise CheckpointError(
                f"{checkpoint.path / shard}: the index promises tensor {shown(name)}, which is not there"
            )
    for file in files:
        yield from _read(file)


def _read(file: Path) -> Iterator[tuple[str, Tensor]]:
    name = "?"
    try:
        with safe_open(str(file), framework="pt") as opened:
            size = file.stat().st_size
            for name in opened.keys():  # noqa: SIM118  not a dict
                if file.stat().st_size < size:  # its missing pages cannot be read
                    raise CheckpointError(f"{file}: was cut short while tensor {shown(name)} was being read")
                yield name, opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: tensor {shown(name)} cannot be read: {error}") from None
