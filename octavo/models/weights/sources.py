"""One way into every format: a source yields Hugging Face tensor names and tensors, one at a time, in file order."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from octavo.checkpoint import Checkpoint
from octavo.layers.quantization.packed import QuantizedRows
from octavo.models.weights.gguf import gguf_tensors
from octavo.models.weights.safetensors import safetensors_tensors

Source = Iterator[tuple[str, Tensor | QuantizedRows]]


def open_source(checkpoint: Checkpoint, quantized: bool = False) -> Source:
    """The checkpoint's weights; none for a dummy one, whose values the loader makes up.

    With `quantized`, matrices that can be multiplied as they are stored are not turned into numbers. Raises
    CheckpointError naming file and tensor, some of them only while iterating.
    """
    match checkpoint.format:
        case "gguf":
            return gguf_tensors(checkpoint, quantized)
        case "safetensors":
            return safetensors_tensors(checkpoint)
        case "dummy":
            return iter(())
