"""What is here: the models on this machine that octavo or the hub's library downloaded; to list, fetch and remove.

A model is a safetensors repository or one GGUF file of the hub's cache, or one of octavo's own models. Files and
folders that lie elsewhere can be served by their path and are never listed or removed. Listing reads names and sizes.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from octavo.checkpoint import embedded, folder, hub
from octavo.checkpoint.checkpoint import Checkpoint
from octavo.checkpoint.progress import Report
from octavo.checkpoint.safetensors import weight_files
from octavo.errors import CheckpointError, ModelNotFound

_REPOSITORY = "models--"
_UNFINISHED = ".incomplete"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model that a download left here."""

    name: str  # what to type to use it: org/name, org/name:FILE.gguf or an embedded model's name
    path: Path  # a snapshot's folder, or a .gguf file
    format: Literal["safetensors", "gguf"]
    source: Literal["hub", "embedded"]
    size: int  # bytes of its files on the disk
    modified: float  # seconds since 1970
    digest: str  # of the contents: SHA-256 of a GGUF file where it is known, else the commit
    complete: bool  # False: its download was cut short

    def open(self) -> Checkpoint:
        """Raises CheckpointError."""
        found = folder.open_path(self.path, self.name, "auto")
        own = embedded.EMBEDDED.get(self.name.lower()) if self.source == "embedded" else None
        return embedded.with_advice(found, own) if own else found


def stored(cache: Path | None = None) -> list[StoredModel]:
    """Every model here, the newest first. `cache`: another folder than the hub's own cache."""
    found = [*_embedded(), *_of_hub(_hub_cache(cache))]
    return sorted(found, key=lambda model: (-model.modified, model.name))


def find(name: str, cache: Path | None = None) -> StoredModel | None:
    """The model of this name; case counts only where two names differ in nothing else."""
    models = stored(cache)
    wanted = _canonical(name)
    same = [model for model in models if model.name == wanted]
    alike = same or [model for model in models if model.name.lower() == wanted.lower()]
    return alike[0] if alike else None


def get(name: str, cache: Path | None = None) -> StoredModel:
    """As `find`. Raises ModelNotFound, naming what is here that looks alike."""
    found = find(name, cache)
    if found is not None:
        return found
    meant = _meant(name, [model.name for model in stored(cache)])
    hint = f"; did you mean {meant}?" if meant else ""
    raise ModelNotFound(f"{name!r} is not on this machine{hint} (octavo list shows what is, octavo pull fetches more)")


def _meant(typed: str, names: Sequence[str]) -> str | None:
    """The one that holds what was typed, or looks most like it; case and what owns it may be left out."""
    typed = typed.lower()
    holding = [name for name in names if len(typed) > 2 and typed in name.lower()]
    if holding:
        return min(holding, key=len)
    shorter = {part: name for name in reversed(names) for part in _parts(name.lower())}
    close = difflib.get_close_matches(typed, shorter, n=1)
    return shorter[close[0]] if close else None


def _parts(name: str) -> tuple[str, str, str]:
    """org/Name-1B: all of it, and what people remember of it."""
    title = name.split("/")[-1]
    return name, title, title.split("-")[0]


def open_here(name: str, cache: Path | None = None) -> Checkpoint:
    """A model by path or name, without any network. Raises ModelNotFound or CheckpointError."""
    path = Path(name).expanduser()
    with suppress(OSError, ValueError):  # no name that a file can have
        if name and path.exists():
            return folder.open_path(path, folder.name_of(path), "auto")
    return get(name, cache).open()


