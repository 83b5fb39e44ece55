"""Executor: the one seam between the engine's loop and the devices. Here in process; `multiprocess.py` beside it."""

from __future__ import annotations

from typing import Protocol

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.plan import Capacity, Pending, StepPlan


class Executor(Protocol):
    capacity: Capacity

    def submit(self, plan: StepPlan) -> Pending:
        """Begin a step. Plans must arrive in order, and each is done as if it began when the one before was over.

        Results are asked for in the same order; of steps without, there are never more than capacity.steps_ahead + 1.
        """
        ...

    def sleep(self, level: int) -> None:
        """Give the devices' memory back until `wake`, as `Worker.sleep` does. No step may be under way."""

    def wake(self) -> None:
        """Raises ConfigError or CheckpointError if it cannot be, and then it sleeps on."""

    def close(self) -> None: ...


class InProcessExecutor:
    """One worker in the caller's process."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        from octavo.execution.worker import Worker

        self._worker = Worker(config, checkpoint)
        self.capacity = self._worker.capacity

    def submit(self, plan: StepPlan) -> Pending:
        return self._worker.submit(plan)

    def sleep(self, level: int) -> None:
        self._worker.sleep(level)

    def wake(self) -> None:
        self._worker.wake()

    def close(self) -> None:
        del self._worker


def make_executor(config: EngineConfig, checkpoint: Checkpoint) -> Executor:
    """The executor that the configuration names. Returns once the model is loaded."""
    if config.execution.distributed_executor_backend == "mp":
        from octavo.execution.multiprocess import MultiprocessExecutor

        return MultiprocessExecutor(config, checkpoint)
    return InProcessExecutor(config, checkpoint)
