"""Those who ask: what they have heard so far, and whether it is what their request says alone."""

from __future__ import annotations

from octavo.engine.output import OutputKind
from octavo.request import Request, RequestOutput
from simulation.books import demand
from simulation.oracle import SPECIAL, Alone, token_bytes


class Spelling:
    """The tokenizer of the oracle's vocabulary, as far as the way out needs one."""

    special_ids = frozenset({SPECIAL})

    def token(self, token_id: int) -> str:
        return token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return token_bytes(token_id)

    def strip_start(self, raw: bytes) -> bytes:
        return raw


def pick(callers: list[Caller], number: int) -> Caller | None:
    """The caller that a `Leave` means."""
    found = callers if number >= 0 else [caller for caller in callers if caller.open]
    return found[(number if number >= 0 else -1 - number) % len(found)] if found else None


class Caller:
    """Someone who asked, what has been heard since, and whether it is over."""

    def __init__(self, request: Request, kind: OutputKind, alone: Alone) -> None:
        self.request = request
        self.alone = alone
        self.open = True
        self._kind = kind
        self._text = [""] * alone.width
        self._tokens: list[list[int]] = [[] for _ in range(alone.width)]
        self._endings: dict[int, tuple[str | None, int | str | None]] = {}

    @property
    def remaining(self) -> int:
        """Steps that its sequences need at most, each the first in line from its beginning to its end."""
        return self.alone.width * (len(self.request.prompt_token_ids) + self.request.max_tokens)

    def hear(self, report: RequestOutput) -> None:
        for part in report.outputs:
            index = part.index
            if self._kind == "delta":
                demand(index not in self._endings, "transcript", "{}[{}] after its end", report.request_id, index)
                self._text[index] += part.text
                self._tokens[index] += part.token_ids
            else:
                before = self._tokens[index]
                demand(part.token_ids[: len(before)] == before, "transcript", "{}: taken back", report.request_id)
                demand(part.text.startswith(self._text[index]), "transcript", "{}: taken back", report.request_id)
                self._text[index], self._tokens[index] = part.text, list(part.token_ids)
            if part.finish_reason is not None:
                self._endings[index] = (part.finish_reason, part.stop_reason)
        if report.finished:
            self._compare()
            self.open = False

    def check_resumed(self, request: Request) -> None:
        """A new core is told what was heard, of what has not ended."""
        for known in request.resumes or []:
            true = known.index not in self._endings
            if self._kind != "final":
                true = true and known.token_ids == self._tokens[known.index]
            demand(true, "transcript", "{}[{}] resumes after {}", request.request_id, known.index, known.token_ids)

    def _compare(self) -> None:
        """Over: everything heard is what the request says alone."""
        endings = self.alone.endings()
        demand(len(self._endings) == len(endings), "transcript", "{} ends, alone {}", len(self._endings), len(endings))
        for index, alone in enumerate(endings):
            heard = (self._tokens[index], self._text[index], *self._endings[index])
            demand(
                heard == alone,
                "transcript",
                "{}[{}]: {}, alone {}",
                self.request.request_id,
                index,
                heard,
                tuple(alone),
            )
