"""Models and tokenizers on the Hugging Face hub, fetched with its own library into its own cache.

Only safetensors, GGUF (on request), JSON and tokenizer files are ever asked for: no pickles, no Python.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo import env
from octavo.checkpoint.progress import Progress, Report
from octavo.errors import CheckpointError

CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "modules.json",  # and below: how vectors are made of texts
    "sentence_bert_config.json",
    "*_Pooling/config.json",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)
ABOUT_FILES = ("README.md", "LICENSE*")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
_ELSEWHERE = ("*[!g]/*", "consolidated*.safetensors")  # other formats of the same weights; but not 1_Pooling/

_NAME = r"[A-Za-z0-9][\w.-]{0,95}"


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository and, if one was named (org/name:file.gguf), a GGUF file in it."""

    repo: str
    file: str | None = None


def parse(name: str) -> HubId | None:
    """ "gpt2", "org/name", "org/name:file.gguf" or "org/name/file.gguf"; None for anything that cannot be a hub id."""
    match = re.fullmatch(rf"({_NAME}/{_NAME})[:/]([\w./-]+\.gguf)", name)
    if match is not None:
        return None if ".." in match[2].split("/") else HubId(match[1], match[2])
    if name.endswith((".gguf", ".json", ".safetensors")):
        return None
    return HubId(name) if re.fullmatch(rf"{_NAME}(/{_NAME})?", name) else None


def of_ollama(name: str) -> str:
    """To follow an error about a name without an owner, which may be meant as one of Ollama's."""
    hint = "; names of Ollama's library are no hub ids: look for the model at the hub, where it is called org/name"
    return "" if "/" in name else hint


def download(
    hub_id: HubId,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    cache: str | None = None,
    report: Report | None = None,
) -> Path:
    """The folder of a local copy with the files that match `patterns`. Raises CheckpointError saying what to do.

    Without `report` the hub's library shows bars of its own.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = f"{hub_id.repo}{f' (revision {revision})' if revision else ''}"
    try:
        folder = snapshot_download(
            hub_id.repo,
            revision=revision,
            cache_dir=cache,
            allow_patterns=list(patterns) if hub_id.file is None else [hub_id.file],
            ignore_patterns=list(_ELSEWHERE) if hub_id.file is None else None,
            local_files_only=env.OFFLINE,
            tqdm_class=None if report is None else _reporting(report),
        )
    except LocalEntryNotFoundError:
        why = "OCTAVO_OFFLINE=1 forbids asking the hub" if env.OFFLINE else "the hub cannot be reached"
        raise CheckpointError(
            f"{wanted} is not on this machine and {why}; check the network, or give a folder or .gguf file"
        ) from None
    except (OSError, ValueError, httpx.HTTPError) as error:  # the hub's own errors are OSErrors
        raise CheckpointError(f"cannot get {wanted} from the hub: {_reason(error)}") from None
    return Path(folder)


def _reporting(report: Report) -> type[Any]:
    """A bar for the hub's library that draws nothing. Of its several, those that count bytes are told on."""
    from tqdm.std import tqdm

    bars: list[Any] = []

    class Reporting(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread of its own

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO(), "mininterval": 0})
            if options.get("unit") == "B":
                bars.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self in bars:
                report(Progress(*(int(max(getattr(bar, name) or 0 for bar in bars)) for name in ("n", "total"))))
            return None

        def display(self, *_: Any, **__: Any) -> None:
            """Nothing."""

        __hash__ = object.__hash__
        __eq__ = object.__eq__

    return Reporting


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "its owner asks users to agree to terms; do so on its page, then log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such model, or it is private (log in with `hf auth login`)"
    return str(error).strip().partition("\n")[0] or type(error).__name__
