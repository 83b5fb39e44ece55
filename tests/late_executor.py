"""What a worker that takes steps ahead owes the engine, in its plainest form: one of a CPU that is asked late.

A plan is computed when its result is asked for, after later ones were submitted: the latest moment there is (the
simulation's worker computes at the earliest). Drawn tokens that the scheduler had not seen are put in here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from msgspec.structs import replace

from octavo.execution.executor import Executor
from octavo.plan import DRAWN, Pending, Row, StepPlan, StepResult


class LateExecutor:
    """`ahead`: rows so far of tokens that the scheduler had not seen."""

    def __init__(self, inner: Executor, steps_ahead: int) -> None:
        self.capacity = replace(inner.capacity, steps_ahead=steps_ahead)
        self.ahead = 0
        self._inner = inner
        self._submitted: deque[StepPlan] = deque()
        self._drawn: dict[int, int] = {}  # by sequence: its last token

    def submit(self, plan: StepPlan) -> Pending:
        self._submitted.append(plan)
        assert len(self._submitted) <= self.capacity.steps_ahead + 1
        return _Late(self, plan.step)

    def close(self) -> None:
        self._inner.close()

    def compute(self) -> StepResult:
        plan = self._submitted.popleft()
        for sequence_id in plan.removed:
            self._drawn.pop(sequence_id, None)
        result = self._inner.submit(replace(plan, rows=list(map(self._fill_in, plan.rows)))).result()
        self._drawn |= {row.sequence_id: row.token_ids[0] for row in result.rows if len(row.token_ids) == 1}
        return result

    def _fill_in(self, row: Row) -> Row:
        if DRAWN not in row.token_ids:
            return row
        assert row.token_ids == [DRAWN]
        self.ahead += 1
        return replace(row, token_ids=[self._drawn.get(row.sequence_id, 0)])  # any will do where the draw failed


@dataclass(frozen=True)
class _Late:
    executor: LateExecutor
    step: int

    def result(self) -> StepResult:
        result = self.executor.compute()
        assert result.step == self.step, "results are asked for in order"
        return result
