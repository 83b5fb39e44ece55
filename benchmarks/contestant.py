"""One contestant in a process of its own, so that two engines' threads and caches never meet.

Reads jobs as JSON lines from standard input and answers with JSON lines on standard output; the first line says that
the model is loaded. Knows nothing of rounds, medians or the other contestant.

    {"prompts": [[1, 2], [3]], "max_tokens": 8}  -> {"seconds": 0.5, "outputs": [[...], [...]]}
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Contestant(Protocol):
    version: str

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Continue every prompt greedily by exactly `max_tokens` tokens."""


class Octavo:
    def __init__(self, model: Path, dtype: str) -> None:
        import octavo

        self.version = octavo.__version__
        self.llm = octavo.LLM(model=str(model), dtype=dtype)

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        from octavo import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]


class Transformers:
    def __init__(self, model: Path, dtype: str) -> None:
        import torch
        import transformers

        self.version = transformers.__version__
        where: dict[str, Any] = {"pretrained_model_name_or_path": str(model)}
        weights: dict[str, Any] = {}
        if model.is_file():
            where = {"pretrained_model_name_or_path": str(model.parent), "gguf_file": model.name}
            weights = {"quantization_config": transformers.GgufConfig(dequantize=True)}
        self.model = transformers.AutoModelForCausalLM.from_pretrained(**where, **weights, dtype=dtype)
        kinds = {parameter.dtype for parameter in self.model.parameters()}
        assert kinds == {getattr(torch, dtype)}, f"the weights are {kinds}, not dense {dtype}"

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        import torch

        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        rows = torch.tensor([[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        outputs = self.model.generate(
            rows,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=max_tokens,
            max_new_tokens=max_tokens,
            pad_token_id=0,
        )
        continuations: list[list[int]] = outputs[:, longest:].tolist()
        return continuations


class Vllm:
    def __init__(self, model: Path, dtype: str) -> None:
        import vllm  # type: ignore[import-not-found, unused-ignore]

        self.version = vllm.__version__
        self.llm = vllm.LLM(model=str(model), dtype=dtype)

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        from vllm import SamplingParams  # type: ignore[import-not-found, unused-ignore]

        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(output.outputs[0].token_ids) for output in self.llm.generate(asked, params, use_tqdm=False)]


CONTESTANTS: dict[str, Callable[[Path, str], Contestant]] = {
    "octavo": Octavo,
    "transformers": Transformers,
    "vllm": Vllm,
}


def answer(contestant: Contestant, job: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    outputs = contestant.generate(job["prompts"], job["max_tokens"])
    seconds = time.perf_counter() - start
    assert all(len(output) == job["max_tokens"] for output in outputs), "a sequence ended early"
    return {"seconds": seconds, "outputs": outputs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("model", type=Path, help="folder or .gguf file")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()

    replies = os.fdopen(os.dup(1), "w", buffering=1)  # libraries may print: keep the replies' pipe to ourselves
    os.dup2(2, 1)
    contestant = CONTESTANTS[arguments.contestant](arguments.model, arguments.dtype)
    print(json.dumps({"version": contestant.version}), file=replies)
    for line in sys.stdin:
        print(json.dumps(answer(contestant, json.loads(line))), file=replies)


if __name__ == "__main__":
    main()
