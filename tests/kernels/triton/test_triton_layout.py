"""A step's inputs against plain torch: rows of any length and age, new table entries, drawn tokens, padding."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_inputs import DEVICE

from octavo.kernels import reference
from octavo.kernels.layout import COLUMNS, Layout, Order
from octavo.kernels.triton import kernels

BLOCK, SLOTS, WIDTH = 4, 9, 1040


def orders(rows: list[tuple[int, int, int]], drawn: bool) -> Order:
    """Of (start, count, entries known to the device) each; slots from the last one down."""
    columns, tokens, blocks = [], [], []
    for place, (start, count, known) in enumerate(rows):
        entries = -(-(start + count) // BLOCK)
        known = min(known, entries)
        columns.append([SLOTS - 1 - place, start, len(tokens), count, known, len(blocks), entries - known, 0])
        tokens += [-1] if drawn and count == 1 else range(place * 1000, place * 1000 + count)
        blocks += range(5000 + 100 * place, 5000 + 100 * place + entries - known)
    values = (torch.tensor(columns), torch.tensor(tokens), torch.tensor(blocks))
    return Order(*(each.to(DEVICE, torch.int32) for each in values))


def layout(tokens: int, rows: int) -> Layout:
    wide, narrow = torch.int64, torch.int32
    shapes = (((tokens,), wide),) * 3 + (((rows + 1,), narrow), ((rows,), narrow), ((rows, WIDTH), narrow))
    return Layout(*(torch.full(shape, -7, dtype=dtype, device=DEVICE) for shape, dtype in shapes))


@settings(max_examples=40)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 30), st.one_of(st.just(1), st.integers(1, 12)), st.integers(0, 12)),
        min_size=1,
        max_size=SLOTS,
    ),
    padding=st.integers(0, 3),
    drawn=st.booleans(),
)
def test_rows_as_the_host_ordered_them(rows: list[tuple[int, int, int]], padding: int, drawn: bool) -> None:
    compare(orders(rows, drawn), len(rows) + padding)


def test_a_row_longer_than_a_program_takes_at_once() -> None:
    compare(orders([(0, 4100, 0), (4095, 1, 5), (0, 1025, 200)], drawn=True), 3)


def compare(order: Order, rows: int) -> None:
    assert order.rows_RC.size(1) == COLUMNS
    tokens = order.tokens_T.size(0) + rows - order.rows_RC.size(0)
    tables = torch.randint(0, 999, (SLOTS, WIDTH), dtype=torch.int32).to(DEVICE)
    last = torch.arange(SLOTS, device=DEVICE) + 70000
    results = []
    for implementation in (kernels, reference):
        mine, out = tables.clone(), layout(tokens, rows)
        implementation.lay_out(order, last, mine, BLOCK, out)
        results.append((mine, *out))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)
