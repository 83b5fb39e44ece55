"""Turns a plan into tensors: token ids, positions, and where every token's keys and values live. On a CPU.

The block tables of all sequences stay here between steps; a plan brings only what changed.

Shape letters: T tokens of the step, R rows (sequences), B blocks of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from octavo.layers.attention.backend import AttentionMetadata
from octavo.plan import Row, StepPlan


@dataclass(frozen=True, slots=True)
class Batch:
    """One step, ready to run. `last_R` is the index in T of each row's last token."""

    token_ids_T: Tensor
    positions_T: Tensor
    metadata: AttentionMetadata
    last_R: np.ndarray


class BlockTables:
    """sequence id -> physical blocks, left to right; one row of a matrix per sequence that a worker knows."""

    def __init__(self, max_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._table = np.zeros((16, max_blocks), dtype=np.int32)
        self._slot: dict[int, int] = {}
        self._free = list(range(16))

    def apply(self, plan: StepPlan) -> None:
        """Forget, add and extend tables as the plan says."""
        for sequence_id in plan.removed:
            self._free.append(self._slot.pop(sequence_id))
        for spec in plan.added:
            if not self._free:
                self._free.extend(range(len(self._table), 2 * len(self._table)))
                self._table = np.concatenate([self._table, np.zeros_like(self._table)])
            self._slot[spec.sequence_id] = self._free.pop()
        for row in plan.rows:
            if row.block_ids:
                table = self._table[self._slot[row.sequence_id]]
                table[row.first_block : row.first_block + len(row.block_ids)] = row.block_ids

    def slot(self, row: Row) -> int:  # noqa: ARG002
        return 0

    def remember(self, tokens_D: Tensor, slot_D: Tensor) -> None:
        """Steps of a CPU are planned when all tokens are known."""

    def batch(self, rows: Sequence[Row], also: Sequence[np.ndarray] = ()) -> tuple[Batch, list[Tensor]]:
        """Tensors for the rows, in their order, and other arrays."""
        size = self._block_size
        counts_R = np.array([len(row.token_ids) for row in rows], dtype=np.int32)
        start_R = np.array([row.start for row in rows], dtype=np.int32)
        query_start = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(counts_R, out=query_start[1:])
        total = int(query_start[-1])
        token_ids_T = np.fromiter(chain.from_iterable(row.token_ids for row in rows), dtype=np.int64, count=total)
        row_T = np.repeat(np.arange(len(rows)), counts_R)
        positions_T = np.arange(total) - query_start[row_T] + start_R[row_T]
        lengths_R = start_R + counts_R
        tables_RB = self._table[[self._slot[row.sequence_id] for row in rows], : -(-int(lengths_R.max()) // size)]
        slots_T = tables_RB[row_T, positions_T // size].astype(np.int64) * size + positions_T % size
        batch = Batch(
            token_ids_T=torch.from_numpy(token_ids_T),
            positions_T=torch.from_numpy(positions_T),
            metadata=AttentionMetadata(
                query_start=torch.from_numpy(query_start),
                seq_lens=torch.from_numpy(lengths_R),
                block_tables=torch.from_numpy(np.ascontiguousarray(tables_RB)),
                slots=torch.from_numpy(slots_T),
            ),
            last_R=query_start[1:] - 1,
        )
        return batch, [torch.from_numpy(array) for array in also]
