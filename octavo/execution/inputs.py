"""A plan's rows as tensors on an accelerator: what `batch.py` is to a CPU.

Block tables, and the token that each sequence drew last, stay on the device; a step sends what is new in one copy, and
one kernel makes the rest of it. Everything lies at the same place in each step, as captured graphs want it.

Shape letters: T tokens of the step, R rows (sequences), P and Q rows and tokens
with padding, D draws, U new table entries, C columns, S slots, B blocks of a context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from octavo.execution.batch import Batch
from octavo.execution.device import Device
from octavo.execution.staging import Staging
from octavo.kernels import ops
from octavo.kernels.layout import BEGIN, COLUMNS, COUNT, FIRST_BLOCK, FRESH, NEW, SLOT, START, Layout, Order
from octavo.layers.attention.backend import AttentionMetadata
from octavo.plan import Row, StepPlan

_WIDTH = 16  # of a table: a multiple of this many blocks


class Inputs:
    """For steps of up to `max_rows` sequences and `max_tokens` tokens.

    padded: to how many rows a step of so many rows and tokens is filled up.
    """

    def __init__(
        self,
        device: Device,
        max_rows: int,
        max_tokens: int,
        max_blocks: int,
        block_size: int,
        padded: Callable[[int, int], int],
    ) -> None:
        self._block_size = block_size
        self._padded = padded
        self._slot: dict[int, int] = {}
        self._free = list(range(max_rows))
        width = -(-max_blocks // _WIDTH) * _WIDTH
        self._tables_SB = torch.zeros((max_rows, width), dtype=torch.int32, device=device.torch)
        self._nobody = max_rows  # whose token nobody asks for
        self._last_token_S = torch.zeros(max_rows + 1, dtype=torch.int64, device=device.torch)
        tokens = max(max_rows, max_tokens)
        self._layout = Layout(
            token_ids_Q=torch.zeros(tokens, dtype=torch.int64, device=device.torch),
            positions_Q=torch.zeros(tokens, dtype=torch.int64, device=device.torch),
            slots_Q=torch.zeros(tokens, dtype=torch.int64, device=device.torch),
            query_start_P1=torch.zeros(max_rows + 1, dtype=torch.int32, device=device.torch),
            seq_lens_P=torch.zeros(max_rows, dtype=torch.int32, device=device.torch),
            block_tables_PB=torch.zeros((max_rows, width), dtype=torch.int32, device=device.torch),
        )
        self._staging = Staging(device, 4 * (tokens + 2 * max_rows * COLUMNS))

    def apply(self, plan: StepPlan) -> None:
        """Forget and add sequences as the plan says; their tables come with their rows."""
        for sequence_id in plan.removed:
            self._free.append(self._slot.pop(sequence_id))
        for spec in plan.added:
            self._slot[spec.sequence_id] = self._free.pop()

    def slot(self, row: Row) -> int:
        """Where `remember` keeps the token that a row draws, if it draws one."""
        return self._slot[row.sequence_id] if row.draws == 1 else self._nobody

    def batch(self, rows: Sequence[Row], also: Sequence[np.ndarray] = ()) -> tuple[Batch, list[Tensor]]:
        """Tensors for the rows, in their order, then for rows of padding; and other arrays.

        All of it is valid for what is enqueued before the next call.
        """
        rows_RC = self._columns(rows)
        tokens_T = _flat([row.token_ids for row in rows])
        blocks_U = _flat([row.block_ids for row in rows])
        sent = self._staging.put([rows_RC, tokens_T, blocks_U, *also])
        padded = self._padded(len(rows), len(tokens_T))
        out = self._sized(padded, len(tokens_T) + padded - len(rows))
        ops.lay_out(Order(*sent[:3]), self._last_token_S, self._tables_SB, self._block_size, out)
        last_R = rows_RC[:, BEGIN] + rows_RC[:, COUNT] - 1
        return Batch(out.token_ids_Q, out.positions_Q, _metadata(rows_RC, padded, out), last_R), sent[3:]

    def remember(self, tokens_D: Tensor, slot_D: Tensor) -> None:
        """The tokens just drawn, for rows of the next step that do not know theirs."""
        self._last_token_S.index_copy_(0, slot_D, tokens_D)

    def _columns(self, rows: Sequence[Row]) -> np.ndarray:
        rows_RC = np.zeros((len(rows), COLUMNS), dtype=np.int32)
        rows_RC[:, SLOT] = [self._slot[row.sequence_id] for row in rows]
        rows_RC[:, START] = [row.start for row in rows]
        rows_RC[:, COUNT] = [len(row.token_ids) for row in rows]
        rows_RC[:, FIRST_BLOCK] = [row.first_block for row in rows]
        rows_RC[:, FRESH] = [len(row.block_ids) for row in rows]
        rows_RC[1:, BEGIN] = np.cumsum(rows_RC[:-1, COUNT])
        rows_RC[1:, NEW] = np.cumsum(rows_RC[:-1, FRESH])
        return rows_RC

    def _sized(self, rows: int, tokens: int) -> Layout:
        whole = self._layout
        return Layout(
            token_ids_Q=whole.token_ids_Q[:tokens],
            positions_Q=whole.positions_Q[:tokens],
            slots_Q=whole.slots_Q[:tokens],
            query_start_P1=whole.query_start_P1[: rows + 1],
            seq_lens_P=whole.seq_lens_P[:rows],
            block_tables_PB=whole.block_tables_PB[:rows],
        )


def _flat(lists: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=sum(map(len, lists)))


def _metadata(rows_RC: np.ndarray, padded: int, out: Layout) -> AttentionMetadata:
    rows = len(rows_RC)
    counts_R = rows_RC[:, COUNT]
    query_start = np.arange(padded + 1, dtype=np.int32)
    query_start[1 : rows + 1] = np.cumsum(counts_R)
    query_start[rows + 1 :] += query_start[rows] - rows
    lengths_P = np.zeros(padded, dtype=np.int32)
    lengths_P[:rows] = rows_RC[:, START] + counts_R
    return AttentionMetadata(
        query_start=out.query_start_P1,
        seq_lens=out.seq_lens_P,
        block_tables=out.block_tables_PB,
        slots=out.slots_Q,
        longest_query=int(counts_R.max()),
        longest_context=int(lengths_P.max()),
        query_start_host=torch.from_numpy(query_start),
        seq_lens_host=torch.from_numpy(lengths_P),
    )
