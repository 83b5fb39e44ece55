"""What llama.cpp calls a family's tensors and what Hugging Face calls them: one dict per family.

Names lack their last part (.weight, .bias); {} is the number of the layer. A name that maps to None is not a weight.
"""

from __future__ import annotations

import re

LLAMA: dict[str, str | None] = {
    "token_embd": "model.embed_tokens",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
    "rope_freqs": None,  # became rope_scaling in the configuration
}

QWEN2: dict[str, str | None] = LLAMA

QWEN3: dict[str, str | None] = LLAMA | {
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
}

GEMMA3: dict[str, str | None] = QWEN3 | {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}

GPT2: dict[str, str | None] = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}

BERT: dict[str, str | None] = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "blk.{}.attn_q": "encoder.layer.{}.attention.self.query",
    "blk.{}.attn_k": "encoder.layer.{}.attention.self.key",
    "blk.{}.attn_v": "encoder.layer.{}.attention.self.value",
    "blk.{}.attn_output": "encoder.layer.{}.attention.output.dense",
    "blk.{}.attn_output_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "blk.{}.ffn_up": "encoder.layer.{}.intermediate.dense",
    "blk.{}.ffn_down": "encoder.layer.{}.output.dense",
    "blk.{}.layer_output_norm": "encoder.layer.{}.output.LayerNorm",
}

#: By model_type.
GGUF_NAMES: dict[str, dict[str, str | None]] = {
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma3_text": GEMMA3,
    "gpt2": GPT2,
    "bert": BERT,
}

_GGUF_NAME = re.compile(r"(?P<stem>(?:blk\.(?P<layer>\d{1,9})\.)?\w+)\.(?P<kind>weight|bias)")


def to_huggingface(name: str, names: dict[str, str | None]) -> str | None:
    """A tensor's Hugging Face name; None if it is not a weight. Raises KeyError if the family has no such tensor."""
    match = _GGUF_NAME.fullmatch(name)
    if match is None:
        raise KeyError(name)
    layer = match["layer"]
    stem = match["stem"] if layer is None else match["stem"].replace(f"blk.{layer}.", "blk.{}.", 1)
    target = names[stem]
    return None if target is None else f"{target.format(layer)}.{match['kind']}"
