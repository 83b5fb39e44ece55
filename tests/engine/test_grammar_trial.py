"""The process that tries grammars: it is killed for taking too long or too much, and nobody else suffers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octavo.checkpoint import Checkpoint, resolve
from octavo.config import EngineConfig, ModelConfig
from octavo.engine import grammar_trial
from octavo.engine.grammar import grammar_text
from octavo.engine.grammar_trial import Trial
from octavo.errors import InvalidRequest
from octavo.request import StructuredOutputs

sys.path.append(str(Path(__file__).parent.parent / "qa"))
sys.path.append(str(Path(__file__).parent.parent))

from tiny_model import TOKENS, write_tiny_model


def text(**wishes) -> str:
    return grammar_text(StructuredOutputs(**wishes))


def chain(rules: int) -> str:
    """Without the limit on a grammar's length: a descent that no stack is deep enough for."""
    lines = "\\n".join(f"r{number}:r{number + 1}" for number in range(rules))
    return f'{{"grammars":[{{"lark_grammar":"start:r0\\n{lines}\\nr{rules}:/b/"}}]}}'


SLOW = text(grammar="start: R0\n" + "\n".join(f"R{n}: R{n + 1} R{n + 1}" for n in range(2000)) + '\nR2000: "b"')


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return resolve(ModelConfig(model=str(write_tiny_model(tmp_path_factory.mktemp("model")))))


@pytest.fixture(scope="module")
def trial(checkpoint):
    trial = Trial(EngineConfig(), checkpoint, len(TOKENS))
    yield trial
    if trial._process is not None:
        trial._stop()


def test_good_grammars_pass_and_bad_ones_are_refused_in_words(trial):
    trial.check(text(regex="[a-z]+"))
    child = trial._process.pid
    with pytest.raises(InvalidRequest, match="unclosed") as caught:
        trial.check(text(regex="("))
    assert (caught.value.param, caught.value.code) == ("structured_outputs", "invalid_value")
    assert caught.value.message.count("cannot be followed") == 1
    trial.check(text(json={"type": "object"}))
    assert trial._process.pid == child


def test_one_that_takes_too_long_is_stopped_and_the_next_is_tried_by_another(trial, monkeypatch):
    trial.check(text(regex="a"))
    child = trial._process
    monkeypatch.setattr(grammar_trial, "_PATIENCE", 0.2)
    with pytest.raises(InvalidRequest, match="takes more than"):
        trial.check(SLOW)
    assert child.poll() is not None
    monkeypatch.undo()
    trial.check(text(regex="b"))


def test_one_that_fells_its_process_is_refused(trial):
    trial.check(text(regex="a"))
    child = trial._process
    with pytest.raises(InvalidRequest, match="takes more than"):
        trial.check(chain(400_000))
    assert child.poll() is not None
    trial.check(text(regex="b"))
