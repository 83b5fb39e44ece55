"""The simulated worker behind the real `BlockTables`: what it reads and writes went through the tensors of a batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from octavo.execution.batch import BlockTables
from octavo.plan import Capacity, StepPlan
from simulation.books import demand
from simulation.worker import Worker


class TensorWorker(Worker):
    def __init__(self, capacity: Capacity, watch: Callable[[StepPlan], None]) -> None:
        super().__init__(capacity, watch)
        longest = -(-capacity.max_model_len // capacity.block_size)
        self._real_tables = BlockTables(longest, capacity.block_size)

    def _lay_out(self, plan: StepPlan) -> list[list[int]]:
        """The tables that attention is given. Every token of the batch is where its row says."""
        super()._lay_out(plan)
        self._real_tables.apply(plan)
        rows, size = plan.rows, self.capacity.block_size
        batch, _ = self._real_tables.batch(rows)
        tables: list[list[int]] = batch.metadata.block_tables.tolist()
        spans = [range(row.start, row.start + len(row.token_ids)) for row in rows]
        slots = [
            table[position // size] * size + position % size
            for table, span in zip(tables, spans, strict=True)
            for position in span
        ]
        demand(batch.token_ids_T.tolist() == list(chain(*(row.token_ids for row in rows))), "row", "token ids")
        demand(batch.positions_T.tolist() == list(chain(*spans)), "row", "positions")
        demand(batch.metadata.seq_lens.tolist() == [span.stop for span in spans], "row", "lengths")
        demand(batch.metadata.slots.tolist() == slots, "row", "slots")
        demand(batch.metadata.query_start.diff().tolist() == list(map(len, spans)), "row", "beginnings of rows")
        return tables
