"""A conversation on a real terminal: keys, commands, history, colour; and what is kept in files."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from terminals import Shown, on_a_terminal

from octavo.cli.conversation import Conversation, Settings
from octavo.cli.speakers import Local
from octavo.cli.talk import talk
from octavo.errors import ConfigError, OctavoError

PROGRAM = """
import asyncio, sys
from fake_engine import FakeEngine
from octavo.cli.conversation import Conversation, Settings
from octavo.cli.speakers import Local
from octavo.cli.talk import talk
engine = FakeEngine(max_model_len=4000, hang_after=int(sys.argv[2]) if sys.argv[2] else None,
                    reply=lambda prompt, _: "[" + bytes(prompt).decode().split("<user>")[-1].split("<")[0] + "]")
with asyncio.Runner() as runner:
    sys.exit(talk(Conversation(Local(engine)), runner, None, history=sys.argv[1] == "history"))
"""


def chat(home: Path, *script: tuple[str, str], history: bool = True, hang: str = "", **variables: str) -> Shown:
    places = f"{Path(__file__).parent.parent / 'api'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "OCTAVO_CACHE": str(home), "PYTHONPATH": places, "TERM": "xterm", **variables}
    command = [sys.executable, "-c", PROGRAM, "history" if history else "", hang]
    return on_a_terminal(command, list(script), env=env)


def test_texts_of_several_lines(tmp_path: Path) -> None:
    shown = chat(
        tmp_path,
        (">>> ", "one \\\n"),
        ("... ", "two\n"),
        ("two]", '"""three\n'),
        ("... ", 'four"""\n'),
        ("four]", ""),
        (">>> ", "\x04"),
    )
    assert shown.status == 0
    assert "[one \r\ntwo]" in shown.text
    assert "[three\r\nfour]" in shown.text


@pytest.mark.skipif(sys.platform == "darwin", reason="Python's readline is libedit there")
def test_alt_enter_is_a_line_end(tmp_path: Path) -> None:
    shown = chat(tmp_path, (">>> ", "one\x1b\rtwo\n"), ("two]", ""), (">>> ", "/bye\n"))
    assert "[one\r\ntwo]" in shown.text


def test_ctrl_c_stops_the_answer_and_twice_at_the_prompt_says_how_to_leave(tmp_path: Path) -> None:
    shown = chat(
        tmp_path,
        (">>> ", "long\n"),
        ("[l", "\x03"),
        (">>> ", "\x03"),
        (">>> ", "\x03"),
        ("leaves)", ""),
        (">>> ", "\x04"),
        hang="2",
    )
    assert shown.status == 0
    assert "(Ctrl-D or /bye leaves)" in shown.text


def test_the_arrow_brings_back_what_was_typed_the_time_before(tmp_path: Path) -> None:
    chat(tmp_path, (">>> ", "remember me\n"), ("me]", ""), (">>> ", "\x04"))
    kept = tmp_path / "history"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    shown = chat(tmp_path, (">>> ", "\x1b[A\n"), ("[remember me]", ""), (">>> ", "\x04"))
    assert "[remember me]" in shown.text


def test_without_history_nothing_is_kept(tmp_path: Path) -> None:
    chat(tmp_path, (">>> ", "secret\n"), ("secret]", ""), (">>> ", "\x04"), history=False)
    assert not (tmp_path / "history").exists()


