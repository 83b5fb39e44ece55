"""Physical blocks of the KV cache: who owns how many, which are free, which may be reused first.

A block is a number in range(count). It is owned (references > 0) or free; a free block may still hold content worth
finding again (`keep`), and is then reused last, least recently freed first. Blocks that were never used cost no memory
yet: beyond `roomy` they are only begun when no other is free. Knows nothing of tokens or hashes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, takewhile

from octavo.snapshot import FREE, KEPT, MOST_CELLS, SHARED, USED, Blocks


class BlockPool:
    """Reference counts and the free list. `on_reuse(block)` is called before a kept block's content is given up."""

    def __init__(self, count: int, roomy: int | None = None, on_reuse: Callable[[int], None] = lambda _: None) -> None:
        assert count > 0
        self.count = count
        self._roomy = count if roomy is None else roomy
        self._used = 0  # blocks below this number have been used
        self.on_reuse = on_reuse
        self.references = [0] * count
        self._free: OrderedDict[int, None] = OrderedDict()  # of those used before; first out: leftmost
        self._kept: set[int] = set()

    @property
    def free(self) -> int:
        return len(self._free) + self.count - self._used

    def allocate(self) -> int:
        """Take the block that is cheapest to lose. The caller has checked that one is free."""
        cheapest = next(iter(self._free), None)
        if self._used < self.count and (cheapest is None or (cheapest in self._kept and self._used < self._roomy)):
            block = self._used
            self._used += 1
        else:
            block, _ = self._free.popitem(last=False)
            if block in self._kept:
                self._kept.remove(block)
                self.on_reuse(block)
        self.references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more owner; a kept free block is owned again."""
        if self.references[block] == 0:
            del self._free[block]
        self.references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One owner less for each, last block first: the beginning of a sequence is found again most often."""
        for block in reversed(blocks):
            assert self.references[block] > 0, f"block {block} released twice"
            self.references[block] -= 1
            if self.references[block] == 0:
                self._free[block] = None
                if block not in self._kept:
                    self._free.move_to_end(block, last=False)

    def is_shared(self, block: int) -> bool:
        return self.references[block] > 1

    def keep(self, block: int) -> None:
        """The content of an owned block is worth finding again once it is free."""
        assert self.references[block] > 0
        self._kept.add(block)

    def clear(self) -> None:
        """As if no block had ever been used. None may be owned."""
        assert self.free == self.count
        self._used = 0
        self._free.clear()
        self._kept.clear()

    def look(self, block_size: int) -> Blocks:
        """How things stand, for a picture: a matter of milliseconds, however many blocks there are."""
        free, alone = self.references.count(0), self.references.count(1)
        stride = -(-self.count // MOST_CELLS)
        return Blocks(
            block_size=block_size,
            total=self.count,
            used=self.count - free,
            shared=self.count - free - alone,
            kept=self._count_kept(),
            stride=stride,
            runs=[number for state, run in groupby(self._states(stride)) for number in (state, len(list(run)))],
        )

    def _count_kept(self) -> int:
        """Free blocks with content. Those without are first out, and few where content is kept at all."""
        if not self._kept:
            return 0
        return len(self._free) - sum(1 for _ in takewhile(lambda block: block not in self._kept, self._free))

    def _states(self, stride: int) -> Iterator[int]:
        for block in range(0, self.count, stride):
            owners = self.references[block]
            yield SHARED if owners > 1 else USED if owners else KEPT if block in self._kept else FREE
