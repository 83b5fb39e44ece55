"""An executor whose next token depends on everything it reads through the block table it was given.

As a real worker does, it keeps its own block tables, specs and sampling histories between steps, because a plan brings
only what changed. A block that is aliased, stale, leaked or off by one changes the text.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from octavo.plan import DRAWN, Capacity, Row, RowResult, SequenceSpec, StepPlan, StepResult, fork_seed
from octavo.request import Logprobs
from simulation.oracle import DEADLY, candidates, draw, entry, logprob
from simulation.scenario import Setup

POISON = -1  # in every slot that was never written, or whose block was given back


class Killed(BaseException):
    """The core process dies in the middle of a step."""


class Submitted(Struct, frozen=True):
    """A step whose result is not told before it is asked for."""

    outcome: StepResult | Killed

    def result(self) -> StepResult:
        if isinstance(self.outcome, Killed):
            raise self.outcome
        return self.outcome


class Worker:
    """`watch` sees each plan before it is run."""

    def __init__(self, capacity: Capacity, watch: Callable[[StepPlan], None]) -> None:
        self.capacity = capacity
        self.content = [[POISON] * capacity.block_size for _ in range(capacity.num_blocks)]
        self.host = [[POISON] * capacity.block_size for _ in range(capacity.host_blocks)]
        self.tables: dict[int, list[int]] = {}
        self.specs: dict[int, SequenceSpec] = {}
        self.doomed = False  # dies in the next step
        self.killed: Killed | None = None  # in a step whose result nobody has asked for
        self.faulty_row: int | None = None  # of the next step: fails
        self._histories: dict[int, list[int]] = {}
        self._last: dict[int, tuple[int, int]] = {}  # by sequence: its last draw, if it drew one token, and where
        self._watch = watch

    def submit(self, plan: StepPlan) -> Submitted:
        if self.killed is None:
            try:
                return Submitted(self.run(plan))
            except Killed as killed:
                self.killed = killed
        return Submitted(self.killed)

    def run(self, plan: StepPlan) -> StepResult:
        self._watch(plan)
        if self.doomed:
            raise Killed
        for sequence_id in plan.removed:
            del self.tables[sequence_id], self.specs[sequence_id], self._histories[sequence_id]
            self._last.pop(sequence_id, None)
        for spec in plan.added:
            self.tables[spec.sequence_id] = []
            self.specs[spec.sequence_id] = spec
            self._histories[spec.sequence_id] = list(spec.token_ids)
        for block, host in plan.swaps_out:
            self.host[host] = self.content[block].copy()
        for block, host in plan.swaps_in:
            self.content[block] = self.host[host].copy()
        for source, destination in plan.copies:
            self.content[destination] = self.content[source].copy()
        plan = replace(plan, rows=list(map(self._fill_in, plan.rows)))
        results = list(map(self._compute, plan.rows, self._lay_out(plan)))
        self._fail(plan.rows, results)
        return StepResult(plan.step, [result for result in results if result is not None])

    def close(self) -> None:
        self.tables.clear()

    def poison(self, block: int) -> None:
        self.content[block] = [POISON] * self.capacity.block_size

    def poison_host(self, block: int) -> None:
        self.host[block] = [POISON] * self.capacity.block_size

    def _fill_in(self, row: Row) -> Row:
        """Put in what the scheduler has not seen."""
        if DRAWN not in row.token_ids:
            return row
        token, position = self._last[row.sequence_id]
        assert (row.token_ids, row.start) == ([DRAWN], position)
        return replace(row, token_ids=[token])

    def _lay_out(self, plan: StepPlan) -> list[list[int]]:
        """Update the block tables; those of the plan's rows."""
        tables = [self.tables[row.sequence_id] for row in plan.rows]
        for row, table in zip(plan.rows, tables, strict=True):
            table[row.first_block : row.first_block + len(row.block_ids)] = row.block_ids
        return tables

    def _compute(self, row: Row, table: list[int]) -> RowResult | None:
        size, content = self.capacity.block_size, self.content
        view: list[int] = []
        for block in table[: -(-row.start // size)]:
            view += content[block]
        del view[row.start :]
        for position, token in enumerate(row.token_ids, row.start):
            stored = content[table[position // size]][position % size] = entry(token, position, view)
            view.append(stored)
        spec = self.specs[row.sequence_id]
        if spec.token_ids[0] == DEADLY:
            raise Killed
        result = self._draw(row, spec, view) if row.draws else None
        if spec.params.prompt_logprobs is not None:
            result = _with_prompt_logprobs(row, spec, view, result)
        return result

    def _draw(self, row: Row, spec: SequenceSpec, view: list[int]) -> RowResult:
        history = self._histories[row.sequence_id]
        history += row.token_ids[max(len(history) - row.start, 0) :]
        if spec.candidates:
            best = candidates(view, history, spec.candidates)
            ids, values = [token for token, _ in best], [value for _, value in best]
            return RowResult(row.sequence_id, ids, [Logprobs(ids, values, list(range(1, len(ids) + 1)))])
        tokens = [draw(view, history, spec.prompt_length, fork_seed(spec.seed, index)) for index in range(row.draws)]
        if row.draws == 1:
            self._last[row.sequence_id] = tokens[0], row.start + len(row.token_ids)
        if spec.params.logprobs is None:
            return RowResult(row.sequence_id, tokens)
        return RowResult(row.sequence_id, tokens, [Logprobs([t], [logprob(view, t)], [1]) for t in tokens])

    def _fail(self, rows: list[Row], results: list[RowResult | None]) -> None:
        if self.faulty_row is not None and rows:
            place = self.faulty_row % len(rows)
            row, size = rows[place], self.capacity.block_size
            for position in range(row.start, row.start + len(row.token_ids)):
                self.content[self.tables[row.sequence_id][position // size]][position % size] = POISON
            results[place] = RowResult(rows[place].sequence_id, [], error="not a number")
            self.faulty_row = None


def _with_prompt_logprobs(row: Row, spec: SequenceSpec, view: list[int], drawn: RowResult | None) -> RowResult | None:
    predicted = spec.token_ids[row.start + 1 : min(row.start + len(row.token_ids) + 1, spec.prompt_length)]
    if not predicted:
        return drawn
    found = [
        Logprobs([token], [logprob(view[:position], token)], [1])
        for position, token in enumerate(predicted, row.start + 1)
    ]
    return replace(drawn or RowResult(row.sequence_id, []), prompt_logprobs=found)


def make_worker(setup: Setup, watch: Callable[[StepPlan], None]) -> Worker:
    if not setup.tensors:
        return Worker(setup.capacity, watch)
    from simulation.tensors import TensorWorker  # loads torch

    return TensorWorker(setup.capacity, watch)