def test_colour_only_where_it_is_wanted(tmp_path: Path) -> None:
    assert "\x1b[2m" in chat(tmp_path, (">>> ", "/show\n"), (">>> ", "\x04"), NO_COLOR="").text
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b[2m" not in chat(tmp_path, (">>> ", "/show\n"), (">>> ", "\x04"), **variables).text


# ------------------------------------------------------------------------------------------- without a terminal


def said(conversation: Conversation, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    pending = iter(lines)

    def typed(_: str = "") -> str:
        try:
            return next(pending)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    with asyncio.Runner() as runner:
        assert talk(conversation, runner, None, history=False) == 0


def engine(name: str = "fake-model") -> FakeEngine:
    made = FakeEngine(reply=lambda prompt, _: f"answer {bytes(prompt).count(b'<user>')}", max_model_len=4000)
    object.__setattr__(made.checkpoint, "name", name)
    return made


def test_settings(monkeypatch, capsys) -> None:
    conversation = Conversation(Local(made := engine()), Settings({"max_tokens": 99}))
    said(conversation, monkeypatch, "/set temperature 0.25", "Hi", "/set top-k = 3", "/set temperature", "Hi")
    assert [(call["params"].temperature, call["params"].top_k) for call in made.calls] == [(0.25, 0), (1.0, 3)]
    said(conversation, monkeypatch, "/set heat 1", "/set temperature hot", "/set top_p 7", "/set")
    err = capsys.readouterr().err
    assert "'heat' is no setting" in err
    assert "temperature is a number, not 'hot'" in err
    assert "top_p" in err
    assert "top_k 3, max_tokens 99; /set knows also temperature" in err


def test_retry_asks_the_same_again(monkeypatch, capsys) -> None:
    made = engine()
    conversation = Conversation(Local(made))
    said(conversation, monkeypatch, "/retry", "one", "two", "/retry")
    assert "nothing was asked yet" in capsys.readouterr().err
    assert made.calls[1]["prompt"] == made.calls[2]["prompt"]
    assert [message["content"] for message in conversation.messages] == ["one", "answer 1", "two", "answer 2"]


def test_a_saved_conversation_goes_on(monkeypatch, tmp_path: Path, capsys) -> None:
    first = Conversation(Local(engine()), Settings({"top_p": 0.5}), "Be kind")
    said(first, monkeypatch, "one", f"/save {tmp_path / 'talk.json'}")
    assert stat.S_IMODE((tmp_path / "talk.json").stat().st_mode) == 0o600
    second = Conversation(Local(made := engine()))
    said(second, monkeypatch, f"/load {tmp_path / 'talk.json'}", "two")
    assert bytes(made.calls[0]["prompt"]) == b"<system>Be kind<user>one<assistant>answer 1<user>two<assistant>"
    assert made.calls[0]["params"].top_p == 0.5
    said(second, monkeypatch, "/save", "/load nothing/here", f"/save {tmp_path}")
    err = capsys.readouterr().err
    assert "/save needs FILE" in err
    assert "nothing/here: cannot be read" in err
    assert "cannot be written" in err


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"messages": 3}', '{"messages": [{"role": "root", "content": "x"}]}', "[" * 100_000]
)
def test_files_that_are_no_conversation(tmp_path: Path, content: str) -> None:
    (tmp_path / "talk.json").write_text(content)
    conversation = Conversation(Local(engine()), system="mine")
    with pytest.raises(ConfigError, match="is not a conversation that /save wrote"):
        conversation.load(tmp_path / "talk.json")
    assert (conversation.system, conversation.messages) == ("mine", [])


def test_another_model_goes_on_where_one_was(monkeypatch, capsys) -> None:
    other = engine()

    async def find(name: str) -> Local:
        if name != "other":
            raise OctavoError(f"no {name}")
        return Local(other)

    first, ended = engine(), []

    async def shutdown() -> None:
        ended.append(True)

    monkeypatch.setattr(first, "shutdown", shutdown, raising=False)
    conversation = Conversation(Local(first), find=find)
    said(conversation, monkeypatch, "one", "/model nothing", "two", "/model other", "three")
    assert len(first.calls) == 2
    assert ended == [True]
    assert bytes(other.calls[0]["prompt"]).count(b"<user>") == 3
    assert "no nothing\n" in capsys.readouterr().err


def test_timings_are_told_when_asked_for(capsys) -> None:
    with asyncio.Runner() as runner:
        talk(Conversation(Local(engine())), runner, "Hi", verbose=True)
    out, err = capsys.readouterr()
    assert out == "answer 1\n"
    assert "answer 8 tokens at " in err
    assert "first token after " in err


def test_a_structure_from_a_file(tmp_path: Path) -> None:
    from octavo.cli.run import structure

    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"type": "object"}))
    assert structure(None, str(path)) == {"json": {"type": "object"}}
    assert structure("json", None) == {"json_object": True}
    assert structure(None, None) is None
    path.write_text("{")
    for bad, message in ((str(path), "is not JSON"), ("nothing/here", "cannot be read")):
        with pytest.raises(ConfigError, match=message):
            structure(None, bad)
