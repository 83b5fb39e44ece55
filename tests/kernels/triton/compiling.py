"""Compiles the GPU kernels exactly as they would be launched, for GPUs that are not there, and judges the machine code.

    make check-gpu-kernels [ARGS="--target sm_90 --only norm"]

A case calls a *launcher* of `octavo.kernels.triton` on tensors without memory (device "meta"). Under a driver that only
pretends, the launch compiles what it would run, specialized on the same strides and constants, and stops there. From
the machine code come registers, spills, shared memory and which instructions load and multiply. Each target has a
process of its own, since Triton keeps what it compiled by device, and each case a limit of time: a compiler may hang.

To add cases, write them into `cases_<topic>.py` in this folder; every such file is found by its name:

    CASES = [
        Case(
            "attention decode 8B",
            lambda new: [kernels.paged_attention(new(rows, 32, 128), ...) for rows in (1, 8, 13)],
            {"_decode": Expect(pipelined=True, products="mma"), "_merge": Expect()},  # by kernel, or one for all
            binaries=2,
            quick=("sm_90",),
        ),
    ]

`new(*shape, dtype=torch.bfloat16)` makes a tensor. Spills are never allowed unless `spills` says how many instructions;
shared memory is always compared with what the target has.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
KiB = 1024


@dataclass(frozen=True)
class Target:
    backend: Literal["cuda", "hip"]
    arch: int | str
    warp_size: int
    shared: int  # bytes a program may have
    multiprocessors: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * KiB, 108),
    "sm_90": Target("cuda", 90, 32, 227 * KiB, 132),
    "sm_100": Target("cuda", 100, 32, 227 * KiB, 148),
    "sm_120": Target("cuda", 120, 32, 99 * KiB, 188),
    "gfx942": Target("hip", "gfx942", 64, 64 * KiB, 304),
}
USUAL = ("sm_80", "sm_90", "sm_100", "gfx942")
ON_REQUEST = {"sm_120": "sm_100"}  # only by --target: cases for the one are compiled for the other
SECONDS = 120.0  # for a case; most take less than one


@dataclass(frozen=True, kw_only=True)
class Expect:
    """What the machine code of a kernel must be like."""

    pipelined: bool = False
    """Loads run ahead of their use: asynchronous copies to shared memory (NVIDIA)."""
    products: Literal["", "mma", "wgmma"] = ""
    """mma: some matrix instruction; wgmma: on sm_90 those of a warp group, on sm_100 those of tcgen05, else as mma."""
    registers: int = 255
    """At most, of a thread (NVIDIA)."""
    spills: int = 0
    """At most, instructions that store registers to memory and load them again."""
    narrow_loads: int | None = None
    """At most, loads of 16 bits or fewer from global memory, where the strides let them be wide (NVIDIA)."""


class New(Protocol):
    def __call__(self, *shape: int, dtype: Any = ...) -> Any: ...


@dataclass(frozen=True)
class Case:
    name: str
    launch: Callable[[New], object]
    expect: Expect | Mapping[str, Expect] = field(default_factory=Expect)
    binaries: int | None = None
    """Different kernels these launches may compile: sizes that change from step to step must not cost one each."""
    targets: Sequence[str] = USUAL
    quick: Sequence[str] = ()
    """Targets for which `make test` compiles it too."""


@dataclass(frozen=True)
class Code:
    """What became of one kernel."""

    kernel: str
    registers: int
    stack: int
    spills: int
    shared: int
    copies: int  # asynchronous copies from global to shared memory
    products: Mapping[str, int]  # matrix instructions by name
    narrow_loads: int
    seconds: float


@dataclass
class Outcome:
    case: Case
    target: str
    codes: list[Code] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


# --- judging ----------------------------------------------------------------------------------------------------------


def judge(case: Case, target_name: str, codes: Sequence[Code]) -> Iterator[str]:
    if not codes:
        yield "launches no kernel"
    if case.binaries is not None and len(codes) > case.binaries:
        yield f"compiles {len(codes)} kernels instead of {case.binaries}"
    if isinstance(case.expect, Mapping):
        yield from (f"{name} is not launched" for name in set(case.expect) - {code.kernel for code in codes})
    for code in codes:
        expect = case.expect if isinstance(case.expect, Expect) else case.expect.get(code.kernel)
        faults = ["has no expectation"] if expect is None else _faults(expect, TARGETS[target_name], target_name, code)
        yield from (f"{code.kernel} {fault}" for fault in faults)


def _faults(expect: Expect, target: Target, target_name: str, code: Code) -> Iterator[str]:
    if code.spills > expect.spills:
        yield f"spills: {code.spills} instructions, stack {code.stack} bytes"
    if code.shared > target.shared:
        yield f"needs {code.shared} bytes of shared memory, {target_name} has {target.shared}"
    if expect.products and not code.products:
        yield "has no matrix instruction"
    if target.backend == "hip":
        return
    if expect.products == "wgmma" and target_name in ("sm_90", "sm_100") and not _of_warp_groups(code.products):
        yield f"multiplies with {', '.join(code.products)} only"
    if expect.pipelined and not code.copies:
        yield "loads nothing ahead"
    if code.registers > expect.registers:
        yield f"takes {code.registers} registers, not {expect.registers}"
    if expect.narrow_loads is not None and code.narrow_loads > expect.narrow_loads:
        yield f"has {code.narrow_loads} narrow loads, not {expect.narrow_loads}"


def _of_warp_groups(products: Mapping[str, int]) -> bool:
    return any(name.startswith(("HGMMA", "QGMMA", "IGMMA", "UTC")) for name in products)


# --- compiling: in a process for each target --------------------------------------------------------------------------


class PretendedDriver:
    """All that Triton asks a driver for up to the launch itself."""

    def __init__(self, target: Target) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget(target.backend, target.arch, target.warp_size)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def is_active(self) -> bool:
        return True


def compile_cases(target_name: str, cases: Sequence[Case], report: Callable[[dict[str, Any]], None]) -> None:
    """Runs every case's launches up to the machine code; reports as it goes."""
    import torch
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from octavo.kernels.triton import gpu

    target = TARGETS[target_name]
    gpu.OTHERWISE = gpu.Gpu(target_name, target.multiprocessors, target.shared, target.warp_size)
    driver.set_active(PretendedDriver(target))
    compiled: dict[int, tuple[Any, float]] = {}
    launch = JITFunction.run

    def only_compile(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.setdefault(id(kernel), (kernel, time.perf_counter() - begin))
        return kernel

    JITFunction.run = only_compile

    def new(*shape: int, dtype: Any = torch.bfloat16) -> Any:
        return torch.empty(shape, dtype=dtype, device="meta")

    for case in cases:
        report({"begin": case.name})
        compiled.clear()
        case.launch(new)
        for kernel, seconds in compiled.values():
            report({"code": asdict(code_of(kernel, seconds))})
    report({"begin": None})


def code_of(kernel: Any, seconds: float) -> Code:
    name = kernel.metadata.name
    shared = kernel.metadata.shared
    if "amdgcn" in kernel.asm:
        return _code_of_amd(name, shared, kernel.asm["amdgcn"], seconds)
    return _code_of_nvidia(name, shared, kernel.asm["cubin"], seconds)


def _code_of_nvidia(name: str, shared: int, cubin: bytes, seconds: float) -> Code:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        sass = _output(knobs.nvidia.nvdisasm.path, file.name)
    taken = {what: int(number) for what, number in re.findall(r"(REG|STACK):(\d+)", usage)}
    opcodes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)", sass, re.MULTILINE)
    stems = Counter(opcode.split(".")[0] for opcode in opcodes)
    return Code(
        kernel=name,
        registers=taken["REG"],
        stack=taken["STACK"],
        spills=stems["LDL"] + stems["STL"],
        shared=shared,
        copies=stems["LDGSTS"] + stems["UTMALDG"],
        products={stem: count for stem, count in stems.items() if re.fullmatch(r"\w*MMA(_\w+)?", stem)},
        narrow_loads=sum(bool(re.match(r"LDG\.\S*\b[US](8|16)\b", opcode)) for opcode in opcodes),
        seconds=seconds,
    )


