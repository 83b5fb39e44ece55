"""A step's inputs from what the host sent, without it knowing tables or the tokens just drawn: a program a row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.layout import COLUMNS as _COLUMNS
from octavo.kernels.layout import Layout, Order

_CHUNK = 1024  # tokens or blocks at a time


@triton.jit
def _block(table_ptr, blocks_ptr, place, mask, first, new, fresh):
    """Table entries, new ones from where they were sent: nothing reads what a program has written itself."""
    sent = (place >= first) & (place < first + fresh)
    kept = tl.load(table_ptr + place, mask=mask & ~sent, other=0)
    return tl.where(sent, tl.load(blocks_ptr + new + place - first, mask=mask & sent, other=0), kept)


@triton.jit(do_not_specialize=["rows", "tokens"])
def _lay_out_kernel(
    rows_ptr,
    tokens_ptr,
    blocks_ptr,
    last_ptr,
    tables_ptr,
    ids_ptr,
    positions_ptr,
    slots_ptr,
    query_start_ptr,
    seq_lens_ptr,
    gathered_ptr,
    rows,
    tokens,
    tables_stride,
    gathered_stride,
    BLOCK_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0)
    if row == 0:
        tl.store(query_start_ptr, 0)
    if row >= rows:
        place = tokens + row - rows
        tl.store(ids_ptr + place, 0)
        tl.store(positions_ptr + place, 0)
        tl.store(slots_ptr + place, -1)
        tl.store(query_start_ptr + row + 1, place + 1)
        tl.store(seq_lens_ptr + row, 0)
    else:
        order_ptr = rows_ptr + row * COLUMNS
        slot = tl.load(order_ptr).to(tl.int64)
        start = tl.load(order_ptr + 1)
        begin = tl.load(order_ptr + 2)
        count = tl.load(order_ptr + 3)
        first = tl.load(order_ptr + 4)
        new = tl.load(order_ptr + 5)
        fresh = tl.load(order_ptr + 6)
        table_ptr = tables_ptr + slot * tables_stride
        length = start + count
        tl.store(query_start_ptr + row + 1, begin + count)
        tl.store(seq_lens_ptr + row, length)
        drawn = tl.load(last_ptr + slot)
        lane = tl.arange(0, CHUNK)
        for chunk in range(0, count, CHUNK):
            inside = chunk + lane < count
            token = tl.load(tokens_ptr + begin + chunk + lane, mask=inside, other=0).to(tl.int64)
            position = start + chunk + lane
            block = _block(table_ptr, blocks_ptr, position // BLOCK_SIZE, inside, first, new, fresh)
            tl.store(ids_ptr + begin + chunk + lane, tl.where(token < 0, drawn, token), mask=inside)
            tl.store(positions_ptr + begin + chunk + lane, position.to(tl.int64), mask=inside)
            at = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
            tl.store(slots_ptr + begin + chunk + lane, at, mask=inside)
        out_ptr = gathered_ptr + row.to(tl.int64) * gathered_stride
        entries = tl.maximum(tl.cdiv(length, BLOCK_SIZE), first + fresh)
        for chunk in range(0, entries, CHUNK):
            place = chunk + lane
            inside = place < entries
            block = _block(table_ptr, blocks_ptr, place, inside, first, new, fresh)
            tl.store(out_ptr + place, block, mask=inside)
            tl.store(table_ptr + place, block, mask=(place >= first) & (place < first + fresh))


def lay_out(order: Order, last_token_S: Tensor, tables_SB: Tensor, block_size: int, out: Layout) -> None:
    assert order.rows_RC.is_contiguous()
    _lay_out_kernel[(out.seq_lens_P.size(0),)](
        order.rows_RC,
        order.tokens_T,
        order.blocks_U,
        last_token_S,
        tables_SB,
        out.token_ids_Q,
        out.positions_Q,
        out.slots_Q,
        out.query_start_P1,
        out.seq_lens_P,
        out.block_tables_PB,
        order.rows_RC.size(0),
        order.tokens_T.size(0),
        tables_SB.stride(0),
        out.block_tables_PB.stride(0),
        BLOCK_SIZE=block_size,
        COLUMNS=_COLUMNS,
        CHUNK=_CHUNK,
        num_warps=4,
    )
