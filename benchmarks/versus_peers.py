"""octavo beside llama.cpp and vLLM's CPU build: same machine, same model, same prompts, one run.

Each peer is set up in .bench/ on first use (a build of many minutes and a large download) and runs as its own
documentation advises. In every round the contestants take turns, one at work at a time, so that a slow minute of the
machine hits all; reported are medians, and octavo's ratio to each peer as the median of the rounds. What a peer fails
at is said in the table, and the run goes on; table, plot and JSON are written after every turn. Use a quiet machine:
llama.cpp's threads spin, and one busy neighbour costs it many times over.

    make bench-peers                                    three rounds of everything: about 20 minutes on 2 cores
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
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from figures import OCTAVO, Figures, Row, Target, table
from machine import QUIET_SHARE, Others, describe
from measurements import QUICK, Engine, Llama, Peer, Prompts, Record, Work, measure_servers, printed, turns
from peers import BENCH, LLAMA_CPP, VLLM, VLLM_TORCH, LlamaCpp, Vllm
from plot import Bars, svg
from processes import Contestant, octavo_serve

from octavo.checkpoint import resolve
from octavo.config import ModelConfig

PARTS = ("decode", "prefill", "http", "start")
ROUNDS = 3
Q4, Q8, VLLM_BF16 = PEERS = ("llama.cpp Q4_1", "llama.cpp Q8_0", "vLLM bf16")
SHORT_NAMES = {"octavo": OCTAVO, "llama-q4": Q4, "llama-q8": Q8, "vllm": VLLM_BF16}
FAILURES = (RuntimeError, OSError, subprocess.SubprocessError, http.client.HTTPException, json.JSONDecodeError)

BEST_TWICE = (Target(PEERS, 2.0),)
PREFILL = (Target((VLLM_BF16,), 1.8), Target((Q8,), 3.0))
ROWS = [
    Row("decode 1", "decode, 1 stream, tok/s", (Target((Q4,), 1.5),)),
    Row("decode 8", "decode, 8 streams, tok/s", (Target(PEERS, 2.5),)),
    Row("decode 32", "decode, 32 streams, tok/s", (Target((VLLM_BF16,), 2.0), Target((Q8,), 3.5))),
    Row("prefill 512", "prefill of 512 tokens, tok/s", PREFILL),
    Row("prefill 1000", "prefill of 1,000 tokens, tok/s", PREFILL),
    Row("http 1", "HTTP, 1 stream, tok/s", BEST_TWICE),
    Row("http 8", "HTTP, 8 streams, tok/s", BEST_TWICE),
    Row("http 32", "HTTP, 32 streams, tok/s", BEST_TWICE),
    Row("ttft 1", "HTTP, 1 stream, time to first token, ms", less_is_better=True),
    Row("ttft 8", "HTTP, 8 streams, time to first token, ms", less_is_better=True),
    Row("ttft 32", "HTTP, 32 streams, time to first token, ms", less_is_better=True),
    Row("start", "process start to first token, s", (Target(limit=2.0),), less_is_better=True, digits=2),
    Row("memory first", "memory after the first token, GB", (Target(limit=0.6),), less_is_better=True, digits=2),
    Row("memory all", "memory after all streams, GB", (Target(limit=0.6),), less_is_better=True, digits=2),
]


def octavo(model: Path, prompts: Prompts) -> Peer:
    return Engine(OCTAVO, model, prompts, lambda: Contestant("octavo", model, "auto"), octavo_serve(model), {})


def llama(name: str, model: Path) -> Peer:
    LlamaCpp.prepare()
    return Llama(name, model if name == Q4 else LlamaCpp.quantized(model, "Q8_0"))


def vllm(model: Path, prompts: Prompts) -> Peer:
    Vllm.prepare()
    folder, environment = Vllm.dequantized(model), Vllm.environment()
    start = partial(Contestant, "vllm", folder, python=Vllm.python, environment=environment)
    return Engine(VLLM_BF16, folder, prompts, start, Vllm.serve(folder), environment)


def enter(names: list[str], model: Path, prompts: Prompts, figures: Figures) -> list[Peer]:
    """Prepare what the contestants need and line them up, without those where that fails."""
    made: dict[str, Callable[[], Peer]] = {
        OCTAVO: partial(octavo, model, prompts),
        Q4: partial(llama, Q4, model),
        Q8: partial(llama, Q8, model),
        VLLM_BF16: partial(vllm, model, prompts),
    }
    peers = []
    for name in names:
        try:
            peers.append(made[name]())
        except FAILURES as error:
            print(f"  {name} failed: {error}", flush=True)
            figures.fail(name, "preparation", error)
    return peers


def tasks(
    peer: Peer, parts: set[str], work: Work, prompts: Prompts, record: Record
) -> Iterator[tuple[str, Callable[[], None]]]:
    if "decode" in parts:
        yield "decode", lambda: peer.decode(work, record)
    if "prefill" in parts:
        yield "prefill", lambda: peer.prefill(work, record)
    if parts & {"http", "start"}:
        yield "server", lambda: measure_servers(peer, parts, work, prompts, record)


def take_turn(number: int, peer: Peer, parts: set[str], work: Work, prompts: Prompts, figures: Figures) -> None:
    """One contestant's part of a round. What it fails at is noted, and not asked of it again."""

    def record(row: str, figure: float) -> None:
        figures.add(row, peer.name, number, figure)
        print(f"  {row:<14} {figure:>10,.2f}", flush=True)

    for part, task in tasks(peer, parts, work, prompts, record):
        if (peer.name, part) in figures.failures:
            continue
        try:
            task()
        except FAILURES as error:
            print(f"  {part} failed: {error}", flush=True)
            figures.fail(peer.name, part, f"in round {number}: {error}")
            peer.stop()


