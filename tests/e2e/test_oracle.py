"""The real models against transformers in float32: same log-probabilities of prompts, same greedy tokens."""

from __future__ import annotations

import pytest
import torch
from oracle import Oracle

from octavo import LLM, SamplingParams
from octavo.request import RequestOutput

#: Five times the largest difference seen (gemma3, 6e-5; smollm2, 3e-5): it hardly changes with the number of threads or
#: the instruction set, and is as large when the oracle computes in float64. Angles of 12 bits make it 2e-3.
ROUNDING = 3e-4
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees Celsius because",
    "Q: What is 17 + 25?\nA:",
    "Die Hauptstadt von Österreich heißt",
    "1, 1, 2, 3, 5, 8, 13,",
    "The three most important inventions of the 19th century were 🚂, ☎️ and",
]


def prompt_logprobs(output: RequestOutput) -> list[float]:
    return [
        entry[token].logprob
        for token, entry in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    ]


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
@pytest.mark.filterwarnings("ignore")  # the oracle's own
def test_64_greedy_tokens_on_8_prompts(name, request):
    path = request.getfixturevalue(name).path
    llm = LLM(str(path), dtype="float32", max_model_len=512)
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True, prompt_logprobs=0)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    llm.close()
    oracle = Oracle(path)
    for output in outputs:
        prompt = output.prompt_token_ids
        assert len(output.outputs[0].token_ids) == 64
        assert oracle.check_greedy(prompt, output.outputs[0].token_ids) <= 6
        logprobs = oracle.logits(prompt, len(prompt) - 1).log_softmax(-1)
        expected = logprobs.gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
        assert prompt_logprobs(output) == pytest.approx(expected, abs=ROUNDING, rel=0)
