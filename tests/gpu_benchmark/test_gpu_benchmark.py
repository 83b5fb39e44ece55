"""The GPU benchmark on a CPU: every part at sizes of nothing, kernels interpreted, stand-ins for other engines."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton.language", reason="no triton: the kernels of a GPU cannot be interpreted")

sys.path.insert(0, str(Path(__file__).parents[1] / "layers"))
import fake_attention_libraries

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, machine, parts
from benchmarks.gpu import kernels as model_kernels
from benchmarks.gpu.figures import EAGER, OCTAVO, Figure, Outcome, Target, part_table, target_table
from benchmarks.gpu.kernels import FLASH_INFER, SDPA, TORCH
from benchmarks.gpu.report import MARK, Report
from benchmarks.gpu.roofline import FP8, INT4, LLAMA_1B, Ceilings
from benchmarks.gpu.stopwatch import CudaStopwatch
from octavo.kernels.triton import attention, kernels

if torch.cuda.is_available():
    pytest.skip(
        "kernels are interpreted where there is no GPU; here the benchmark itself can run", allow_module_level=True
    )

HERE = command.Setting(tiny=True, device="cpu")
PARTS = {part.name: part for part in parts.on_cpu()}
KNOWN = Ceilings(1e9, 1e9)


@pytest.fixture(autouse=True)
def few_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes a while for each program."""
    monkeypatch.setattr(attention, "splits", lambda programs, slots: 1 + programs % 2)


def run(name: str) -> tuple[list[Figure], Outcome]:
    """Raises what the part raises."""
    *figures, outcome = command.run_part(PARTS[name], command.bench(HERE, KNOWN))
    assert isinstance(outcome, Outcome)
    assert [each for each in figures if isinstance(each, Outcome)] == []
    return [each for each in figures if isinstance(each, Figure)], outcome


def test_ceilings() -> None:
    figures, outcome = run("ceilings")
    assert outcome.state == "done"
    assert {"copy", "bf16 product of 32"} <= {each.row for each in figures}
    found = parts.ceilings_of(figures)
    assert found is not None
    assert found.bandwidth == next(each.value for each in figures if each.unit == "GB/s") * 1e9
    assert parts.ceilings_of(figures[:1]) is None


def test_kernels_are_right_by_float64() -> None:
    figures, outcome = run("checks")
    assert outcome.state == "done"
    assert all(each.value <= 1 for each in figures)


def test_every_kernel_of_octavo_is_checked() -> None:
    ours = {name for name in kernels.__all__ if getattr(kernels, name).__module__ != "octavo.kernels.reference"}
    assert ours <= {name for names in checks.CHECKS for name in names}


@pytest.mark.parametrize("name", ["add_rms_norm", "silu_mul", "write_kv", "copy_blocks", "lay_out", "report_logprobs"])
def test_a_wrong_kernel_is_told(name: str) -> None:
    """It does nothing, or all of it a little wrong."""

    def wrong(*arguments: Any) -> Any:
        result = getattr(kernels, name)(*arguments) if name in ("add_rms_norm", "silu_mul") else None
        return None if result is None else result * 1.01

    broken = SimpleNamespace(**{each: getattr(kernels, each) for each in kernels.__all__} | {name: wrong})
    check = next(check for names, check in checks.CHECKS.items() if name in names)
    trial = checks.Trial(broken, torch.device("cpu"), torch.float16, checks.TINY)  # type: ignore[arg-type]
    assert not all(verdict.right for verdict in check(trial) if verdict.kernel == name)


def test_a_failing_check_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(kernels, "count_tokens", fail)
    monkeypatch.setattr(kernels, "copy_blocks", lambda *arguments: None)
    kept = {
        names: check for names, check in checks.CHECKS.items() if {*names} & {"count_tokens", "copy_blocks", "lay_out"}
    }
    monkeypatch.setattr(checks, "CHECKS", kept)
    found = list(command.run_part(PARTS["checks"], command.bench(HERE, KNOWN)))
    failed = {each.part: each.why for each in found if isinstance(each, Outcome) and each.state == "failed"}
    assert [*failed] == ["check of copy_blocks", "check of count_tokens, torch.float16"]
    assert "no such instruction" in failed["check of count_tokens, torch.float16"]
    assert any(isinstance(each, Figure) and each.row.startswith("lay_out") for each in found)


@pytest.mark.parametrize(
    ("name", "contestant"), [("engine", OCTAVO), ("engine, no graphs", EAGER), ("engine, int4", OCTAVO)]
)
def test_engines(name: str, contestant: str) -> None:
    figures, _ = run(name)
    assert [each.row for each in figures] == ["decode 1 × 70", "decode 2 × 70", "prefill 16", "offline 8/4"]
    assert {each.contestant for each in figures} == {contestant}
    assert all(each.value > 0 and each.roof for each in figures)


def test_an_engine_that_cannot_be_here_is_told() -> None:
    figures, outcome = run("engine, fp8")
    assert not figures
    assert outcome.state == "not here"
    assert "fp8" in outcome.why


