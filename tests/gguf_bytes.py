"""GGUF byte by byte, for files that no writer would write."""

from __future__ import annotations

import struct

U32, STRING, ARRAY = 4, 8, 9


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, *items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + b"".join(items)


def tensor(name: str = "t", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def container(
    *parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF", data: int = 0
) -> bytes:
    header = magic + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)
    return header + bytes(-len(header) % 32) + bytes(data)
