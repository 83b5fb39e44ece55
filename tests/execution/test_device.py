"""The thin calls to torch.cuda, with a GPU that is only talked about; what is said of one that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo.errors import ConfigError
from octavo.execution import device
from octavo.execution.device import CudaDevice, choose_device, open_device

H100 = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, uuid="a-b-c")
V100 = SimpleNamespace(name="Tesla V100", major=7, minor=0, multi_processor_count=80, uuid="d")
L4 = SimpleNamespace(name="NVIDIA L4", major=8, minor=9, multi_processor_count=58, uuid="e")
A100 = SimpleNamespace(name="NVIDIA A100", major=8, minor=0, multi_processor_count=108, uuid="f")
MI300 = SimpleNamespace(name="AMD Instinct MI300X", major=9, minor=4, multi_processor_count=304, uuid="g")
MI210 = SimpleNamespace(name="AMD Instinct MI210", major=9, minor=0, multi_processor_count=104, uuid="h")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What torch.cuda is asked, with an H100 there."""
    asked: list[tuple[Any, ...]] = []

    def note(name: str, answer: Any = None) -> Any:
        return lambda *arguments, **keywords: (asked.append((name, *arguments, *keywords.items())), answer)[1]

    ones = torch.ones

    def tensor(*arguments: Any, device: torch.device | None = None, **keywords: Any) -> Any:
        asked.append(("ones", device))
        return ones(*arguments, **keywords)

    monkeypatch.setattr(device, "find_spec", lambda name: name)
    monkeypatch.setattr(torch, "ones", tensor)
    there(monkeypatch, H100)
    for name, answer in {
        "set_device": None,
        "mem_get_info": (3, 4),
        "max_memory_allocated": 5,
        "reset_peak_memory_stats": None,
        "empty_cache": None,
        "synchronize": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, note(name, answer))
    monkeypatch.setattr(torch._C, "_host_emptyCache", note("host_empty_cache"), raising=False)
    return asked


def there(monkeypatch: pytest.MonkeyPatch, properties: SimpleNamespace, hip: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "hip", hip)


def test_what_is_asked_of_torch(calls: list[tuple[Any, ...]]) -> None:
    gpu = torch.device("cuda:1")
    opened = CudaDevice(gpu)
    assert calls[:2] == [("set_device", gpu), ("ones", gpu)]
    assert (opened.torch, opened.multiprocessors, opened.fp8, opened.uuid) == (gpu, 132, True, "GPU-a-b-c")
    calls.clear()
    assert opened.memory() == (3, 4)
    assert opened.peak() == 5
    opened.reset_peak()
    opened.empty_cache()
    opened.synchronize()
    assert calls == [
        ("mem_get_info", gpu),
        ("max_memory_allocated", gpu),
        ("reset_peak_memory_stats", gpu),
        ("empty_cache",),
        ("host_empty_cache",),
        ("synchronize", gpu),
    ]


@pytest.mark.usefixtures("calls")
def test_pinned_memory_and_events(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = CudaDevice(torch.device("cuda"))
    assert opened.torch == torch.device("cuda:0")
    made = []
    monkeypatch.setattr(torch, "empty", lambda *shape, **keywords: made.append((shape, keywords)))
    monkeypatch.setattr(torch.cuda, "Event", lambda: "event")
    opened.pinned((2, 3), torch.int32)
    assert made == [(((2, 3),), {"dtype": torch.int32, "pin_memory": True})]
    assert opened.event() == "event"


@pytest.mark.usefixtures("calls")
def test_graphs_of_a_pool_share_its_memory_and_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    current = ["default"]

    @contextmanager
    def stream(name: str) -> Iterator[None]:
        before, current[0] = current[0], name
        try:
            yield
        finally:
            current[0] = before

    @contextmanager
    def graph(_: object, pool: str, stream: str, capture_error_mode: str) -> Iterator[None]:
        current[0] = stream  # torch goes back to the one before only if all went well
        said.append((pool, stream, capture_error_mode))
        yield
        said.append("end")

    names = iter("ABCD")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: next(names))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(names))
    opened = CudaDevice(torch.device("cuda"))
    first, second = opened.graph_pool(), opened.graph_pool()
    first.capture(lambda: said.append("run"))
    first.capture(lambda: said.append("run"))
    with pytest.raises(ZeroDivisionError):
        second.capture(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    assert said == 2 * [("A", "B", "thread_local"), "run", "end"] + [("C", "D", "thread_local")]
    assert current == ["default"]


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("properties", "hip", "fp8"),
    [(H100, None, True), (L4, None, True), (A100, None, False), (MI300, "6.4", True), (MI210, "6.4", False)],
    ids=lambda value: getattr(value, "name", None),
)
def test_who_multiplies_8_bit_floats(
    monkeypatch: pytest.MonkeyPatch, properties: SimpleNamespace, hip: str | None, fp8: bool
) -> None:
    there(monkeypatch, properties, hip)
    assert CudaDevice(torch.device("cuda")).fp8 == fp8


@pytest.mark.usefixtures("calls")
def test_a_gpu_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, V100)
    with pytest.raises(ConfigError, match=r"Tesla V100 has compute capability 7\.0; octavo needs 8\.0"):
        CudaDevice(torch.device("cuda"))


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("CUDA error: no kernel image is available for execution on the device\nCUDA kernel", "built for other GPUs"),
        ("Found no NVIDIA driver on your system. Please check", "install or update the GPU's driver"),
        ("The NVIDIA driver on your system is too old (found version 11040)", "install or update the GPU's driver"),
        ("CUDA error: out of memory", "free its memory"),
        ("CUDA error: unspecified launch failure", "see whether the GPU works"),
        ("", "see whether the GPU works"),
    ],
)
def test_a_gpu_that_does_not_work_says_what_to_do(monkeypatch: pytest.MonkeyPatch, reason: str, advice: str) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError(reason)

    monkeypatch.setattr(device, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    with pytest.raises(ConfigError) as told:
        open_device(torch.device("cuda:2"))
    assert advice in told.value.message
    assert told.value.message.startswith("cuda:2 cannot be used (")
    assert "--device cpu" in told.value.message
    assert "\n" not in told.value.message


def test_a_gpu_that_torch_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="--device cuda:2: torch sees 2 GPUs here; cuda:0 is the first"):
        choose_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match="torch sees no GPU here; see whether `nvidia-smi` or `rocm-smi` lists one"):
        choose_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ConfigError, match=r"the installed torch \(.*\) is built for CPUs only"):
        choose_device("cuda")


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="a GPU needs triton"):
        CudaDevice(torch.device("cuda"))


def test_a_cpu_needs_no_seam() -> None:
    assert open_device(torch.device("cpu")) is None