def _code_of_amd(name: str, shared: int, assembly: str, seconds: float) -> Code:
    facts = {key: int(number) for key, number in re.findall(r"^\s+(?:- )?\.(\w+):\s+(\d+)$", assembly, re.MULTILINE)}
    products = dict(Counter(re.findall(r"^\s+(v_s?mfma)_\w+", assembly, re.MULTILINE)))
    return Code(
        kernel=name,
        registers=facts["vgpr_count"],
        stack=facts["private_segment_fixed_size"],
        spills=facts["vgpr_spill_count"],  # scalar registers spill into vector registers, not to memory
        shared=shared,
        copies=len(re.findall(r"^\s+(?:global|buffer)_load_\w*lds\w*|_load_\w+ .*\blds$", assembly, re.MULTILINE)),
        products=dict(products),
        narrow_loads=len(re.findall(r"^\s+(?:global|buffer|flat)_load_[us](?:byte|short)", assembly, re.MULTILINE)),
        seconds=seconds,
    )


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# --- watching over the processes --------------------------------------------------------------------------------------


def run_cases(target: str, cases: Sequence[Case], files: Sequence[Path], seconds: float = SECONDS) -> list[Outcome]:
    """Every case for one target. A case that takes too long or kills its process costs only itself."""
    outcomes: list[Outcome] = []
    waiting = list(cases)
    while waiting:
        done = _run_until_lost(target, waiting, files, seconds)
        outcomes += done
        waiting = waiting[len(done) :]
    for outcome in outcomes:
        if not outcome.faults:
            outcome.faults += judge(outcome.case, target, outcome.codes)
    return outcomes


