"""What octavo makes of a GPU, as shares of what the GPU can do, and beside others.

    make bench-gpu                              the most important figures, in ten minutes
    make bench-gpu ARGS="--minutes 60"          as many as there are
    make bench-gpu ARGS="--only checks"         one part; --list names them
    make bench-gpu ARGS="--tiny"                every line of it on a CPU: whether it runs, not how fast

Needs no network: weights are random, shapes are those of real models. Kernels are checked against float64, then come
whole engines, then kernels alone, then other engines where they are installed. Each part runs in a process of its own
and has its time: one that fails or hangs is told, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer
from time import perf_counter
from typing import IO, TYPE_CHECKING

from .figures import Figure, Outcome, part_table, target_table

if TYPE_CHECKING:  # torch and triton, which look at the environment when they are imported
    from .kernels import Bench
    from .parts import Part
    from .roofline import Ceilings

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "benchmarks-gpu.md"
_FIGURE, _OUTCOME = "figure ", "outcome "  # begin the lines that a part's process prints for us
_LEAST_SECONDS = 10.0  # worth starting a part for


@dataclass(frozen=True)
class Setting:
    tiny: bool
    device: str

    def parts(self) -> list[Part]:
        from . import parts

        return parts.on_cpu() if self.tiny else parts.on_gpu()


def bench(setting: Setting, known: Ceilings | None) -> Bench:
    """Measures the ceilings where nobody has yet."""
    import torch

    from octavo.kernels.triton import kernels

    from .ceilings import measure
    from .kernels import Bench
    from .parts import ceilings_of
    from .roofline import Ceilings
    from .stopwatch import stopwatch

    watch = stopwatch(torch.device("cpu" if setting.tiny else setting.device))
    size, bytes_ = (32, 1 << 12) if setting.tiny else (4096, 1 << 29)
    ceilings = known or ceilings_of(list(measure(watch, size, bytes_))) or Ceilings(1.0, 1.0)
    dtype = torch.float16 if setting.tiny else torch.bfloat16
    return Bench(watch, kernels, ceilings, dtype, beside_torch=not setting.tiny)


def run_part(part: Part, with_: Bench) -> Iterator[Figure | Outcome]:
    """In this process. Whatever it raises beside what is missing here is its failure."""
    from octavo.errors import ConfigError

    start = perf_counter()
    try:
        yield from part.run(with_)
    except (ImportError, ConfigError) as error:
        yield Outcome(part=part.name, state="not here", why=str(error), seconds=perf_counter() - start)
        return
    yield Outcome(part=part.name, state="done", seconds=perf_counter() - start)


def start_part(part: Part, setting: Setting, known: Ceilings | None, seconds: float) -> Iterator[Figure | Outcome]:
    """In a process of its own, which is killed with all of its children when the time is over."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part.name, "--device", setting.device]
    command += ["--tiny"] * setting.tiny
    command += [] if known is None else ["--ceilings", json.dumps(asdict(known))]
    start, late = perf_counter(), False

    def kill() -> None:
        nonlocal late
        late = True
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    with TemporaryFile("w+", errors="replace") as errors:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, start_new_session=True
        ) as child:
            timer = Timer(seconds, kill)
            timer.start()
            ended = False
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    if (found := read_line(line)) is not None:
                        ended = ended or (isinstance(found, Outcome) and found.part == part.name)
                        yield found
                code = child.wait()
            finally:
                timer.cancel()
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
        if not ended:
            why = f"more than {seconds:.0f} s" if late else f"ended with {code}: {_last_line(errors)}"
            state = "out of time" if late else "failed"
            yield Outcome(part=part.name, state=state, why=why, seconds=perf_counter() - start)  # type: ignore[arg-type]


def _last_line(errors: IO[str]) -> str:
    errors.seek(0)
    return next((line.strip() for line in reversed(errors.readlines()) if line.strip()), "nothing was said")


def write_line(found: Figure | Outcome) -> str:
    return (_FIGURE if isinstance(found, Figure) else _OUTCOME) + json.dumps(asdict(found))


