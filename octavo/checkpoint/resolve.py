"""From what a user typed to files: nothing (the embedded model), a path, an embedded model's name or a hub id."""

from __future__ import annotations

from pathlib import Path

from octavo.checkpoint import embedded, folder, hub
from octavo.checkpoint.checkpoint import Checkpoint
from octavo.config import ModelConfig
from octavo.errors import CheckpointError


def resolve(model: ModelConfig) -> Checkpoint:
    """The checkpoint `model` names, downloaded first if need be. Raises CheckpointError saying what to do."""
    if model.model is None:
        return _embedded(embedded.DEFAULT, embedded.DEFAULT.name, model)
    path = Path(model.model).expanduser()
    if model.model and _exists(path):
        return folder.open_path(path, folder.name_of(path), model.load_format)
    if (known := embedded.EMBEDDED.get(model.model.lower())) is not None:
        return _embedded(known, model.model, model)
    if (hub_id := hub.parse(model.model)) is None:
        raise CheckpointError(f"{model.model!r}: no such file or folder, and not the form of a hub id (org/name)")
    return _from_hub(hub_id, model)


def name_of(model: ModelConfig) -> str:
    """What clients call the model, known before anything is looked for: the name that its checkpoint will have."""
    if model.model is None:
        return embedded.DEFAULT.name
    path = Path(model.model).expanduser()
    return folder.name_of(path) if model.model and _exists(path) else model.model


def _embedded(known: embedded.EmbeddedModel, name: str, model: ModelConfig) -> Checkpoint:
    return embedded.with_advice(folder.open_path(embedded.fetch(known), name, model.load_format), known)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or not a name a file can have
        return False


def _from_hub(hub_id: hub.HubId, model: ModelConfig) -> Checkpoint:
    name = model.model or hub_id.repo
    if model.load_format == "gguf" and hub_id.file is None:
        raise CheckpointError(f"a hub repository may hold many GGUF files; name one as {hub_id.repo}:FILE.gguf")
    weights = () if model.load_format == "dummy" else hub.WEIGHT_FILES
    patterns = (*hub.CONFIG_FILES, *hub.TOKENIZER_FILES, *weights)
    try:
        root = hub.download(hub_id, patterns, revision=model.revision, cache=model.download_dir)
    except CheckpointError as error:
        if "/" in hub_id.repo:
            raise
        own = ", ".join(known.name for known in embedded.EMBEDDED.values())
        raise CheckpointError(
            f"{name!r} is no file or folder here and none of octavo's own models ({own}); as a hub id: {error.message}"
        ) from None
    if hub_id.file is not None:
        return folder.open_path(root / hub_id.file, name, model.load_format)
    if model.load_format in ("auto", "safetensors") and not any(root.glob("*.safetensors")):
        raise CheckpointError(
            f"{hub_id.repo} has no safetensors weights. If it has GGUF files, name one as {hub_id.repo}:FILE.gguf; "
            "octavo does not open pickles (*.bin), which can run code"
        )
    return folder.open_path(root, name, model.load_format)