def _run_until_lost(target: str, cases: Sequence[Case], files: Sequence[Path], seconds: float) -> list[Outcome]:
    """Outcomes up to the case with which the process was lost, at least one."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryFile("w+") as errors, _child(target, cases, files, errors) as process:
        reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=_forward, args=(process, reports), daemon=True).start()
        while True:
            try:
                report = reports.get(timeout=seconds)
            except queue.Empty:
                process.kill()
                fault = f"not compiled after {seconds:g} s"
                break
            if report is None:
                errors.seek(0)
                fault = f"did not compile:\n{errors.read()[-8000:]}"
                break
            if "begin" in report:
                if report["begin"] is None:
                    return outcomes
                outcomes.append(Outcome(cases[len(outcomes)], target))
                assert outcomes[-1].case.name == report["begin"]
            else:
                outcomes[-1].codes.append(Code(**report["code"]))
        outcomes = outcomes or [Outcome(cases[0], target)]
        outcomes[-1].faults.append(fault)
        return outcomes


def _child(target: str, cases: Sequence[Case], files: Sequence[Path], errors: Any) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "triton"))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, __file__, "--child", target, *(str(file) for file in files)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([case.name for case in cases]))
    process.stdin.close()
    return process


def _forward(process: subprocess.Popen[str], reports: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        reports.put(json.loads(line))
    reports.put(None)


def _child_main(target: str, files: Sequence[str]) -> None:
    names = json.load(sys.stdin)
    cases = {case.name: case for case in load_cases([Path(file) for file in files])}

    def report(what: dict[str, Any]) -> None:
        print(json.dumps(what), flush=True)

    compile_cases(target, [cases[name] for name in names], report)


# --- the table --------------------------------------------------------------------------------------------------------


def case_files() -> list[Path]:
    return sorted(HERE.glob("cases_*.py"))


def load_cases(files: Sequence[Path]) -> list[Case]:
    sys.modules.setdefault("compiling", sys.modules[__name__])  # what the files import, also where this is __main__
    cases: list[Case] = []
    for file in files:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        cases += module.CASES
    repeated = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    assert not repeated, f"cases of the same name: {repeated}"
    return cases


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A line for a kernel of a case, with the most that any of its binaries takes."""
    columns = f"{'regs':>4} {'spills':>6} {'shared':>7} {'copies':>6}  products"
    yield f"{'target':7} {'case':32} {'kernel':28} {'binaries':>8} {columns}"
    for outcome in outcomes:
        label = f"{outcome.target:7} {outcome.case.name:32}"
        for kernel in dict.fromkeys(code.kernel for code in outcome.codes):
            codes = [code for code in outcome.codes if code.kernel == kernel]
            most = [max(getattr(code, what) for code in codes) for what in ("registers", "spills", "shared", "copies")]
            products = sorted({name for code in codes for name in code.products})
            numbers = "{:4} {:6} {:7} {:6}".format(*most)
            yield f"{label} {kernel:28} {len(codes):8} {numbers}  {', '.join(products)}".rstrip()
        yield from (f"{label} FAULT: {fault}" for fault in outcome.faults)


def main() -> None:
    import triton

    parser = argparse.ArgumentParser(description="Compile the GPU kernels for GPUs that are not here.")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help=f"default: {', '.join(USUAL)}")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at a time (default: one a core)")
    args = parser.parse_args()
    files = case_files()
    cases = [case for case in load_cases(files) if args.only in case.name]
    with ThreadPoolExecutor(args.jobs) as pool:
        work = [
            pool.submit(
                run_cases, target, [case for case in cases if ON_REQUEST.get(target, target) in case.targets], files
            )
            for target in args.target or USUAL
        ]
        outcomes = [outcome for each in work for outcome in each.result()]
    print(*table(outcomes), sep="\n")
    faulty = sum(bool(outcome.faults) for outcome in outcomes)
    print(f"triton {triton.__version__}: {len(outcomes)} cases compiled, {faulty} with faults")
    sys.exit(bool(faulty) or not outcomes)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child_main(sys.argv[2], sys.argv[3:])
    else:
        main()
