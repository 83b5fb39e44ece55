"""LLM's own part: what it shows while a batch runs."""

from __future__ import annotations

import io
import sys

import pytest

from octavo.engine.llm import LLM
from octavo.request import CompletionOutput, RequestOutput


class OneStep:
    """An engine whose one request ends in its one step."""

    steps = 0

    def has_unfinished_requests(self) -> bool:
        return self.steps == 0

    def step(self) -> list[RequestOutput]:
        self.steps += 1
        part = CompletionOutput(index=0, text="x", token_ids=[1], finish_reason="stop")
        return [RequestOutput(request_id="0", prompt=None, prompt_token_ids=[1], outputs=[part], finished=True)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stderr", "wanted", "shown"), [(Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)]
)
def test_progress_is_shown_on_a_terminal_only(
    stderr: io.StringIO, wanted: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    llm = object.__new__(LLM)
    llm.llm_engine = OneStep()  # type: ignore[assignment]
    assert [output.request_id for output in llm._wait(["0"], wanted)] == ["0"]
    assert ("Processed prompts" in stderr.getvalue()) == shown
