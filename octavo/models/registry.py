"""From a configuration to a model: the file that builds a family is found by its `model_type`.

Refuses, before taking memory, what is unknown, unsupported or cannot be: with a CheckpointError that says what is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from octavo.checkpoint.checkpoint import shown
from octavo.errors import CheckpointError
from octavo.layers.quantization.choice import Storage, plain
from octavo.models.decoder import Decoder
from octavo.models.encoder import Encoder
from octavo.models.fields import Fields

Model = Decoder | Encoder

#: model_type → the module in this package that builds it.
FAMILIES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "gemma3_text": "gemma",
    "gpt2": "gpt2",
    "bert": "bert",
    "roberta": "bert",
    "xlm-roberta": "bert",
}
_ENCODERS = ("bert",)
_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
#: Decoders saved without what makes tokens of their hidden states: for embeddings.
_HEADLESS = (
    "LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", "Gemma2Model", "Gemma3TextModel", "GPT2Model",
)  # fmt: skip
_ENCODING = ("Model", "ForSequenceClassification", "ForMaskedLM", "ForPreTraining")


def build(config: dict[str, Any], dtype: torch.dtype, device: torch.device, storage: Storage | None = None) -> Model:
    """The model of a config (in the shape of Hugging Face's config.json), its weights not yet filled.

    storage: of its matrices; as they are, unless it is given.
    """
    _check_memory(outline(config, dtype, storage), device)
    return _build(config, storage or plain(dtype), device)


def outline(config: dict[str, Any], dtype: torch.dtype, storage: Storage | None = None) -> Model:
    """The same without memory, however large: tensors on torch's device meta have shapes only."""
    return _build(config, storage or plain(dtype), torch.device("meta"))


def _build(config: dict[str, Any], storage: Storage, device: torch.device) -> Model:
    fields, headless = _checked(config)
    module = import_module(f"octavo.models.{FAMILIES[fields.model_type]}")
    model: Model = module.build(fields, storage, device)
    if headless and isinstance(model, Decoder):
        model.tasks = ("embed",)
    return model.eval()


def _checked(config: dict[str, Any]) -> tuple[Fields, bool]:
    """The fields, and whether the checkpoint has no head."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"model_type {model_type!r} is not supported; these are: {', '.join(FAMILIES)}")
    if config.get("auto_map"):
        raise CheckpointError("the checkpoint brings its own model code (auto_map), which octavo never runs")
    if config.get("quantization_config"):
        quantization = config["quantization_config"]
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(
            f"weights quantized with {method!r} are not supported; use the unquantized checkpoint or GGUF"
        )
    names = config.get("architectures")
    if isinstance(names, list) and names and names[0] in _HEADLESS:
        return Fields({**config, "tie_word_embeddings": True}, model_type), True
    encodes = FAMILIES[model_type] in _ENCODERS
    served = _ENCODING if encodes else _GENERATIVE
    if isinstance(names, list) and names and not any(str(name).endswith(served) for name in names):
        what = "is no encoder of texts" if encodes else "does not generate text"
        raise CheckpointError(f"{shown(names[0])} {what}; octavo serves {', '.join(served)} models of this family")
    return Fields(config, model_type), False


def _check_memory(shapes: Model, device: torch.device) -> None:
    needed = sum(tensor.nbytes for tensor in (*shapes.parameters(), *shapes.buffers()))
    if device.type == "cuda":
        present = torch.cuda.get_device_properties(device).total_memory
    else:
        present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise CheckpointError(
            f"the model's weights need {needed / 2**30:.1f} GiB, but {device} has {present / 2**30:.1f} GiB of memory"
        )
