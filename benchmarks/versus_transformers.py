"""octavo beside transformers: same machine, same weights in bfloat16, same prompts, one run.

The contestants live in processes of their own and take turns (A B, B A, A B …), so that a slow minute of the machine
hits both. Reported are medians, and the median, lowest and highest ratio of the pairs. Prompts are slices of the
LICENSE, each with a beginning of its own: nothing is ever found in a prefix cache.

    make bench                                   the embedded SmolLM2-135M-Instruct
    make bench ARGS="--model FOLDER_OR_GGUF --rounds 5 --output-json result.json"
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

from processes import QUIET_SHARE, Contestant, Others, Server, octavo_serve

from octavo.checkpoint import resolve
from octavo.config import ModelConfig

TEXT = Path(__file__).parent.parent / "LICENSE"
SHORTEST, LONGEST = 16, 64  # tokens of a prompt that is continued
PREFILL = 1000
NEW_TOKENS = 128
AGREEMENT = 8


@dataclass(frozen=True)
class Case:
    """`calls` calls one after the other, each with `sequences` prompts."""

    name: str
    sequences: int
    prompt_tokens: tuple[int, int]
    new_tokens: int
    calls: int = 1

    def tokens(self) -> int:
        """What the rate counts: output tokens, or the prompt's where nothing else is computed."""
        each = self.new_tokens if self.new_tokens > 1 else self.prompt_tokens[0]
        return each * self.sequences * self.calls


CASES = [
    Case("1 sequence, output tok/s", 1, (SHORTEST, LONGEST), NEW_TOKENS),
    Case("8 sequences, output tok/s", 8, (SHORTEST, LONGEST), NEW_TOKENS),
    Case("32 sequences, output tok/s", 32, (SHORTEST, LONGEST), NEW_TOKENS),
    Case(f"prefill of {PREFILL:,} tokens, tok/s", 1, (PREFILL, PREFILL), 1, calls=3),
]


@dataclass
class Line:
    """One measurement: pairs of figures, one pair a round."""

    name: str
    octavo: list[float] = field(default_factory=list)
    transformers: list[float] = field(default_factory=list)
    less_is_better: bool = False

    def ratios(self) -> list[float]:
        """How many times better octavo was, a round each."""
        pairs = zip(self.octavo, self.transformers, strict=True)
        return [theirs / ours if self.less_is_better else ours / theirs for ours, theirs in pairs]

    def __str__(self) -> str:
        ratios = self.ratios()
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}" if len(ratios) > 1 else ""
        ours, theirs = (
            f"{figure:,.{0 if figure >= 100 else 1}f}" for figure in map(median, (self.octavo, self.transformers))
        )
        return f"{self.name:<34} {ours:>9} {theirs:>13} {median(ratios):>8.2f}  {spread}"


class Prompts:
    """Slices of one text, no two with the same beginning."""

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = token_ids
        places = len(token_ids) - PREFILL
        assert places > 0, f"{TEXT} is too short"
        stride = next(step for step in itertools.count(37) if math.gcd(step, places) == 1)  # visits every place once
        self.starts = iter([index * stride % places for index in range(places)])

    def draw(self, case: Case) -> list[list[int]]:
        shortest, longest = case.prompt_tokens
        lengths = [shortest + index * 7 % (longest - shortest + 1) for index in range(case.sequences)]
        slices = [slice(start, start + length) for length, start in zip(lengths, self.starts, strict=False)]
        assert len(slices) == case.sequences, "the text is used up: ask for fewer rounds"
        return [self.token_ids[part] for part in slices]


def turns(rounds: int) -> Iterator[tuple[str, str]]:
    for number in range(rounds):
        yield ("octavo", "transformers") if number % 2 == 0 else ("transformers", "octavo")


def measure_start(model: Path, prompt: list[int], rounds: int, say: Callable[[str], None]) -> list[Line]:
    """Process start to ready and to the first token: `octavo serve` against loading in transformers."""
    ready = Line("start to ready, s", less_is_better=True)
    first = Line("start to first token, s", less_is_better=True)
    memory = Line("memory after the first token, MiB", less_is_better=True)

    def octavo() -> Server:
        server = Server(octavo_serve(model, "--dtype", "bfloat16"))
        server.wait_ready()
        ready.octavo.append(server.age())
        server.first_token(prompt)
        first.octavo.append(server.age())
        return server

    def transformers() -> Contestant:
        contestant = Contestant("transformers", model)
        contestant.read()
        ready.transformers.append(contestant.age())
        contestant.ask(prompts=[prompt], max_tokens=1)
        first.transformers.append(contestant.age())
        return contestant

    for names in turns(rounds):
        for name in names:
            process = octavo() if name == "octavo" else transformers()
            if (mib := process.memory_mib()) is not None:
                getattr(memory, name).append(mib)
            process.stop()
            say(f"start of {name}: {getattr(first, name)[-1]:.1f} s")
    return [ready, first, *([memory] if memory.octavo else [])]


