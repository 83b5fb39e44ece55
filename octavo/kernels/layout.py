"""A step as a host orders it and as a device wants it, in arrays that kernels of any kind can read.

T tokens and R rows (sequences) of a step, P and Q the same with padding, U new entries of block tables, S slots (a row
of the resident tables each), B blocks of the longest context.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

#: Columns of a row of an `Order`: its slot, the position of its first token, where its tokens begin among all, how many
#: they are; its table's entries from `FIRST_BLOCK` on are replaced by `FRESH` new ones, which begin at `NEW`.
SLOT, START, BEGIN, COUNT, FIRST_BLOCK, NEW, FRESH = range(7)
COLUMNS = 8  # a power of two


class Order(NamedTuple):
    """What travels to the device in a step."""

    rows_RC: Tensor  # int32, as the columns above
    tokens_T: Tensor  # int32; negative: the last one drawn for this slot
    blocks_U: Tensor  # int32


class Layout(NamedTuple):
    """Where a step's inputs lie. Rows and tokens beyond the order's are padding: one token, of no slot, in each row."""

    token_ids_Q: Tensor  # int64; padding 0
    positions_Q: Tensor  # int64; padding 0
    slots_Q: Tensor  # int64: block · block_size + offset; padding -1
    query_start_P1: Tensor  # int32: where each row's tokens begin, and their end
    seq_lens_P: Tensor  # int32; padding 0
    block_tables_PB: Tensor  # int32, as many entries of a row as it needs; padding as it was