def pull(
    name: str, *, revision: str | None = None, cache: Path | None = None, report: Report | None = None
) -> StoredModel:
    """Fetch a model, or what is missing of it. Raises CheckpointError saying what to do.

    Files that are here stay; one that a lost connection cut short goes on where it was while this call lasts.
    """
    own = embedded.EMBEDDED.get(name.lower())
    if own is not None:
        embedded.fetch(own, report)
        return get(own.name)
    hub_id = hub.parse(name)
    if hub_id is None:
        form = "org/name, or org/name:FILE.gguf"
        raise CheckpointError(f"{name!r} is not the form of a hub id: {form}{hub.of_ollama(name)}")
    try:
        hub.download(
            hub_id,
            (*hub.CONFIG_FILES, *hub.TOKENIZER_FILES, *hub.WEIGHT_FILES, *hub.ABOUT_FILES),
            revision=revision,
            cache=None if cache is None else str(cache),
            report=report,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{error.message}{hub.of_ollama(name)}") from None
    found = find(name, cache)
    if found is None:
        what = f"no file {hub_id.file}" if hub_id.file else "no safetensors weights"
        raise CheckpointError(
            f"{hub_id.repo} has {what}. A GGUF file is named as {hub_id.repo}:FILE.gguf; octavo does not open pickles "
            "(*.bin), which can run code"
        )
    return found


def remove(model: StoredModel, cache: Path | None = None) -> int:
    """Delete a model's files and what only they needed; returns the bytes that became free. Raises CheckpointError."""
    try:
        if model.source == "embedded":
            if model.path.is_dir():
                shutil.rmtree(model.path)
            else:
                model.path.unlink()
            return model.size
        return _remove_from_hub(model, _hub_cache(cache))
    except OSError as error:
        raise CheckpointError(f"cannot remove {model.name}: {error}") from None


def _hub_cache(cache: Path | None) -> Path:
    if cache is not None:
        return cache.expanduser()
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _canonical(name: str) -> str:
    hub_id = hub.parse(name)
    return f"{hub_id.repo}:{hub_id.file}" if hub_id is not None and hub_id.file else name


def _embedded() -> Iterator[StoredModel]:
    for own in embedded.EMBEDDED.values():
        path = embedded.path_of(own)
        with suppress(OSError):
            size = embedded.bytes_here(own)
            yield StoredModel(
                name=own.name,
                path=path,
                format="safetensors" if own.folder else "gguf",
                source="embedded",
                size=size,
                modified=path.stat().st_mtime,
                digest=own.sha256,
                complete=size == own.size,
            )


def _of_hub(cache: Path) -> Iterator[StoredModel]:
    with suppress(OSError):  # no cache: nothing is here
        for repository in sorted(cache.glob(f"{_REPOSITORY}*")):
            with suppress(OSError):  # one that is being removed, or another user's
                yield from _of_repository(repository)


def _of_repository(repository: Path) -> Iterator[StoredModel]:
    snapshot = _snapshot(repository)
    if snapshot is None:
        return
    repo = repository.name.removeprefix(_REPOSITORY).replace("--", "/")
    ggufs = sorted(path for path in snapshot.rglob("*.gguf") if not path.name.startswith("mmproj"))
    for path in ggufs:
        if path.is_file():
            state = path.stat()
            yield StoredModel(
                name=f"{repo}:{path.relative_to(snapshot)}",
                path=path,
                format="gguf",
                source="hub",
                size=state.st_size,
                modified=state.st_mtime,
                digest=path.resolve().name if path.is_symlink() else snapshot.name,
                complete=True,
            )
    rest = [path for path in snapshot.rglob("*") if path.suffix != ".gguf" and path.is_file()]
    unfinished = any((repository / "blobs").glob(f"*{_UNFINISHED}"))
    if (snapshot / "config.json").is_file() and (unfinished or any(path.suffix == ".safetensors" for path in rest)):
        states = [path.stat() for path in rest]
        yield StoredModel(
            name=repo,
            path=snapshot,
            format="safetensors",
            source="hub",
            size=sum(state.st_size for state in states),
            modified=max(state.st_mtime for state in states),
            digest=snapshot.name,
            complete=_whole(snapshot),
        )


def _snapshot(repository: Path) -> Path | None:
    """The folder of the main branch, else the newest one."""
    snapshots = repository / "snapshots"
    with suppress(OSError, ValueError):
        main = snapshots / (repository / "refs" / "main").read_text().strip()
        if main.parent == snapshots and main.is_dir():
            return main
    if not snapshots.is_dir():
        return None
    folders = [path for path in snapshots.iterdir() if path.is_dir()]
    return max(folders, key=lambda path: path.stat().st_mtime, default=None)


def _whole(snapshot: Path) -> bool:
    try:
        weight_files(snapshot)
    except CheckpointError:
        return False
    return True


def _remove_from_hub(model: StoredModel, cache: Path) -> int:
    """Its files in every snapshot, the blobs that nothing points to any more, and what is empty then."""
    repo = model.name.partition(":")[0]
    repository = cache / (_REPOSITORY + repo.replace("/", "--"))
    if repository.is_symlink() or repository.resolve().parent != cache.resolve():
        raise CheckpointError(f"{repository}: leads out of the cache; remove it by hand")
    file = model.name.partition(":")[2]
    before = _disk_use(repository)
    for snapshot in _folders(repository / "snapshots"):
        for path in [snapshot / file] if file else [path for path in _entries(snapshot) if path.suffix != ".gguf"]:
            path.unlink(missing_ok=True)
    kept = [path for snapshot in _folders(repository / "snapshots") for path in _entries(snapshot)]
    if not any(path.suffix in (".gguf", ".safetensors") for path in kept):
        shutil.rmtree(repository)
        shutil.rmtree(cache / ".locks" / repository.name, ignore_errors=True)
        return before
    pointed = {path.resolve().name for path in kept}
    for blob in _entries(repository / "blobs"):
        if blob.name not in pointed:
            blob.unlink()
    return before - _disk_use(repository)


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()] if parent.is_dir() else []


def _entries(parent: Path) -> list[Path]:
    """Files and links below a folder; links to folders are entries, not ways."""
    if not parent.is_dir():
        return []
    return [path for path in parent.rglob("*") if path.is_symlink() or path.is_file()]


def _disk_use(parent: Path) -> int:
    return sum(path.lstat().st_size for path in _entries(parent) if not path.is_symlink())
