"""The fake device sees what it is there to see."""

from __future__ import annotations

import pytest
import torch
from fake_device import FakeDevice, Misuse


def test_nothing_arrives_before_its_event() -> None:
    device = FakeDevice()
    x, host, event = torch.arange(4), device.pinned((4,), torch.int64), device.event()
    host.copy_(x, non_blocking=True)
    event.record()
    x.zero_()  # later on the device: no matter
    assert host.tolist() != [0, 1, 2, 3]
    assert not event.query()
    event.synchronize()
    assert event.query()
    assert host.tolist() == [0, 1, 2, 3]


def test_a_source_is_left_alone_until_it_is_read() -> None:
    device = FakeDevice()
    host, x, event = device.pinned((4,), torch.int32), torch.zeros(4, dtype=torch.int32), device.event()
    host.numpy()[:] = 7
    x.copy_(host, non_blocking=True)
    event.record()
    assert x.tolist() == [7] * 4
    host.numpy()[2] = 8
    with pytest.raises(Misuse, match="before the device had read it"):
        event.synchronize()


def test_no_copy_waits() -> None:
    device = FakeDevice()
    with pytest.raises(Misuse, match="waits"):
        torch.zeros(4).copy_(device.pinned((4,), torch.float32))


@torch.inference_mode()
def test_a_graph_is_what_was_captured() -> None:
    device, x, out = FakeDevice(), torch.ones(3), torch.zeros(3)
    factor = 2.0

    def run() -> None:
        y = (x * factor).view(3, 1)
        out.copy_(y[:, 0] + 1)

    graph = device.graph_pool().capture(run)
    factor, out[:] = 100.0, 0.0
    x[:] = torch.tensor([1.0, 2.0, 3.0])
    graph.replay()
    assert out.tolist() == [3.0, 5.0, 7.0]


@pytest.mark.parametrize("wait", [lambda x, _: x.sum().item(), lambda x, _: x.nonzero(), lambda _, d: d.synchronize()])
def test_no_capture_waits(wait) -> None:
    device, x = FakeDevice(), torch.ones(3)
    with pytest.raises(Misuse, match="captured"):
        device.graph_pool().capture(lambda: wait(x, device))
