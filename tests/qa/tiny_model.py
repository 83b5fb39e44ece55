"""A whole model in half a megabyte: random weights, a byte for every token, a chat template, room for long answers.

One token is a trap: its embedding is NaN, so a request that contains it gets logits that are no numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf_files import BYTES, write_gguf

NAME = "tiny"
CONTEXT = 16384
POISON = "☠"  # any prompt with it fails inside the model
SPECIAL = ["<unk>", "<s>", "</s>"]
TOKENS = [*SPECIAL, *BYTES, "▁", POISON]
LAYERS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD = 2, 64, 4, 2, 96

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
METADATA: dict[str, Any] = {
    "llama.block_count": LAYERS,
    "llama.context_length": CONTEXT,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": FEED_FORWARD,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.scores": [0.0] * 259 + [-1.0, -2.0],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.chat_template": TEMPLATE,
}


def tensors(seed: int = 5) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return random.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)

    head = WIDTH // HEADS
    made = {
        "token_embd.weight": matrix(len(TOKENS), WIDTH) * 8,
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "output.weight": matrix(len(TOKENS), WIDTH) * 4,
    }
    for layer in range(LAYERS):
        made |= {
            f"blk.{layer}.attn_norm.weight": np.ones(WIDTH, np.float32),
            f"blk.{layer}.attn_q.weight": matrix(WIDTH, WIDTH),
            f"blk.{layer}.attn_k.weight": matrix(KV_HEADS * head, WIDTH),
            f"blk.{layer}.attn_v.weight": matrix(KV_HEADS * head, WIDTH),
            f"blk.{layer}.attn_output.weight": matrix(WIDTH, WIDTH),
            f"blk.{layer}.ffn_norm.weight": np.ones(WIDTH, np.float32),
            f"blk.{layer}.ffn_gate.weight": matrix(FEED_FORWARD, WIDTH),
            f"blk.{layer}.ffn_up.weight": matrix(FEED_FORWARD, WIDTH),
            f"blk.{layer}.ffn_down.weight": matrix(WIDTH, FEED_FORWARD),
        }
    trap = TOKENS.index(POISON)
    made["token_embd.weight"][trap] = np.nan
    made["output.weight"][[trap, *range(len(SPECIAL))]] = 0  # other tokens are always likelier: no text ends early
    return made


def write_tiny_model(folder: Path) -> Path:
    path = folder / f"{NAME}.gguf"
    write_gguf(path, metadata=METADATA, tensors=tensors())
    return path