def read_line(line: str) -> Figure | Outcome | None:
    """None for what libraries print."""
    if line.startswith(_FIGURE):
        return Figure(**json.loads(line.removeprefix(_FIGURE)))
    if line.startswith(_OUTCOME):
        return Outcome(**json.loads(line.removeprefix(_OUTCOME)))
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of it (default 10)")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="this part; may be repeated")
    parser.add_argument("--list", action="store_true", help="the parts, in their order, and their seconds")
    parser.add_argument("--device", default="cuda:0", help="which GPU (default cuda:0)")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, kernels interpreted; the figures mean nothing")
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.md (default build/gpu)")
    parser.add_argument("--publish", action="store_true", help=f"put the tables into {DOCUMENT.relative_to(ROOT)}, too")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what a part's process is told
    parser.add_argument("--ceilings", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.tiny and (asked.out or asked.publish):
        parser.error("--tiny has no results to write")
    if asked.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
    setting = Setting(asked.tiny, asked.device)
    if asked.part:
        return _one(setting, asked.part, asked.ceilings)
    parts = setting.parts()
    if asked.list:
        print("\n".join(f"{part.seconds:5.0f} s  {part.name}" for part in parts))
        return 0
    if unknown := set(asked.only) - {part.name for part in parts}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; --list names them")
    if not asked.tiny and (why := _unusable(asked.device)):
        parser.error(f"{why}; --tiny runs every line of it on a CPU")
    chosen = [part for part in parts if not asked.only or part.name in asked.only]
    return _all(setting, chosen, asked.minutes * 60, asked.out or ROOT / "build" / "gpu", asked.publish)


def _unusable(device: str) -> str | None:
    from octavo.errors import ConfigError
    from octavo.execution.device import choose_device

    try:
        return None if choose_device(device).type == "cuda" else f"--device {device} is no GPU"
    except ConfigError as error:
        return str(error)


def _one(setting: Setting, name: str, known: str | None) -> int:
    from .roofline import Ceilings

    part = next(each for each in setting.parts() if each.name == name)
    ceilings = None if known is None else Ceilings(**json.loads(known))
    for found in run_part(part, bench(setting, ceilings)):
        print(write_line(found), flush=True)
    return 0


def _all(setting: Setting, parts: Sequence[Part], seconds: float, folder: Path, publish: bool) -> int:
    import torch

    from .machine import describe
    from .parts import TARGETS, ceilings_of
    from .report import Report

    report = Report(describe(torch.device("cpu" if setting.tiny else setting.device)), TARGETS)
    for name, value in report.machine.items():
        print(f"{name}: {value}")
    end = perf_counter() + seconds
    for part in parts:
        left = end - perf_counter()
        if left < min(_LEAST_SECONDS, part.seconds):
            report.outcomes.append(Outcome(part=part.name, state="out of time", why="not begun"))
            continue
        print(f"\n{part.name}", flush=True)
        for found in start_part(part, setting, ceilings_of(report.figures), min(part.seconds, left)):
            if isinstance(found, Outcome):
                report.outcomes.append(found)
                print(f"  {found.part}: {found.state} {found.why}", flush=True)
            else:
                report.figures.append(found)
                share = "" if found.fraction is None else f", {found.fraction:.0%} of the roof"
                print(f"  {found.row}: {found.contestant} {found}{share}", flush=True)
        if not setting.tiny:
            report.save(folder)
    print("\n" + "\n".join(target_table(TARGETS, report.figures)))
    for name in dict.fromkeys(figure.part for figure in report.figures):
        print(f"\n{name}\n" + "\n".join(part_table(name, report.figures)))
    if setting.tiny:
        print("\nA CPU, at sizes of nothing: these are no results.")
    else:
        print(f"\nwritten to {folder}/gpu.md and gpu.json")
        if publish:
            report.publish(DOCUMENT)
    failed = [each for each in report.outcomes if each.state == "failed"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
