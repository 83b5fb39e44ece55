"""What can be said of a model from its headers alone: sizes, types, template, licence. No weight is read.

Numbers come from the tensors themselves, not from names. Families need not be known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.checkpoint.checkpoint import Checkpoint, read_json
from octavo.checkpoint.folder import chat_template
from octavo.checkpoint.gguf import GGUFFile, TensorInfo
from octavo.checkpoint.safetensors import read_header, weight_files
from octavo.errors import CheckpointError

_MAX_README_BYTES = 1 << 20
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len")

#: llama.cpp's numbers for its mixtures (general.file_type).
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """The tensors that are stored in one way."""

    type: str  # F32, BF16, Q4_K, ...
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    name: str
    format: str
    architecture: str  # such as LlamaForCausalLM
    family: str  # such as llama
    parameters: int
    quantization: str  # the file's own word for it, else the type of most bytes
    kinds: tuple[Kind, ...]  # the largest first
    context: int | None  # tokens the model was made for
    width: int | None  # of its hidden states
    layers: int | None
    template: str | None  # Jinja
    license: str | None
    files: tuple[tuple[Path, int], ...]  # with their sizes
    sampling: dict[str, Any]  # defaults that its author recommends

    @property
    def size(self) -> int:
        return sum(size for _, size in self.files)


def describe(checkpoint: Checkpoint) -> Description:
    """Raises CheckpointError if the files contradict themselves."""
    text = checkpoint.config.get("text_config")
    config = {**checkpoint.config, **(text if isinstance(text, dict) else {})}
    architectures = checkpoint.config.get("architectures")
    is_gguf = checkpoint.path.suffix == ".gguf"
    about = _about_gguf(checkpoint.path) if is_gguf else _about_folder(checkpoint)
    infos: list[TensorInfo] = about.pop("tensors")
    kinds = _kinds(infos)
    return Description(
        name=checkpoint.name,
        format=checkpoint.format,
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "unknown",
        family=str(checkpoint.config["model_type"]),
        parameters=sum(kind.parameters for kind in kinds),
        quantization=about.pop("quantization") or (kinds[0].type if kinds else "none"),
        kinds=kinds,
        context=_whole(config, *_CONTEXT),
        width=_whole(config, "hidden_size", "n_embd"),
        layers=_whole(config, "num_hidden_layers", "n_layer"),
        sampling=dict(checkpoint.generation_config),
        **about,
    )


def tensor_table(checkpoint: Checkpoint) -> list[TensorInfo]:
    """Every tensor that the weight files hold. Raises CheckpointError."""
    if checkpoint.path.suffix == ".gguf":
        return list(GGUFFile(checkpoint.path).tensors.values())
    return [info for file in weight_files(checkpoint.path)[0] for info in read_header(file).values()]


def _about_gguf(path: Path) -> dict[str, Any]:
    file = GGUFFile(path)
    template, license_name = (file.metadata.get(key) for key in ("tokenizer.chat_template", "general.license"))
    file_type = file.metadata.get("general.file_type")
    return {
        "tensors": list(file.tensors.values()),
        "quantization": _FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
        "template": template if isinstance(template, str) else None,
        "license": license_name if isinstance(license_name, str) else None,
        "files": ((path, path.stat().st_size),),
    }


def _about_folder(checkpoint: Checkpoint) -> dict[str, Any]:
    folder = checkpoint.path
    tokenizer = folder / "tokenizer_config.json"
    return {
        "tensors": [] if checkpoint.format == "dummy" else tensor_table(checkpoint),
        "quantization": None,
        "template": chat_template(folder, read_json(tokenizer) if tokenizer.is_file() else {}),
        "license": _license(folder),
        "files": tuple((path, path.stat().st_size) for path in sorted(folder.iterdir()) if path.is_file()),
    }


def _kinds(infos: Iterable[TensorInfo]) -> tuple[Kind, ...]:
    of_type: dict[str, list[TensorInfo]] = {}
    for info in infos:
        of_type.setdefault(info.type, []).append(info)
    kinds = [
        Kind(name, len(group), sum(info.values for info in group), sum(info.nbytes for info in group))
        for name, group in of_type.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: (-kind.bytes, kind.type)))


def _whole(config: dict[str, Any], *names: str) -> int | None:
    for name in names:
        if type(value := config.get(name)) is int:
            return value
    return None


def _license(folder: Path) -> str | None:
    """What the head of a model card says, else that there is a text."""
    card = folder / "README.md"
    try:
        if card.is_file() and card.stat().st_size <= _MAX_README_BYTES:
            head = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text(encoding="utf-8"), re.DOTALL)
            found = re.search(r"^license:\s*[\"']?([\w.+-]+)", head[1], re.MULTILINE) if head else None
            if found:
                return found[1]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{card}: cannot be read: {error}") from None
    texts = sorted(path.name for path in folder.glob("LICENSE*"))
    return f"see {texts[0]}" if texts else None
