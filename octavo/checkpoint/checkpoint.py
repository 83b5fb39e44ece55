"""What a model name became: files on disk, their format and the model's configuration.

Torch-free, so the process that speaks HTTP knows config, tokenizer and template without loading a tensor library.
Knows nothing of model families: whether a configuration can be served is the registry's question.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from octavo.errors import CheckpointError
from octavo.request import Pooling

Format = Literal["safetensors", "gguf", "dummy"]

_MAX_JSON_BYTES = 64 << 20
_MAX_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePooling:
    """How the model was trained to make vectors of texts; None where its files do not say."""

    pooling: Pooling | None = None
    normalize: bool | None = None
    longest: int | None = None  # tokens of a text


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model that can be opened: everything named here exists on this machine."""

    name: str  # the default served name: a hub id, or a local file's or folder's own name
    path: Path  # a folder, or a .gguf file
    format: Format
    config: dict[str, Any]  # in the shape of a Hugging Face config.json, always with "model_type"
    generation_config: dict[str, Any] = field(default_factory=dict)
    pooling: SentencePooling = SentencePooling()


def shown(value: Any) -> str:
    """A name or number out of a stranger's file, short enough for one line of an error."""
    if isinstance(value, str) and len(value) > _MAX_SHOWN:
        return f"{value[:_MAX_SHOWN]!r}..."
    return repr(value)[:_MAX_SHOWN] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError, naming the file, for anything else, NaN and Infinity too."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number JSON knows")

    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: larger than {_MAX_JSON_BYTES >> 20} MiB, which no configuration is")
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """A model's config.json, with "model_type". Raises CheckpointError."""
    config = read_json(path)
    if "auto_map" in config:
        raise CheckpointError(
            f"{path}: asks for Python code of its own (auto_map), which octavo never runs; use a checkpoint of a "
            "model family that octavo knows"
        )
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError(f'{path}: has no "model_type"; is it the config.json of a transformers model?')
    return config
