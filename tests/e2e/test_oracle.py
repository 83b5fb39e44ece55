"""The real models against transformers in float32: the same greedy tokens."""

from __future__ import annotations

import pytest
from oracle import Oracle

from octavo import LLM, SamplingParams

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


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
@pytest.mark.filterwarnings("ignore")  # the oracle's own
def test_64_greedy_tokens_on_8_prompts(name, request):
    path = request.getfixturevalue(name).path
    llm = LLM(str(path), dtype="float32", max_model_len=512)
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    llm.close()
    oracle = Oracle(path)
    for output in outputs:
        prompt = output.prompt_token_ids
        assert len(output.outputs[0].token_ids) == 64
        assert oracle.check_greedy(prompt, output.outputs[0].token_ids) <= 6
