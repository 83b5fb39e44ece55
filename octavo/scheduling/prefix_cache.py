"""Automatic prefix caching: finds the blocks that already hold the keys and values of a prompt's beginning.

A full block is known by a hash chain: SHA-256 of its parent's hash and its token ids; the chain's root covers a random
per-process seed, the adapter and the tenant's salt. Equal keys therefore mean equal tokens from position 0 on, under
the same adapter and tenant, and nobody outside can guess or supply a key.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import sha256

from octavo.scheduling.blocks import BlockPool


class PrefixCache:
    """Maps hash keys of full blocks to physical blocks. Not to be asked, nor told, anything when not `enabled`."""

    def __init__(self, pool: BlockPool, block_size: int, seed: bytes, enabled: bool = True) -> None:
        self._pool = pool
        self._block_size = block_size
        self._seed = seed
        self.enabled = enabled
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self.queries = 0  # tokens looked up
        self.hits = 0  # tokens found
        pool.on_reuse = self._forget

    def root(self, adapter: str | None, salt: str | None) -> bytes:
        """The parent of a sequence's first block."""
        digest = sha256(self._seed)
        for part in (adapter, salt):
            text = b"" if part is None else b"\x01" + part.encode("utf-8", "surrogatepass")
            digest.update(len(text).to_bytes(8, "little") + text)
        return digest.digest()

    def extend(self, keys: list[bytes], tokens: Sequence[int], upto: int) -> None:
        """Append to `keys` (root first) the keys of the full blocks within tokens[:upto]."""
        size = self._block_size
        for end in range(len(keys) * size, upto + 1, size):
            keys.append(sha256(keys[-1] + array("I", tokens[end - size : end]).tobytes()).digest())

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The longest run of cached blocks for the given keys (without root), left to right. Shares each one."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        for block in blocks:
            self._pool.share(block)
        return blocks

    def insert(self, key: bytes, block: int) -> None:
        """A block's content is computed and full. The first block of a key stays the one that is found."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key
            self._pool.keep(block)

    def clear(self) -> None:
        """Nothing is found any more."""
        self._block_of.clear()
        self._key_of.clear()

    def _forget(self, block: int) -> None:
        del self._block_of[self._key_of.pop(block)]
