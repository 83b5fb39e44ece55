"""octavo beside llama.cpp and vLLM's CPU build: same machine, same model, same prompts, one run.

Each peer is set up in .bench/ on first use (a build of many minutes and a large download) and runs as its own
documentation advises. In every round the contestants take turns, one at work at a time, so that a slow minute of the
machine hits all; reported are medians, and octavo's ratio to each peer as the median of the rounds. Use a quiet
machine: llama.cpp's threads spin, and one busy neighbour costs it many times over.

    make bench-peers                                    five rounds of everything
    make bench-peers ARGS="--quick"                     does it run? Its figures mean nothing
    make bench-peers ARGS="--only octavo vllm --parts http --rounds 3"
    make bench-peers ARGS="--prepare"                   only set up the peers

decode    N prompts of 100 tokens, 128 new ones each; the time of the prompts is taken off
prefill   prompts of 512 and of 1,000 tokens; octavo and vLLM get four at once, llama-bench one after the other
http      N streams of 100 tokens in, 128 out, from one and the same load generator on the same cores
start     process start to first token with the weights in the page cache, and memory of all processes serving
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from figures import OCTAVO, Q4, Q8, ROWS, VLLM_BF16, Figures, cell, table
from measurements import QUICK, Engine, Llama, Peer, Prompts, Work, measure_servers, printed
from peers import BENCH, CORES, LLAMA_CPP, VLLM, VLLM_TORCH, LlamaCpp, Vllm
from plot import Bars, svg
from processes import QUIET_SHARE, Contestant, Others, octavo_serve

from octavo import __version__
from octavo.checkpoint import resolve
from octavo.config import ModelConfig

PARTS = ("decode", "prefill", "http", "start")
SHORT_NAMES = {"octavo": OCTAVO, "llama-q4": Q4, "llama-q8": Q8, "vllm": VLLM_BF16}


def machine(seconds: float) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    flags: list[str] = []
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = (line.partition(":") for line in information.read_text().splitlines())
        known = {key.strip(): value.strip() for key, _, value in lines}
        cpu, flags = known.get("model name", cpu), known.get("flags", known.get("Features", "")).split()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp")
    script = str(Path(__file__).with_name("ceilings.py"))
    ceilings = json.loads(printed([sys.executable, script, "--seconds", str(seconds)]))
    return {
        "cpu": cpu,
        "cores": len(CORES),
        "instructions": " ".join(flag for flag in wanted if flag in flags),
        "memory GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "octavo": __version__,
        "llama.cpp": LLAMA_CPP,
        "vLLM": f"{VLLM} over {VLLM_TORCH}, preloaded: {' '.join(path.name for path in Vllm.preloaded()) or 'nothing'}",
        "ceilings": {name: round(figure, 2) for name, figure in ceilings.items()},
    }


def enter(names: list[str], prompts: Prompts) -> list[Peer]:
    """Prepare what the contestants need and line them up."""
    model = resolve(ModelConfig()).path
    made: dict[str, Callable[[], Peer]] = {
        OCTAVO: lambda: octavo(model, prompts),
        Q4: lambda: Llama(Q4, model),
        Q8: lambda: Llama(Q8, LlamaCpp.quantized(model, "Q8_0")),
        VLLM_BF16: lambda: vllm(Vllm.dequantized(model), prompts),
    }
    if {Q4, Q8} & set(names):
        LlamaCpp.prepare()
    if VLLM_BF16 in names:
        Vllm.prepare()
    return [made[name]() for name in names]


def octavo(model: Path, prompts: Prompts) -> Peer:
    return Engine(OCTAVO, model, prompts, lambda: Contestant("octavo", model, "auto"), octavo_serve(model), {})


def vllm(folder: Path, prompts: Prompts) -> Peer:
    environment = Vllm.environment()

    def start() -> Contestant:
        return Contestant("vllm", folder, python=Vllm.python, environment=environment)

    return Engine(VLLM_BF16, folder, prompts, start, Vllm.serve(folder), environment)


def turns(peers: list[Peer], rounds: int) -> Iterator[tuple[int, Peer]]:
    for number in range(1, rounds + 1):
        for peer in peers:
            yield number, peer


def measure(peers: list[Peer], prompts: Prompts, parts: set[str], work: Work, rounds: int) -> tuple[Figures, float]:
    """All rounds. A contestant that fails in one is named and the others go on."""
    figures, others, busiest = Figures(), Others(), 0.0
    for number, peer in turns(peers, rounds):
        print(f"round {number} of {rounds}: {peer.name}", flush=True)

        def record(row: str, figure: float, name: str = peer.name, number: int = number) -> None:
            figures.add(row, name, number, figure)
            print(f"  {row:<14} {figure:>10,.2f}", flush=True)

        try:
            if "decode" in parts:
                peer.decode(work, record)
            if "prefill" in parts:
                peer.prefill(work, record)
            if parts & {"http", "start"}:
                measure_servers(peer, parts, work, prompts, record)
        except (RuntimeError, OSError, TimeoutError, subprocess.TimeoutExpired) as error:
            peer.stop()
            figures.failures.append(f"round {number}, {peer.name}: {error}")
            print(f"  failed: {error}", flush=True)
        busy = others.share()
        busiest = max(busy, busiest)
        if busy > QUIET_SHARE:
            print(f"  meanwhile {busy:.0%} of the cores were busy with something else", flush=True)
    return figures, busiest


def bars(figures: Figures, names: list[str]) -> list[Bars]:
    measured = [row for row in ROWS if row.key in figures.all and not row.key.startswith("ttft")]
    return [
        Bars(
            row.title + (", less is better" if row.less_is_better else ""),
            [
                (name, value, cell(value, row.digits))
                for name in names
                if (value := figures.median(row, name)) is not None
            ],
        )
        for row in measured
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(SHORT_NAMES)
    parser.add_argument("--only", nargs="+", choices=SHORT_NAMES, default=list(SHORT_NAMES), metavar="NAME", help=names)
    parts = ", ".join(PARTS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=parts)
    parser.add_argument("--rounds", type=int, help="of everything (default 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a short run that only shows that all works")
    parser.add_argument("--prepare", action="store_true", help="only set up the peers and their models")
    parser.add_argument("--output", type=Path, default=BENCH / "results", help="folder for table, plot and JSON")
    return parser.parse_args()


def write(folder: Path, here: dict[str, Any], figures: Figures, names: list[str], notes: list[str]) -> str:
    """versus_peers.md, .json and .svg; returns the table with what stands around it."""
    ceilings = ", ".join(f"{name} {figure:g}" for name, figure in here["ceilings"].items())
    facts = [f"- {key}: {value}" for key, value in here.items() if key != "ceilings"]
    failures = [f"- failed: {failure.splitlines()[0]}" for failure in figures.failures]
    text = "\n".join([*facts, f"- measured ceilings: {ceilings}", *notes, *failures, "", table(figures, names), ""])
    ratios = {row.key: {peer: figures.ratios(row, peer) for peer in names if peer != OCTAVO} for row in ROWS}
    result = {"machine": here, "figures": figures.all, "ratios": ratios, "failures": figures.failures, "notes": notes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "versus_peers.md").write_text(text)
    (folder / "versus_peers.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    (folder / "versus_peers.svg").write_text(svg(f"{here['cpu']}, {here['cores']} cores", bars(figures, names)))
    return text


def main() -> None:
    arguments = parse()
    names = [name for short, name in SHORT_NAMES.items() if short in arguments.only]
    work = QUICK if arguments.quick else Work()
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    print("preparing", flush=True)
    prompts = Prompts()
    peers = enter(names, prompts)
    if arguments.prepare:
        return
    started = time.perf_counter()
    here = machine(0.2 if arguments.quick else 2.0)
    try:
        figures, busiest = measure(peers, prompts, set(arguments.parts), work, rounds)
    finally:
        for peer in peers:
            peer.stop()
    minutes = (time.perf_counter() - started) / 60
    notes = [f"- {rounds} rounds in {minutes:.0f} minutes; others kept at most {busiest:.0%} of the cores busy"]
    if arguments.quick:
        notes.append("- a quick run: these figures say that everything works, and nothing else")
    print("\n" + write(arguments.output, here, figures, names, notes))
    print(f"written to {arguments.output}")
    if figures.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
