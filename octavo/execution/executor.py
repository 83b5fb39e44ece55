"""Executor: the one seam between the engine's loop and the devices. Here in process; `multiprocess.py` beside it."""

from __future__ import annotations

from typing import Protocol

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.plan import Capacity, StepPlan, StepResult


class Executor(Protocol):
    capacity: Capacity

    def run(self, plan: StepPlan) -> StepResult:
        """Execute one step. Plans must arrive in order; everything a plan says is done before this returns."""
        ...

    def close(self) -> None: ...


class InProcessExecutor:
    """One worker in the caller's process."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        from octavo.execution.worker import Worker

        self._worker = Worker(config, checkpoint)
        self.capacity = self._worker.capacity

    def run(self, plan: StepPlan) -> StepResult:
        return self._worker.run(plan)

    def close(self) -> None:
        del self._worker


def make_executor(config: EngineConfig, checkpoint: Checkpoint) -> Executor:
    """The executor that the configuration names. Returns once the model is loaded."""
    if config.execution.distributed_executor_backend == "mp":
        from octavo.execution.multiprocess import MultiprocessExecutor

        return MultiprocessExecutor(config, checkpoint)
    return InProcessExecutor(config, checkpoint)
