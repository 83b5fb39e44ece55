"""Swap space: what preempted sequences have computed waits in the machine's memory, so as not to be computed again.

A host block is a number in range(count), of one owner. Orders are carried out with the next plan: all that go out, in
order, then all that come in, then everything else. So blocks that were given up keep their content until then, and a
host block that is fetched from serves nobody else in the same plan.
"""

from __future__ import annotations

from octavo.plan import StepPlan
from octavo.scheduling.sequence import Sequence

_FEW = 64  # tokens; so few are computed again as quickly as they are fetched


class SwapSpace:
    def __init__(self, count: int, least: int = _FEW) -> None:
        self.count = count
        self.least = least
        self._free = list(reversed(range(count)))  # low numbers first: memory is taken as it is used
        self._leaving: list[tuple[int, int]] = []  # (device block, host block), not in a plan yet
        self._fetched: list[int] = []  # host blocks that the plan being made reads

    @property
    def free(self) -> int:
        return len(self._free)

    def keep(self, sequence: Sequence) -> None:
        """It is about to give up its blocks: their content goes out, if there is room and it is worth it."""
        assert not sequence.swapped
        worth = sequence.computed >= self.least and sequence.group.request.pooling is None
        if worth and len(sequence.blocks) <= len(self._free):
            sequence.swapped = [self._free.pop() for _ in sequence.blocks]
            sequence.swapped_tokens = sequence.computed
            self._leaving += zip(sequence.blocks, sequence.swapped, strict=True)

    def fetch(self, plan: StepPlan, sequence: Sequence, found: int) -> None:
        """It has blocks again, the first `found` of them with content: that of the others comes in."""
        plan.swaps_in.extend(zip(sequence.blocks[found:], sequence.swapped[found:], strict=False))
        self._fetched += sequence.swapped
        sequence.swapped, sequence.swapped_tokens = [], 0

    def drop(self, sequence: Sequence) -> None:
        """It will not come back."""
        self._free += sequence.swapped
        sequence.swapped, sequence.swapped_tokens = [], 0

    def order(self, plan: StepPlan) -> None:
        """The plan is complete."""
        plan.swaps_out.extend(self._leaving)
        self._leaving.clear()
        self._free += self._fetched
        self._fetched.clear()
