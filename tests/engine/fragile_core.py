"""A core process whose executor counts instead of computing, until a token it is asked to compute tells it otherwise.

Run as a program, in place of `octavo.engine.core_process`.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from octavo.engine import core_process
from octavo.plan import Capacity, Computed, RowResult, StepPlan, StepResult

CRASH, RAISE, HANG, BUSY = 90, 91, 92, 93  # tokens, and what becomes of the core that computes them


class Fragile:
    """Each token drawn is its own position."""

    capacity = Capacity(num_blocks=64, block_size=4, max_model_len=128, vocab_size=128)

    def submit(self, plan: StepPlan) -> Computed:
        for row in plan.rows:
            for token in row.token_ids:
                self._compute(token)
        rows = [
            RowResult(row.sequence_id, [row.start + len(row.token_ids)] * row.draws) for row in plan.rows if row.draws
        ]
        return Computed(StepResult(plan.step, rows))

    def _compute(self, token: int) -> None:
        if token == CRASH:
            os.kill(os.getpid(), signal.SIGSEGV)
        if token == RAISE:
            raise RuntimeError("a fault of ours")
        while token == HANG:
            pass
        if token == BUSY:
            sys.stdout.write("busy\n")
            sys.stdout.flush()
            time.sleep(600)

    def close(self) -> None: ...


if __name__ == "__main__":
    core_process.make_executor = lambda _config, _checkpoint: Fragile()
    core_process.main(int(sys.argv[1]))
