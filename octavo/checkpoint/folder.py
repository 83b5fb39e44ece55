"""A model on this disk: a folder, a .gguf file or, for random weights, a bare config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.checkpoint.checkpoint import Checkpoint, read_config, read_json
from octavo.checkpoint.gguf import GGUFFile
from octavo.checkpoint.gguf_config import config_from_gguf, generation_config_from_gguf, pooling_from_gguf
from octavo.checkpoint.sentence import read_pooling
from octavo.config import LoadFormat
from octavo.errors import CheckpointError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def open_path(path: Path, name: str, load_format: LoadFormat) -> Checkpoint:
    """The checkpoint at `path`, which exists. Raises CheckpointError."""
    if path.suffix == ".gguf":
        return _open_gguf(path, name, load_format)
    if path.is_dir():
        return _open_folder(path, name, load_format)
    if path.suffix == ".json" and load_format == "dummy":
        return _open_safetensors(path, name, load_format)
    if path.suffix == ".json":
        raise CheckpointError(
            f"{path}: is a configuration without weights; use --load-format dummy to make random ones"
        )
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: name the folder that holds it and its config.json instead")
    raise CheckpointError(f"{path}: is neither a folder nor a .gguf file")


def name_of(path: Path) -> str:
    """What clients call a local model: its own name, never the server's folders."""
    whole = path.resolve()
    return whole.stem if whole.suffix in (".gguf", ".json") else whole.name


def chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The file chat_template.jinja, else tokenizer_config.json's: one template or a list of named ones."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from None
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) else None


def _open_gguf(path: Path, name: str, load_format: LoadFormat) -> Checkpoint:
    if load_format == "safetensors":
        raise CheckpointError(f"{path}: is GGUF, but --load-format safetensors was asked for")
    file = GGUFFile(path)
    return Checkpoint(
        name=name,
        path=path,
        format="dummy" if load_format == "dummy" else "gguf",
        config=config_from_gguf(file),
        generation_config=generation_config_from_gguf(file),
        pooling=pooling_from_gguf(file),
    )


def _open_folder(folder: Path, name: str, load_format: LoadFormat) -> Checkpoint:
    ggufs = sorted(folder.glob("*.gguf"))
    has_config = (folder / "config.json").is_file()
    has_safetensors = any(folder.glob("*.safetensors"))
    if load_format == "gguf" or (load_format != "safetensors" and ggufs and not (has_config and has_safetensors)):
        return _open_gguf(_only(ggufs, folder), name, load_format)
    if not has_config:
        raise CheckpointError(f"{folder}: has no config.json and no .gguf file, so it is not a model octavo can read")
    if load_format != "dummy" and not has_safetensors:
        raise CheckpointError(_no_weights(folder))
    return _open_safetensors(folder / "config.json", name, load_format)


def _only(ggufs: list[Path], folder: Path) -> Path:
    if not ggufs:
        raise CheckpointError(f"{folder}: has no .gguf file")
    if len(ggufs) > 1:
        raise CheckpointError(f"{folder}: holds several GGUF files; name one: {', '.join(path.name for path in ggufs)}")
    return ggufs[0]


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if not pickles:
        return f"{folder}: has no weights (*.safetensors or *.gguf); --load-format dummy makes random ones"
    return (
        f"{folder}: its weights are Python pickles ({pickles[0]}), which can run code when opened, so octavo does not; "
        "convert them with transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
    )


def _open_safetensors(config: Path, name: str, load_format: LoadFormat) -> Checkpoint:
    generation = config.parent / "generation_config.json"
    return Checkpoint(
        name=name,
        path=config.parent,
        format="dummy" if load_format == "dummy" else "safetensors",
        config=read_config(config),
        pooling=read_pooling(config.parent),
        generation_config=read_json(generation) if generation.is_file() else {},
    )
