"""All figures of a run, as text for people and as JSON: written anew after every part, so a cut run is not lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .figures import Figure, Outcome, Target, part_table, target_table

MARK = "<!-- results -->"  # in the document: what lies below it is ours


@dataclass
class Report:
    machine: Mapping[str, str]
    targets: Sequence[Target]
    figures: list[Figure] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def markdown(self) -> str:
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"### {self.machine['date']}: {self.machine['GPU']}"
        yield ""
        yield "; ".join(f"{name} {value}" for name, value in self.machine.items() if name not in ("date", "GPU")) + "."
        yield "In brackets: the share of what the roofline allows, with the bandwidth and rates that this run measured."
        yield ""
        yield from target_table(self.targets, self.figures)
        for part in dict.fromkeys(figure.part for figure in self.figures):
            yield ""
            yield f"#### {part}"
            yield ""
            yield from part_table(part, self.figures)
        if missing := [each for each in self.outcomes if each.state != "done"]:
            yield ""
            yield "#### What did not come through"
            yield ""
            yield from (f"- {each.part}: {each.state}{': ' * bool(each.why)}{each.why}" for each in missing)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        everything = {
            "machine": dict(self.machine),
            "targets": [asdict(each) | {"reached": each.reached(self.figures)} for each in self.targets],
            "figures": [asdict(each) | {"fraction": each.fraction} for each in self.figures],
            "outcomes": [asdict(each) for each in self.outcomes],
        }
        (folder / "gpu.json").write_text(json.dumps(everything, indent=1, ensure_ascii=False))
        (folder / "gpu.md").write_text(self.markdown())

    def publish(self, document: Path) -> None:
        """Above what was published before."""
        head, mark, earlier = document.read_text().partition(MARK)
        assert mark, f"{document} has no line {MARK}"
        document.write_text(f"{head}{MARK}\n\n{self.markdown()}{earlier}")
