"""What is fuzzed: a name, where inputs come from, and what must hold for every one of them.

Every input is bytes, so that any of them can be kept as a file. `kept` and `keep` are the corpus: inputs that once
failed or that reach an unusual place; they are tried before anything else, for ever.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

CORPUS = Path(__file__).parent / "corpus"
INTERESTING = (0, 1, 2, 3, 7, 31, 32, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
               2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip

Edit = Callable[[bytearray], None]


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    inputs: SearchStrategy[bytes]
    check: Callable[[bytes], None]
    examples: int = 300  # at a time

    def kept(self) -> list[Path]:
        return sorted((CORPUS / self.name).glob("*"))

    def keep(self, data: bytes) -> Path:
        folder = CORPUS / self.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / hashlib.sha256(data).hexdigest()[:16]
        path.write_bytes(data)
        return path


def mutated(seeds: Sequence[bytes]) -> SearchStrategy[bytes]:
    """Good inputs with a few bytes wrong."""
    return st.builds(_apply, st.sampled_from(seeds), st.lists(_edits(max(map(len, seeds))), min_size=1, max_size=6))


def _apply(seed: bytes, edits: Sequence[Edit]) -> bytes:
    data = bytearray(seed)
    for edit in edits:
        edit(data)
    return bytes(data)


def _edits(longest: int) -> SearchStrategy[Edit]:
    place = st.integers(0, min(longest, 4096)) | st.integers(0, longest)
    few = st.integers(1, 64)
    number = st.sampled_from(INTERESTING) | st.integers(0, 2**64 - 1)
    return st.one_of(
        st.builds(_set, place, st.binary(min_size=1, max_size=4)),
        st.builds(_set, place, number.map(lambda value: struct.pack("<Q", value))),
        st.builds(_set, place, number.map(lambda value: struct.pack("<I", value % 2**32))),
        st.builds(_insert, place, st.binary(max_size=16)),
        st.builds(_repeat, place, few, st.integers(1, 50)),
        st.builds(_drop, place, few),
        st.builds(_drop, place, st.just(longest)),
    )


def _set(place: int, value: bytes) -> Edit:
    def edit(data: bytearray) -> None:
        data[place : place + len(value)] = value

    return edit


def _insert(place: int, value: bytes) -> Edit:
    def edit(data: bytearray) -> None:
        data[place:place] = value

    return edit


def _repeat(place: int, count: int, times: int) -> Edit:
    def edit(data: bytearray) -> None:
        data[place:place] = data[place : place + count] * times

    return edit


def _drop(place: int, count: int) -> Edit:
    def edit(data: bytearray) -> None:
        del data[place : place + count]

    return edit