@dataclass
class Agreement:
    """How many sequences began with the same tokens from both: a check that both run the same model."""

    same: int = 0
    all: int = 0

    def count(self, ours: list[list[int]], theirs: list[list[int]]) -> None:
        self.same += sum(a[:AGREEMENT] == b[:AGREEMENT] for a, b in zip(ours, theirs, strict=True))
        self.all += len(ours)


def measure_cases(
    contestants: dict[str, Contestant], prompts: Prompts, rounds: int, say: Callable[[str], None]
) -> tuple[list[Line], Agreement, float]:
    """The lines, how far both agree, and the largest share of the cores that others kept busy."""
    lines, agreement, others, busiest = [], Agreement(), Others(), 0.0
    for case in CASES:
        line = Line(case.name)
        lines.append(line)
        for contestant in contestants.values():  # warm up: code, caches, memory
            contestant.ask(prompts=prompts.draw(case), max_tokens=min(4, case.new_tokens))
        for names in turns(rounds):
            calls = [prompts.draw(case) for _ in range(case.calls)]
            outputs: dict[str, list[list[int]]] = {}
            for name in names:
                replies = [contestants[name].ask(prompts=call, max_tokens=case.new_tokens) for call in calls]
                outputs[name] = [output for reply in replies for output in reply["outputs"]]
                getattr(line, name).append(case.tokens() / sum(reply["seconds"] for reply in replies))
                say(f"{case.name}, {name}: {getattr(line, name)[-1]:,.1f}")
            agreement.count(outputs["octavo"], outputs["transformers"])
            busiest = max(busiest, busy := others.share())
            if busy > QUIET_SHARE:
                say(f"meanwhile {busy:.0%} of the cores were busy with something else")
    return lines, agreement, busiest


def machine() -> dict[str, str | int]:
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    versions = {name: version(name) for name in ("torch", "transformers", "octavo")}
    return {"cpu": cpu, "cores": cores, "system": platform.system(), "python": platform.python_version(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or .gguf file; none: the embedded SmolLM2-135M-Instruct")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of each measurement (default 3)")
    parser.add_argument("--output-json", type=Path, help="also write every figure here")
    arguments = parser.parse_args()

    def say(text: str) -> None:
        print(f"  {text}", flush=True)

    checkpoint = resolve(ModelConfig(model=arguments.model))
    here = machine()
    print(", ".join(f"{key} {value}" for key, value in here.items()))
    print(f"{checkpoint.name} in bfloat16, {arguments.rounds} rounds", flush=True)
    contestants = {name: Contestant(name, checkpoint.path) for name in ("octavo", "transformers")}
    try:
        for contestant in contestants.values():
            contestant.read()
        prompts = Prompts(contestants["transformers"].ask(encode=TEXT.read_text())["token_ids"])
        lines, agreement, busiest = measure_cases(contestants, prompts, arguments.rounds, say)
        weights = {name: contestant.memory_mib() for name, contestant in contestants.items()}
    finally:
        for contestant in contestants.values():
            contestant.stop()
    lines += measure_start(checkpoint.path, prompts.draw(CASES[0])[0], arguments.rounds, say)
    if weights["octavo"] and weights["transformers"]:
        name = "memory after all sequences, MiB"
        lines.append(Line(name, [weights["octavo"]], [weights["transformers"]], less_is_better=True))

    print(f"\n{'':<34} {'octavo':>9} {'transformers':>13} {'ratio':>8}  lowest–highest")
    print(*lines, sep="\n")
    print(f"{agreement.same} of {agreement.all} sequences began with the same {AGREEMENT} tokens from both")
    warning = ": measure again on a quiet machine" if busiest > QUIET_SHARE else ""
    print(f"others kept at most {busiest:.0%} of the cores busy{warning}")
    if arguments.output_json:
        result = {
            "machine": here,
            "model": checkpoint.name,
            "measurements": [{**asdict(line), "ratios": line.ratios()} for line in lines],
            "agreement": asdict(agreement),
            "busy_share_of_others": busiest,
        }
        arguments.output_json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
