"""A worker process that takes steps ahead: plans come in while a device computes, results leave in order."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from octavo.execution.multiprocess import Done, Step, overlap
from octavo.frames import FrameSocket
from octavo.plan import StepPlan, StepResult

SECONDS = 60


class Device:
    """Finishes a step when the next one is submitted: one that is not fed meanwhile never finishes."""

    def __init__(self, faulty_submit=None, faulty_result=None) -> None:
        self.begun: list[int] = []
        self.fed = [threading.Event() for _ in range(9)]
        self.faulty_submit = faulty_submit
        self.faulty_result = faulty_result

    def submit(self, plan: StepPlan):
        if plan.step == self.faulty_submit:
            self.fed[plan.step].set()
            raise RuntimeError("a fault of ours")
        self.begun.append(plan.step)
        self.fed[plan.step].set()
        return Pending(self, plan.step)


class Pending:
    def __init__(self, device: Device, step: int) -> None:
        self.device, self.step = device, step

    def result(self) -> StepResult:
        assert self.device.fed[self.step + 1].wait(SECONDS)
        if self.step == self.device.faulty_result:
            raise RuntimeError("a fault of the device")
        return StepResult(self.step, [])


@pytest.fixture
def start():
    """Our end of the line, and how the worker's loop ends."""
    pool = ThreadPoolExecutor(1)
    lines = []

    def start(device: Device):
        ours, theirs = socket.socketpair()
        ours.settimeout(SECONDS)
        link: FrameSocket[Done] = FrameSocket(ours, Done)
        lines.append(link)
        return link, pool.submit(overlap, device, FrameSocket(theirs, Step))

    yield start
    for link in lines:
        link.close()
    pool.shutdown()


def order(link, *steps: int) -> None:
    for step in steps:
        link.send(Step(StepPlan(step, [], [], [], [])))


def test_a_plan_is_taken_while_the_step_before_is_computed(start):
    device = Device()
    link, loop = start(device)
    order(link, 0, 1)
    assert link.receive().result.step == 0
    order(link, 2)
    assert link.receive().result.step == 1
    order(link, 3)
    assert link.receive().result.step == 2
    assert device.begun == [0, 1, 2, 3]
    device.fed[4].set()
    link.close()
    with pytest.raises((EOFError, ConnectionError)):
        loop.result(SECONDS)


def test_a_fault_of_the_device_ends_the_line_and_is_told(start):
    link, loop = start(Device(faulty_result=1))
    order(link, 0, 1, 2)
    assert link.receive().result.step == 0
    with pytest.raises((EOFError, ConnectionError)):
        link.receive()
    with pytest.raises(RuntimeError, match="a fault of the device"):
        loop.result(SECONDS)


def test_a_fault_while_a_step_is_begun_lets_those_before_it_finish(start):
    link, loop = start(Device(faulty_submit=1))
    order(link, 0, 1)
    assert link.receive().result.step == 0
    with pytest.raises((EOFError, ConnectionError)):
        link.receive()
    with pytest.raises(RuntimeError, match="a fault of ours"):
        loop.result(SECONDS)