def test_attention_beside_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", fake_attention_libraries.FLASHINFER)  # type: ignore[arg-type]
    figures, _ = run("attention")
    rows = {row: {each.contestant for each in figures if each.row == row} for row in {each.row for each in figures}}
    assert rows == {row: {OCTAVO, FLASH_INFER, SDPA} for row in ("decode 2 × 20", "prefill 5")}


@pytest.mark.parametrize("name", ["products", "small kernels"])
def test_kernels_alone(name: str) -> None:
    figures, outcome = run(name)
    assert outcome.state == "done"
    assert all(each.value > 0 and each.roof for each in figures)


def test_products_by_few_bits_beside_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its operations for GPUs are played: that they are given what fits together is seen by their shapes."""

    def four_bits(x: Any, order: Any, group: int, scales_and_zeros: Any) -> Any:
        assert x.dtype is scales_and_zeros.dtype is torch.bfloat16
        assert scales_and_zeros.shape == (x.size(1) // group, len(order), 2)
        assert order.size(1) * 2 == x.size(1)

    def eight_bits(x: Any, y: Any, scale_a: Any, scale_b: Any, out_dtype: Any) -> Any:
        assert x.dtype is y.dtype is torch.float8_e4m3fn
        assert (scale_a.shape, scale_b.shape) == ((len(x), 1), (1, y.size(1)))
        assert y.stride(0) == 1

    monkeypatch.setattr(torch, "_convert_weight_to_int4pack", lambda codes, tiles: codes)
    monkeypatch.setattr(torch, "_weight_int4pack_mm", four_bits)
    monkeypatch.setattr(torch, "_scaled_mm", eight_bits)
    monkeypatch.setattr(model_kernels, "code_dtypes", lambda device: [torch.int8, torch.float8_e4m3fn])
    ours = SimpleNamespace(group_linear=lambda *arguments: None, scaled_linear=lambda *arguments: None)
    with_ = replace(command.bench(HERE, KNOWN), beside_torch=True, kernels=ours)  # type: ignore[arg-type]
    for form in (INT4, FP8):
        found = list(model_kernels.products(with_, LLAMA_1B, (3,), form))
        assert [each.contestant for each in found if isinstance(each, Figure)] == [OCTAVO, TORCH] * 4


class FakeVllm:
    asked: list[tuple[int, int, int]]

    def __init__(self, **arguments: Any) -> None:
        assert json.loads((Path(arguments["model"]) / "config.json").read_text())["vocab_size"] == 96
        assert arguments["quantization"] == arguments["kv_cache_dtype"] == "fp8"
        FakeVllm.asked = []

    def generate(self, prompts: list[dict[str, list[int]]], wanted: Any, use_tqdm: bool) -> None:
        FakeVllm.asked.append((len(prompts), len(prompts[0]["prompt_token_ids"]), wanted.max_tokens))


def test_vllm_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert run("vLLM")[1].state == "not here"
    module = SimpleNamespace(LLM=FakeVllm, SamplingParams=lambda **arguments: SimpleNamespace(**arguments))
    monkeypatch.setitem(sys.modules, "vllm", module)  # type: ignore[arg-type]
    figures, _ = run("vLLM")
    assert {each.row for each in figures} == {
        "decode 1 × 70", "decode 2 × 70", "decode 999 × 70", "prefill 16", "offline 8/4"
    }  # fmt: skip
    assert FakeVllm.asked[-1] == (3, 8, 4)


def test_transformers() -> None:
    pytest.importorskip("transformers")
    figures, _ = run("transformers")
    assert {each.row for each in figures} == {"decode 1 × 8", "decode 2 × 8", "prefill 16", "offline 8/4"}


def test_a_part_has_a_process_of_its_own_and_its_time() -> None:
    *figures, outcome = command.start_part(PARTS["ceilings"], HERE, KNOWN, 100)
    assert isinstance(outcome, Outcome)
    assert outcome.state == "done"
    assert {each.part for each in figures} == {"ceilings"}
    (late,) = command.start_part(PARTS["engine"], HERE, KNOWN, 0.05)
    assert isinstance(late, Outcome)
    assert late.state == "out of time"
    (failed,) = command.start_part(parts.Part("none of ours", 9, PARTS["engine"].run), HERE, None, 100)
    assert isinstance(failed, Outcome)
    assert (failed.state, "StopIteration" in failed.why) == ("failed", True)


def test_tiny_figures_are_never_results(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = command.DOCUMENT.read_text()
    for more in (["--publish"], ["--out", "anywhere"]):
        with pytest.raises(SystemExit):
            command.main(["--tiny", *more])
    monkeypatch.setattr(
        command,
        "start_part",
        lambda part, setting, known, seconds: command.run_part(part, command.bench(setting, known)),
    )
    assert command.main(["--tiny", "--only", "ceilings"]) == 0
    assert "these are no results" in capsys.readouterr().out
    assert command.main(["--tiny", "--minutes", "0", "--only", "ceilings"]) == 0
    assert command.DOCUMENT.read_text() == before


def test_on_a_gpu_results_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "benchmarks-gpu.md"
    document.write_text(f"# Head\n\n{MARK}\n\nearlier\n")
    fast = Figure(
        part=parts.TARGETS[0].part, row=parts.TARGETS[0].rows[0], contestant=OCTAVO, value=6.0, unit="ms", roof=5.0
    )
    monkeypatch.setattr(command, "DOCUMENT", document)
    monkeypatch.setattr(machine, "describe", lambda device: {"date": "today", "GPU": "one", "driver": "1"})
    monkeypatch.setattr(
        command, "start_part", lambda part, *rest: iter([fast, Outcome(part=part.name, state="failed", why="alas")])
    )
    out = tmp_path / "out"
    setting = command.Setting(tiny=False, device="cuda:0")
    assert command._all(setting, parts.on_gpu()[:1], 60, out, publish=True) == 1
    text = document.read_text()
    assert text.index("# Head") < text.index("### today: one") < text.index("| 83% | met |") < text.index("earlier")
    assert "- ceilings: failed: alas" in text
    assert json.loads((out / "gpu.json").read_text())["figures"][0]["fraction"] == pytest.approx(5 / 6)
    assert "83% of the roof" in capsys.readouterr().out


def test_without_a_gpu_it_says_what_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([])
    assert "--tiny" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--only", "nonsense"])
    assert "no such part: nonsense" in capsys.readouterr().err
    assert command.main(["--list"]) == 0
    assert "8B bf16" in capsys.readouterr().out


def test_parts_of_a_gpu_are_named_once() -> None:
    names = [part.name for part in parts.on_gpu()]
    assert len({*names}) == len(names)


def test_fractions_and_targets() -> None:
    def figure(row: str, contestant: str, value: float, unit: Any = "ms", roof: float | None = None) -> Figure:
        return Figure(part="p", row=row, contestant=contestant, value=value, unit=unit, roof=roof)

    assert figure("a", OCTAVO, 8.0, roof=4.0).fraction == 0.5
    assert figure("a", OCTAVO, 50.0, "tok/s", 100.0).fraction == 0.5
    assert figure("a", OCTAVO, 50.0).fraction is None
    figures = [
        figure("a", OCTAVO, 8.0, roof=4.0), figure("a", "x", 6.0, roof=4.0), figure("a", "y", 7.0),
        figure("b", OCTAVO, 100.0, "tok/s", 110.0), figure("b", "x", 80.0, "tok/s"),
    ]  # fmt: skip
    roof = Target(title="t", part="p", rows=("a", "b"), share=0.5)
    assert roof.reached(figures) == 0.5
    assert Target(title="t", part="p", rows=("a", "c"), share=0.5).reached(figures) is None
    beside = Target(title="t", part="p", rows=("a", "b"), share=0.9, peers=("x", "y"))
    assert beside.reached(figures) == 0.75
    assert [line.split("|")[3:5] for line in target_table([roof, beside], figures)][2:] == [
        [" 50% ", " met "], [" 75% ", " missed "]
    ]  # fmt: skip
    assert list(part_table("p", figures)) == [
        "|  | roof | octavo | x | y |",
        "|---|--:|--:|--:|--:|",
        "| a | 4 ms | 8 ms (50%) | 6 ms (67%) | 7 ms |",
        "| b | 110 tok/s | 100 tok/s (91%) | 80 tok/s | – |",
    ]


def test_a_report_says_what_is_missing() -> None:
    outcomes = [Outcome(part="a", state="done"), Outcome(part="b", state="not here", why="no vllm")]
    text = Report({"date": "today", "GPU": "one"}, [], [], outcomes).markdown()
    assert "- b: not here: no vllm" in text
    assert "- a" not in text


def test_the_machine_is_described() -> None:
    said = machine.describe(torch.device("cpu"))
    assert {"date", "GPU", "driver", "octavo", "torch"} <= said.keys()


class FakeCuda:
    """Enough of torch.cuda to time by: an event is a number that goes up by a millisecond for each run."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.can_capture = True

    def run(self) -> None:
        self.clock += 1

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0.0

            def record(self) -> None:
                self.at = fake.clock

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at)

        class Graph:
            def replay(self) -> None:
                for _ in range(self.runs):
                    fake.run()

        class Capture:
            def __init__(self, graph: Any) -> None:
                self.graph, self.before = graph, fake.clock

            def __enter__(self) -> None:
                if not fake.can_capture:
                    raise RuntimeError("not while capturing")

            def __exit__(self, *_: object) -> None:
                self.graph.runs = int(fake.clock - self.before)

        properties = SimpleNamespace(L2_cache_size=1000)
        for name, value in {
            "Event": Event, "CUDAGraph": Graph, "graph": Capture, "synchronize": lambda device: None,
            "get_device_properties": lambda device: properties,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize("can_capture", [True, False])
def test_operations_are_timed_within_a_graph_or_one_by_one(monkeypatch: pytest.MonkeyPatch, can_capture: bool) -> None:
    fake = FakeCuda()
    fake.install(monkeypatch)
    fake.can_capture = can_capture
    watch = CudaStopwatch(torch.device("cpu"))
    assert watch.seconds([fake.run] * 3) == pytest.approx(1e-3)
    assert [watch.copies(bytes_) for bytes_ in (1, 300, 10_000)] == [64, 10, 2]