def bars(figures: Figures, names: Sequence[str]) -> list[Bars]:
    measured = [row for row in ROWS if row.key in figures.all and not row.key.startswith("ttft")]
    return [
        Bars(
            row.title + (", less is better" if row.less_is_better else ""),
            [
                (name, value, figures.cell(row, name))
                for name in names
                if (value := figures.median(row, name)) is not None
            ],
        )
        for row in measured
    ]


@dataclass
class Report:
    """versus_peers.md, .json and .svg, written anew after every turn: a run cut short leaves what it has."""

    folder: Path
    names: list[str]
    facts: dict[str, str]
    figures: Figures = field(default_factory=Figures)

    def text(self) -> str:
        facts = [f"- {key}: {value}" for key, value in self.facts.items()]
        failures = [
            f"- {name} failed ({part}): {why.splitlines()[0]}" for (name, part), why in self.figures.failures.items()
        ]
        return "\n".join([*facts, *failures, "", table(self.figures, ROWS, self.names), ""])

    def write(self) -> None:
        figures = self.figures
        peers = [name for name in self.names if name != OCTAVO]
        result = {
            "facts": self.facts,
            "figures": figures.all,
            "ratios": {row.key: {peer: figures.ratios(row, peer) for peer in peers} for row in ROWS},
            "failures": [{"name": name, "part": part, "why": why} for (name, part), why in figures.failures.items()],
        }
        title = f"{self.facts['cpu']}, {self.facts['cores']} cores"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "versus_peers.md").write_text(self.text())
        (self.folder / "versus_peers.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        (self.folder / "versus_peers.svg").write_text(svg(title, bars(figures, self.names)))


def facts(quick: bool) -> dict[str, str]:
    """The machine, the peers' versions, and what the machine can do at most."""
    script = str(Path(__file__).with_name("ceilings.py"))
    ceilings = json.loads(printed([sys.executable, script, "--seconds", "0.2" if quick else "2"]))
    preloaded = " ".join(path.name for path in Vllm.preloaded()) or "nothing"
    about = {
        "llama.cpp": LLAMA_CPP,
        "vLLM": f"{VLLM} over {VLLM_TORCH}, preloaded: {preloaded}",
        "measured ceilings": ", ".join(f"{name} {figure:.2f}" for name, figure in ceilings.items()),
    }
    if quick:
        about["a quick run"] = "these figures say that everything works, and nothing else"
    return describe(**about)


def measure(peers: list[Peer], report: Report, prompts: Prompts, parts: set[str], work: Work, rounds: int) -> None:
    others, started, busiest = Others(), time.perf_counter(), 0.0
    for number, peer in turns(peers, rounds):
        print(f"round {number} of {rounds}: {peer.name}", flush=True)
        take_turn(number, peer, parts, work, prompts, report.figures)
        busy = others.share()
        busiest = max(busy, busiest)
        if busy > QUIET_SHARE:
            print(f"  meanwhile {busy:.0%} of the cores were busy with something else", flush=True)
        minutes = (time.perf_counter() - started) / 60
        report.facts["rounds"] = (
            f"{number} in {minutes:.0f} minutes; others kept at most {busiest:.0%} of the cores busy"
        )
        report.write()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(SHORT_NAMES)
    parser.add_argument("--only", nargs="+", choices=SHORT_NAMES, default=list(SHORT_NAMES), metavar="NAME", help=names)
    parts = ", ".join(PARTS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=parts)
    parser.add_argument("--rounds", type=int, help=f"of everything (default {ROUNDS}; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a short run that only shows that all works")
    parser.add_argument("--prepare", action="store_true", help="only set up the peers and their models")
    parser.add_argument("--output", type=Path, default=BENCH / "results", help="folder for table, plot and JSON")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # and the contestants with it
    names = [name for short, name in SHORT_NAMES.items() if short in arguments.only]
    rounds = arguments.rounds or (1 if arguments.quick else ROUNDS)
    checkpoint = resolve(ModelConfig())
    prompts, figures = Prompts(checkpoint), Figures()
    print("preparing", flush=True)
    peers = enter(names, checkpoint.path, prompts, figures)
    if not arguments.prepare:
        report = Report(arguments.output, names, facts(arguments.quick), figures)
        try:
            measure(peers, report, prompts, set(arguments.parts), QUICK if arguments.quick else Work(), rounds)
        finally:
            for peer in peers:
                peer.stop()
        print(f"\n{report.text()}\nwritten to {arguments.output}")
    if figures.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
