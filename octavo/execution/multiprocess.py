"""One worker process per device, driven over a UNIX socket pair: a device's fault cannot touch the engine's memory.

The child is this module run as a program.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from msgspec import Struct

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.errors import EngineDead, OctavoError
from octavo.frames import FrameSocket
from octavo.plan import Pending, StepPlan, StepResult
from octavo.processes import Failed, Ready, Setup, end, enter_child, settle, setup, start

if TYPE_CHECKING:
    from octavo.execution.worker import Worker


class Step(Struct, frozen=True, tag=True):
    plan: StepPlan


class Sleep(Struct, frozen=True, tag=True):
    level: int


class Wake(Struct, frozen=True, tag=True):
    pass


class Done(Struct, frozen=True, tag=True):
    result: StepResult


class Obeyed(Struct, frozen=True, tag=True):
    """It sleeps, or is awake."""


ToWorker = Setup | Step | Sleep | Wake
FromWorker = Ready | Failed | Done | Obeyed


class MultiprocessExecutor:
    """Starts the worker process and waits until its model is loaded. Raises the worker's own start-up error."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self._process, connection = start(__name__)
        self._link: FrameSocket[FromWorker] = FrameSocket(connection, FromWorker)
        self._link.send(setup(config, checkpoint))
        first = self._receive()
        if not isinstance(first, Ready):
            self.close()
            raise first.exception() if isinstance(first, Failed) else EngineDead("the worker process is out of step")
        self.capacity = first.capacity

    def submit(self, plan: StepPlan) -> Pending:
        with suppress(ConnectionError):  # the worker is gone: receiving says so
            self._link.send(Step(plan))
        return self

    def result(self) -> StepResult:
        """Of the first step that was submitted and not asked for: the executor is what its steps are awaited by."""
        answer = self._receive()
        assert isinstance(answer, Done)
        return answer.result

    def sleep(self, level: int) -> None:
        self._tell(Sleep(level))

    def wake(self) -> None:
        self._tell(Wake())

    def _tell(self, message: Sleep | Wake) -> None:
        with suppress(ConnectionError):
            self._link.send(message)
        answer = self._receive()
        if isinstance(answer, Failed):
            raise answer.exception()
        assert isinstance(answer, Obeyed)

    def close(self) -> None:
        self._link.close()
        end(self._process)

    def _receive(self) -> FromWorker:
        try:
            return self._link.receive()
        except (EOFError, ConnectionError):
            self._link.close()
            raise EngineDead(f"the worker process ended unexpectedly (exit code {end(self._process)})") from None


def main(descriptor: int) -> None:
    """The worker process: set up, then a result per plan until the engine hangs up."""
    link: FrameSocket[ToWorker] = FrameSocket(enter_child(descriptor), ToWorker)
    with suppress(EOFError, ConnectionError):
        serve(link)


def serve(link: FrameSocket[ToWorker]) -> None:
    """Raises EOFError or ConnectionError when the engine is gone."""
    from octavo.execution.worker import Worker

    first = link.receive()
    assert isinstance(first, Setup)
    settle(first)
    try:
        worker = Worker(first.config, first.checkpoint)
    except OctavoError as error:
        link.send(Failed.of(error))
        return
    link.send(Ready(worker.capacity))
    if worker.capacity.steps_ahead:
        overlap(worker, link)
    while True:
        link.send(Done(_begin_step(worker, link).result()))


def _begin_step(worker: Worker, link: FrameSocket[ToWorker]) -> Pending:
    """The next step, when it comes; before it the worker may be sent to sleep and woken."""
    while not isinstance(message := link.receive(), Step):
        try:
            match message:
                case Sleep(level):
                    worker.sleep(level)
                case Wake():
                    worker.wake()
            link.send(Obeyed())
        except OctavoError as error:
            link.send(Failed.of(error))
    return worker.submit(message.plan)


def overlap(worker: Worker, link: FrameSocket[ToWorker]) -> NoReturn:
    """Take plans while the device computes; results are awaited by a thread. What goes wrong there ends the line."""
    begun: SimpleQueue[Pending | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(_answer, begun, link)
        try:
            while True:
                begun.put(_begin_step(worker, link))
        finally:
            begun.put(None)
            answering.result()


def _answer(begun: SimpleQueue[Pending | None], link: FrameSocket[ToWorker]) -> None:
    try:
        while (pending := begun.get()) is not None:
            link.send(Done(pending.result()))
    finally:
        link.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
