"""transformers in float32 as the oracle of greedy decoding, with ties set aside.

Where the oracle's two best logits are closer than `TIE`, float32 rounding may choose either; everywhere else our token
must be its best one, given the same tokens before it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

TIE = 1e-3


class Oracle:
    """A transformers model of a GGUF file, dequantized to float32."""

    def __init__(self, gguf: Path) -> None:
        from transformers import AutoModelForCausalLM, GgufConfig

        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        self._model = model.eval()

    @torch.inference_mode()
    def logits(self, token_ids: list[int], last: int) -> Tensor:
        """Logits that predict the last `last` tokens of the sequence, [last, vocabulary]."""
        return self._model(torch.tensor([token_ids[:-1]]), logits_to_keep=last).logits[0]

    def check_greedy(self, prompt: list[int], output: list[int]) -> int:
        """Every output token is the oracle's choice. Returns how many positions were ties."""
        logits = self.logits(prompt + output, len(output))
        best, second = logits.topk(2).values.T
        chosen = logits[torch.arange(len(output)), torch.tensor(output)]
        for position in range(len(output)):
            behind = float(best[position] - chosen[position])
            assert behind <= TIE, f"token {position}: {output[position]} is {behind:.4f} behind the oracle's best"
        return int((best - second <= TIE).sum())
