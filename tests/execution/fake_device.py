"""An accelerator on tensors of the CPU, that catches what goes unseen on a quick machine and wrong on a slow one.

Work is done when it is enqueued, except that nothing arrives in pinned memory, and nobody is done reading there, before
the host has waited for an event recorded later. A graph holds the operations that were captured, on the tensors that
they had: replaying runs them again, and no Python of whoever captured. Raises Misuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

_POISON = 0xA5  # in pinned memory that nothing has arrived in


class Misuse(AssertionError):
    pass


class Pinned(Tensor):
    """Host memory that copies reach behind the host's back."""

    device_of: FakeDevice

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.copy_:
            target, source, waits = args[0], args[1], not (args[2:] or kwargs.get("non_blocking"))
            pinned = target if isinstance(target, Pinned) else source
            if waits:
                raise Misuse("a copy that the host waits for")
            return pinned.device_of._copy(target, source)
        return super().__torch_function__(func, types, args, kwargs)


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._until = 0

    def record(self) -> None:
        self._device._refuse("an event recorded")
        self._until = self._device._enqueued

    def query(self) -> bool:
        return self._device._done >= self._until

    def synchronize(self) -> None:
        self._device._refuse("waiting for an event")
        self._device._finish(self._until)


class FakeGraph:
    """The operations of one capture, in their order, and what they made: nothing in it outlives a replay."""

    def __init__(self, device: FakeDevice) -> None:
        self.operations: list[Callable[[], None]] = []
        self.made: list[Tensor] = []
        self._device = device

    def replay(self) -> None:
        self._device._refuse("a graph replayed")
        self._device.replays += 1
        for operation in self.operations:
            operation()
        self.forget()

    def forget(self) -> None:
        for each in self.made:
            each.fill_(torch.nan if each.is_floating_point() else -1)


class FakePool:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._graphs: WeakSet[FakeGraph] | None = None

    def capture(self, run: Callable[[], None]) -> FakeGraph:
        if self._graphs is not None and not self._graphs:
            raise Misuse("a capture into a pool whose graphs are gone")
        graph = self._device._capture(run)
        self._graphs = self._graphs or WeakSet()
        self._graphs.add(graph)
        return graph


class FakeDevice:
    torch = torch.device("cpu")
    uuid = "GPU-none"
    multiprocessors = 4
    fp8 = False

    def __init__(self, total: int = 2**34) -> None:
        self.graphs: WeakSet[FakeGraph] = WeakSet()  # a MiB each while somebody holds them
        self.captures = self.replays = 0
        self._total = total
        self._enqueued = self._done = 0  # copies to and from pinned memory
        self._waiting: list[Callable[[], None]] = []
        self._capturing = False
        self._type = type("Pinned", (Pinned,), {"device_of": self})

    def use(self) -> None: ...

    def pinned(self, shape: tuple[int, ...], type_: torch.dtype) -> Tensor:
        self._refuse("pinned memory made")
        memory = torch.empty(shape, dtype=type_)
        memory.view(-1).view(torch.uint8).fill_(_POISON)
        return memory.as_subclass(self._type)

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def graph_pool(self) -> FakePool:
        return FakePool(self)

    def _capture(self, run: Callable[[], None]) -> FakeGraph:
        self._refuse("a capture")
        graph = FakeGraph(self)
        self._capturing = True
        try:
            with _recorded_launches(graph.operations), _Recording(graph):
                run()
            graph.forget()
        finally:
            self._capturing = False
        self.graphs.add(graph)
        self.captures += 1
        return graph

    def memory(self) -> tuple[int, int]:
        return self._total - 2**20 * len(self.graphs), self._total

    def peak(self) -> int:
        return 0

    def reset_peak(self) -> None:
        pass

    def empty_cache(self) -> None:
        self._refuse("memory given back")

    def synchronize(self) -> None:
        self._refuse("waiting for the device")
        self._finish(self._enqueued)

    def _refuse(self, what: str) -> None:
        if self._capturing:
            raise Misuse(f"{what} while a graph is captured")

    def _copy(self, target: Tensor, source: Tensor) -> Tensor:
        self._refuse("a copy to or from the host")
        plain = source.as_subclass(Tensor).clone()
        if isinstance(target, Pinned):
            self._later(lambda: target.as_subclass(Tensor).copy_(plain))
        else:
            target.copy_(plain)
            self._later(lambda: _unchanged(plain, source.as_subclass(Tensor)))
        return target

    def _later(self, action: Callable[[], object]) -> None:
        self._waiting.append(torch.inference_mode()(action))
        self._enqueued += 1

    def _finish(self, until: int) -> None:
        while self._done < until:
            self._waiting.pop(0)()
            self._done += 1


def _unchanged(copied: Tensor, source: Tensor) -> None:
    if not torch.equal(copied.view(-1).view(torch.uint8), source.view(-1).view(torch.uint8)):
        raise Misuse("pinned memory was written before the device had read it")


class _Recording(TorchDispatchMode):
    """Runs operations and writes them down. What one has made stays where it is: a replay fills it again."""

    #: These make the host wait for a value.
    WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select")

    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in self.WAITS:
            raise Misuse(f"{func} waits for a value while a graph is captured")
        made = func(*args, **kwargs)
        inputs = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        outputs = [each for each in tree_flatten(made)[0] if isinstance(each, Tensor)]
        known = {each.untyped_storage().data_ptr() for each in inputs}
        fresh = [each for each in outputs if each.untyped_storage().data_ptr() not in known]
        self._graph.made += fresh
        if fresh or func._schema.is_mutable:
            self._graph.operations.append(lambda: _again(func, args, kwargs, outputs, fresh))
        return made


def _again(func: Any, args: Any, kwargs: Any, outputs: list[Tensor], fresh: list[Tensor]) -> None:
    made = [each for each in tree_flatten(func(*args, **kwargs))[0] if isinstance(each, Tensor)]
    for old, new in zip(outputs, made, strict=True):
        if any(old is each for each in fresh):
            old.copy_(new)


@contextmanager
def _recorded_launches(operations: list[Callable[[], None]]) -> Iterator[None]:
    """Launches of interpreted kernels, too."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    launch = interpreter.GridExecutor.__call__

    def record(self: Any, *args: Any, **kwargs: Any) -> None:
        def run() -> None:
            with _disable_current_modes():
                launch(self, *args, **kwargs)

        operations.append(run)
        run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", record)
        yield
