"""How a model makes vectors, read from the files beside its config.json."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from octavo.checkpoint import hub
from octavo.checkpoint.checkpoint import SentencePooling
from octavo.checkpoint.sentence import read_pooling
from octavo.errors import CheckpointError

MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "word_embedding_dimension": 8}


def write(folder: Path, pooling: Any = MEAN, *more: str, settings: Any = None) -> Path:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *((f"{place}_X", kind) for place, kind in enumerate(more))]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if settings is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


def test_a_folder_that_says_nothing(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == SentencePooling()


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (MEAN, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_modes(tmp_path: Path, pooling: Any, expected: str) -> None:
    write(tmp_path, pooling, "Normalize", settings={"max_seq_length": 99})
    assert read_pooling(tmp_path) == SentencePooling(pooling=expected, normalize=True, longest=99)


def test_without_normalization(tmp_path: Path) -> None:
    assert read_pooling(write(tmp_path)) == SentencePooling(pooling="mean", normalize=False)


@pytest.mark.parametrize(
    ("pooling", "more", "named"),
    [
        (MEAN, ["Dense"], "Dense"),
        ({"pooling_mode_max_tokens": True}, [], "pooling_mode_max_tokens"),
        ({"pooling_mode_max_tokens": True, **MEAN}, [], "mean"),
        ({}, [], "nothing"),
        ({"pooling_mode": "weightedmean"}, [], "weightedmean"),
    ],
)
def test_what_would_change_the_vector_is_refused(tmp_path: Path, pooling: Any, more: list[str], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_pooling(write(tmp_path, pooling, *more))


@pytest.mark.parametrize(
    "modules", ['{"a": 1}', "[1]", "nonsense", '[{"type": 5}]', '[{"type": "x.Pooling", "path": "../../etc"}]']
)
def test_strange_lists_of_modules_are_refused(tmp_path: Path, modules: str) -> None:
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        read_pooling(tmp_path)


@pytest.mark.parametrize("longest", [0, "x", True, 1.5])
def test_strange_lengths_are_refused(tmp_path: Path, longest: Any) -> None:
    with pytest.raises(CheckpointError, match="max_seq_length"):
        read_pooling(write(tmp_path, settings={"max_seq_length": longest}))


def test_the_hub_is_asked_for_these_files_and_no_other_folders() -> None:
    def asked(path: str) -> bool:
        allowed = any(fnmatch(path, pattern) for pattern in (*hub.CONFIG_FILES, *hub.WEIGHT_FILES))
        return allowed and not any(fnmatch(path, pattern) for pattern in hub._ELSEWHERE)

    assert asked("modules.json")
    assert asked("1_Pooling/config.json")
    assert asked("model.safetensors")
    assert not asked("onnx/model.safetensors")
    assert not asked("original/consolidated.safetensors")
