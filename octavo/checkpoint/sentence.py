"""How a model makes vectors of texts, as the files beside its config.json say (the layout of sentence-transformers).

`modules.json` lists what a text goes through: the transformer, a pooling, perhaps a normalization. Anything else would
change the vector, and is refused rather than left out. Classes are known by their names; none is ever imported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo.checkpoint.checkpoint import SentencePooling, read_json, shown
from octavo.errors import CheckpointError
from octavo.request import Pooling

_MOST_MODULES_BYTES = 1 << 20
_MODES: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


def read_pooling(folder: Path) -> SentencePooling:
    """What the folder of a model says; nothing where it is no sentence-transformers model. Raises CheckpointError."""
    settings = folder / "sentence_bert_config.json"
    longest = read_json(settings).get("max_seq_length") if settings.is_file() else None
    if longest is not None and (type(longest) is not int or longest < 1):
        raise CheckpointError(f"{settings}: max_seq_length must be a whole number, not {shown(longest)}")
    modules = folder / "modules.json"
    if not modules.is_file():
        return SentencePooling(longest=longest)
    pooling: Pooling | None = None
    normalize = False
    for kind, path in _modules(modules):
        if kind == "Pooling":
            pooling = _mode(folder / path / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise CheckpointError(
                f"{modules}: has a {shown(kind)} module; octavo knows Transformer, Pooling, Normalize"
            )
    return SentencePooling(pooling=pooling, normalize=normalize, longest=longest)


def _modules(file: Path) -> list[tuple[str, str]]:
    """Kind and folder of each."""
    try:
        if file.stat().st_size > _MOST_MODULES_BYTES:
            raise CheckpointError(f"{file}: larger than any list of modules")
        listed: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from None
    found = []
    for module in listed if isinstance(listed, list) else [None]:
        kind, path = (module.get("type"), module.get("path", "")) if isinstance(module, dict) else (None, "")
        if not isinstance(kind, str) or not isinstance(path, str) or ".." in Path(path).parts or path.startswith("/"):
            raise CheckpointError(f"{file}: must be a list of modules, each with a type and a path within the folder")
        found.append((kind.rpartition(".")[2], path))
    return found


def _mode(file: Path) -> Pooling:
    settings = read_json(file)
    if (named := settings.get("pooling_mode")) is not None:  # newer files name it
        chosen = [{"lasttoken": "last"}.get(str(named), str(named))]
    else:
        chosen = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
        chosen = [_MODES.get(name, name) for name in chosen]
    for mode in _MODES.values():
        if chosen == [mode]:
            return mode
    raise CheckpointError(
        f"{file}: pools by {shown(' + '.join(chosen) or 'nothing')}; octavo knows {', '.join(_MODES.values())}"
    )
