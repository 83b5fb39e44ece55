"""octavo beside transformers: same machine, same weights in bfloat16, same prompts, one run.

The contestants live in processes of their own and take turns (A B, B A, A B …), so that a slow minute of the machine
hits both. Reported are medians, and the median ratio of the rounds with the lowest and the highest.

    make bench                                   the embedded SmolLM2-135M-Instruct
    make bench ARGS="--model FOLDER_OR_GGUF --rounds 5 --output-json result.json"
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from figures import OCTAVO, Figures, Row, table
from machine import QUIET_SHARE, Others, describe
from measurements import Prompts, turns
from processes import Contestant, Server, octavo_serve

from octavo.checkpoint import resolve
from octavo.config import ModelConfig

TRANSFORMERS = "transformers"
NAMES = (OCTAVO, TRANSFORMERS)
SHORTEST, LONGEST = 16, 64  # tokens of a prompt that is continued
PREFILL = 1000
NEW_TOKENS = 128
AGREEMENT = 8


@dataclass(frozen=True)
class Case:
    """`calls` calls one after the other, each with `sequences` prompts."""

    row: Row
    sequences: int
    prompt_tokens: tuple[int, int]
    new_tokens: int
    calls: int = 1

    def tokens(self) -> int:
        """What the rate counts: output tokens, or the prompt's where nothing else is computed."""
        each = self.new_tokens if self.new_tokens > 1 else self.prompt_tokens[0]
        return each * self.sequences * self.calls

    def draw(self, prompts: Prompts) -> list[list[int]]:
        shortest, longest = self.prompt_tokens
        return prompts.draw([shortest + index * 7 % (longest - shortest + 1) for index in range(self.sequences)])


ONE_PROMPT = Case(Row("1", "1 sequence, output tok/s"), 1, (SHORTEST, LONGEST), NEW_TOKENS)
CASES = [
    ONE_PROMPT,
    Case(Row("8", "8 sequences, output tok/s"), 8, (SHORTEST, LONGEST), NEW_TOKENS),
    Case(Row("32", "32 sequences, output tok/s"), 32, (SHORTEST, LONGEST), NEW_TOKENS),
    Case(Row("prefill", f"prefill of {PREFILL:,} tokens, tok/s"), 1, (PREFILL, PREFILL), 1, calls=3),
]
READY = Row("ready", "start to ready, s", less_is_better=True, digits=1)
FIRST = Row("first", "start to first token, s", less_is_better=True, digits=1)
MEMORY_FIRST = Row("memory first", "memory after the first token, MiB", less_is_better=True)
MEMORY_ALL = Row("memory all", "memory after all sequences, MiB", less_is_better=True)
ROWS = [*(case.row for case in CASES), READY, FIRST, MEMORY_FIRST, MEMORY_ALL]


@dataclass
class Agreement:
    """How many sequences began with the same tokens from both: a check that both run the same model."""

    same: int = 0
    all: int = 0

    def count(self, ours: list[list[int]], theirs: list[list[int]]) -> None:
        self.same += sum(a[:AGREEMENT] == b[:AGREEMENT] for a, b in zip(ours, theirs, strict=True))
        self.all += len(ours)

    def __str__(self) -> str:
        return f"{self.same} of {self.all} sequences began with the same {AGREEMENT} tokens from both"


class Measurement:
    """Figures as they come, each said when it is there."""

    def __init__(self) -> None:
        self.figures, self.agreement = Figures(), Agreement()
        self.others, self.busiest = Others(), 0.0

    def record(self, row: Row, name: str, number: int, figure: float) -> None:
        self.figures.add(row.key, name, number, figure)
        print(f"  {row.title}, {name}: {figure:,.{row.digits}f}", flush=True)

    def listen(self) -> None:
        """Ask what others did to the machine since the last time."""
        self.busiest = max(self.busiest, busy := self.others.share())
        if busy > QUIET_SHARE:
            print(f"  meanwhile {busy:.0%} of the cores were busy with something else", flush=True)

    def case(self, case: Case, contestants: dict[str, Contestant], prompts: Prompts, rounds: int) -> None:
        for contestant in contestants.values():  # warm up: code, caches, memory
            contestant.ask(prompts=case.draw(prompts), max_tokens=min(4, case.new_tokens))
        asked = [[case.draw(prompts) for _ in range(case.calls)] for _ in range(rounds)]
        outputs: dict[str, list[list[int]]] = {name: [] for name in contestants}
        for number, name in turns(NAMES, rounds):
            calls = asked[number - 1]
            replies = [contestants[name].ask(prompts=call, max_tokens=case.new_tokens) for call in calls]
            self.record(case.row, name, number, case.tokens() / sum(reply["seconds"] for reply in replies))
            outputs[name] += [output for reply in replies for output in reply["outputs"]]
        self.agreement.count(outputs[OCTAVO], outputs[TRANSFORMERS])
        self.listen()

    def cases(self, model: Path, prompts: Prompts, rounds: int) -> None:
        contestants = {name: Contestant(name, model) for name in NAMES}
        try:
            for contestant in contestants.values():
                contestant.read()
            for case in CASES:
                self.case(case, contestants, prompts, rounds)
            for name, contestant in contestants.items():
                self.memory(MEMORY_ALL, name, 1, contestant)
        finally:
            for contestant in contestants.values():
                contestant.stop()

    def start(self, name: str, number: int, model: Path, prompt: list[int]) -> None:
        """Process start to ready and to the first token: `octavo serve` against loading in transformers."""
        process = Server(octavo_serve(model, "--dtype", "bfloat16")) if name == OCTAVO else Contestant(name, model)
        try:
            if isinstance(process, Server):
                process.wait_ready()
            else:
                process.read()
            self.record(READY, name, number, process.age())
            if isinstance(process, Server):
                process.first_token(prompt)
            else:
                process.ask(prompts=[prompt], max_tokens=1)
            self.record(FIRST, name, number, process.age())
            self.memory(MEMORY_FIRST, name, number, process)
        finally:
            process.stop()

    def memory(self, row: Row, name: str, number: int, process: Server | Contestant) -> None:
        if (mib := process.memory_mib()) is not None:
            self.record(row, name, number, mib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or .gguf file; none: the embedded SmolLM2-135M-Instruct")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of each measurement (default 3)")
    parser.add_argument("--output-json", type=Path, help="also write every figure here")
    arguments = parser.parse_args()

    checkpoint = resolve(ModelConfig(model=arguments.model))
    here = describe(transformers=version("transformers"))
    print(", ".join(f"{key} {value}" for key, value in here.items()))
    print(f"{checkpoint.name} in bfloat16, {arguments.rounds} rounds", flush=True)
    prompts, measurement = Prompts(checkpoint), Measurement()
    measurement.cases(checkpoint.path, prompts, arguments.rounds)
    for number, name in turns(NAMES, arguments.rounds):
        measurement.start(name, number, checkpoint.path, ONE_PROMPT.draw(prompts)[0])
    measurement.listen()

    figures = measurement.figures
    print(f"\n{table(figures, ROWS, NAMES)}\n\n{measurement.agreement}")
    warning = ": measure again on a quiet machine" if measurement.busiest > QUIET_SHARE else ""
    print(f"others kept at most {measurement.busiest:.0%} of the cores busy{warning}")
    if arguments.output_json:
        result = {
            "machine": here,
            "model": checkpoint.name,
            "figures": figures.all,
            "ratios": {row.key: figures.ratios(row, TRANSFORMERS) for row in ROWS},
            "agreement": asdict(measurement.agreement),
            "busy_share_of_others": measurement.busiest,
        }
        arguments.output_json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
