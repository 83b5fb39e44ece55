"""LLM's own part: what it shows while a batch runs, and its sleep."""

from __future__ import annotations

import io
import sys

import pytest

from octavo.checkpoint import Checkpoint
from octavo.engine.llm import LLM
from octavo.errors import Asleep, InvalidRequest
from octavo.request import CompletionOutput, RequestOutput, SamplingParams


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


@pytest.mark.parametrize("backend", ["uni", "mp"])
def test_a_model_that_slept_says_the_same(smollm2: Checkpoint, backend: str) -> None:
    llm = LLM(device="cpu", num_gpu_blocks_override=8, distributed_executor_backend=backend)
    params = SamplingParams(temperature=0.0, max_tokens=8)
    prompt = "Octavos are made of sheets that are folded three times, and a quarto of those folded twice."
    said = llm.generate(prompt, params, use_tqdm=False)[0]
    assert llm.generate(prompt, params, use_tqdm=False)[0].num_cached_tokens == 16
    for level in (1, 2):
        llm.sleep(level)
        llm.sleep(level)
        with pytest.raises(Asleep, match="wake_up"):
            llm.generate(prompt, params, use_tqdm=False)
        llm.wake_up()
        llm.wake_up()
        again = llm.generate(prompt, params, use_tqdm=False)[0]
        assert again.outputs[0].text == said.outputs[0].text
        assert again.num_cached_tokens == 0
    with pytest.raises(InvalidRequest, match="level"):
        llm.sleep(0)
    llm.llm_engine.add_request("r", prompt, params)
    with pytest.raises(InvalidRequest, match="unfinished"):
        llm.sleep()
    llm.close()
