"""`octavo run`: words to model and prompt, and a conversation with a scripted engine."""

from __future__ import annotations

import asyncio
import builtins
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fake_engine import FakeEngine
from msgspec import structs

from octavo import env
from octavo.cli import run as command
from octavo.cli import talk as module
from octavo.cli.conversation import Conversation, Settings
from octavo.cli.flags import Parser
from octavo.cli.main import main
from octavo.cli.run import add_arguments, read_prompt, split_words
from octavo.cli.speakers import Local
from octavo.cli.talk import talk
from octavo.errors import ConfigError, EngineDead, InvalidRequest, Overloaded, RequestFailed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (None, None)),
        (["Why is the sky blue?"], (None, "Why is the sky blue?")),
        (["Hello"], (None, "Hello")),
        (["and/or what?"], (None, "and/or what?")),
        (["org/name"], ("org/name", None)),
        (["org/name:file.gguf"], ("org/name:file.gguf", None)),
        (["model.gguf"], ("model.gguf", None)),
        (["smollm2-135m-instruct"], ("smollm2-135m-instruct", None)),
        (["org/name", "Hi"], ("org/name", "Hi")),
        (["anything", "Hi"], ("anything", "Hi")),
    ],
)
def test_which_word_is_the_model(words, expected) -> None:
    assert split_words(words) == expected


def test_a_folder_that_exists_is_a_model(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_words(["mine"]) == ("mine", None)
    with pytest.raises(ConfigError, match="put the prompt in quotes"):
        split_words(["Why", "is", "it"])


@pytest.mark.parametrize(
    ("prompt", "piped", "expected"),
    [
        (None, "Hi\n", "Hi"),
        ("Sum up:", "a\nb\n", "Sum up:\n\na\nb"),
        ("Hi", "", "Hi"),
        ("Hi", "\n", "Hi"),
        ("", "text", "text"),
        ("", "", ""),
    ],
)
def test_what_is_piped_follows_the_prompt(tmp_path, monkeypatch, prompt, piped, expected) -> None:
    (tmp_path / "piped").write_text(piped)
    with open(tmp_path / "piped") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert read_prompt(None, prompt) == expected


@pytest.mark.parametrize(("flags", "said"), [(["--temperature", "-3"], "temperature must be at least 0"),
                                              (["--top-p", "2"], "top_p")])  # fmt: skip
def test_what_cannot_be_drawn_is_refused_before_anything_is_loaded(monkeypatch, capsys, flags, said) -> None:
    monkeypatch.setattr(command, "find_speaker", lambda *_: pytest.fail("a speaker was looked for"))
    assert main(["run", "--local", "Hi there", *flags]) == 1
    assert said in capsys.readouterr().err


def test_a_prompt_does_not_wait_for_an_input_that_nobody_ends(monkeypatch) -> None:
    here, there = socket.socketpair()
    with here, there, here.makefile() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        here.settimeout(0)  # reading would raise
        assert read_prompt(None, "Hi") == "Hi"


@pytest.mark.parametrize(("model", "read"), [("docs", "'docs' was read as a model, and "), (None, "")])
@pytest.mark.parametrize("closed", [False, True])
def test_nothing_to_ask_is_one_line(monkeypatch, model, read, closed) -> None:
    with open(os.devnull) as stdin:
        monkeypatch.setattr(sys, "stdin", None if closed else stdin)
        with pytest.raises(ConfigError, match=f"^{read}standard input is empty; give a prompt"):
            read_prompt(model, None)


@pytest.fixture
def runner(tmp_path, monkeypatch) -> Iterator[asyncio.Runner]:
    monkeypatch.setattr(env, "CACHE_DIR", tmp_path)
    with asyncio.Runner() as runner:
        yield runner


def with_engine(engine: FakeEngine, system: str | None = None, **sampling: float) -> Conversation:
    return Conversation(Local(engine), Settings(sampling), system)


def typing(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """What the user types; at the end, Ctrl-D."""
    pending = list(lines)

    def read(_: str = "") -> str:
        line = pending.pop(0) if pending else EOFError
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", read)


def prompts(engine: FakeEngine) -> list[str]:
    return [bytes(call["prompt"]).decode() for call in engine.calls]


def test_one_prompt_is_answered_and_nothing_else_is_printed(runner, capsys) -> None:
    engine = FakeEngine(default_sampling={"temperature": 0.3, "top_k": 5})
    conversation = with_engine(engine, "Be brief", temperature=0.0, max_tokens=50)
    assert talk(conversation, runner, "Hi") == 0
    assert capsys.readouterr() == ("Hello, wörld! 0\n", "")
    assert prompts(engine) == ["<system>Be brief<user>Hi<assistant>"]
    params = engine.calls[0]["params"]
    assert (params.temperature, params.top_k, params.max_tokens) == (0.0, 5, 50)


@pytest.mark.parametrize(
    ("max_tokens", "context", "note"),
    [(5, 128, "cut after 5 tokens; --max-tokens"), (99, 24, "context of 24 tokens is")],
)
@pytest.mark.parametrize("prompt", ["Hi", None])
def test_an_answer_that_was_cut_says_so(runner, monkeypatch, capsys, max_tokens, context, note, prompt) -> None:
    engine = FakeEngine(max_model_len=context)
    typing(monkeypatch, "Hi")
    monkeypatch.setattr(engine, "generate", cut_at_context(engine))
    assert talk(with_engine(engine, max_tokens=max_tokens), runner, prompt) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Hello\n")
    assert note in err


def cut_at_context(engine: FakeEngine):
    """A limit beyond the context is cut to it, as engines do."""
    generate = engine.generate

    def cut(prompt, params, *args, **options):
        room = min(params.max_tokens, engine.max_model_len - len(prompt))
        return generate(prompt, structs.replace(params, max_tokens=room), *args, **options)

    return cut


def test_answers_have_an_end_unless_another_is_asked_for() -> None:
    parser = Parser("octavo run", "", "")
    add_arguments(parser)
    assert parser.parse([]).max_tokens == 1024
    assert parser.parse(["--max-tokens", "7"]).max_tokens == 7


def test_nothing_typed_appears_in_an_answer(runner, monkeypatch) -> None:
    silent: list[bool] = []
    hidden = False

    @contextmanager
    def without_echo() -> Iterator[None]:
        nonlocal hidden
        hidden = True
        yield
        hidden = False

    monkeypatch.setattr(module, "without_echo", without_echo)
    monkeypatch.setattr(module, "_print", lambda text: silent.append(hidden) if text.strip() else None)
    typing(monkeypatch, "one")
    for prompt in ("Hi", None):
        talk(with_engine(FakeEngine()), runner, prompt)
    assert silent
    assert all(silent)


def test_a_conversation_remembers(runner, monkeypatch, capsys) -> None:
    engine = FakeEngine(reply=lambda prompt, _: "yes", max_model_len=1000)
    typing(monkeypatch, "one", "  ", "two", "/clear", "three", "/system Be kind", "four", "/system", "/bye", "never")
    assert talk(with_engine(engine), runner, None) == 0
    assert prompts(engine) == [
        "<user>one<assistant>",
        "<user>one<assistant>yes<user>two<assistant>",
        "<user>three<assistant>",
        "<system>Be kind<user>four<assistant>",
    ]
    out, err = capsys.readouterr()
    assert out == "yes\n" * 4
    assert "Be kind\n" in err


def test_several_lines_and_unknown_commands(runner, monkeypatch, capsys) -> None:
    engine = FakeEngine(reply=lambda prompt, _: "yes")
    typing(monkeypatch, '"""a', "b", 'c"""', "/waht", "/hlep")
    talk(with_engine(engine), runner, None)
    assert prompts(engine) == ["<user>a\nb\nc<assistant>"]
    assert "there is no command /hlep; did you mean /help?" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_not_the_program(runner, monkeypatch, capsys) -> None:
    engine = FakeEngine(max_model_len=1000)
    conversation = with_engine(engine)
    written: list[str] = []

    def interrupted(text: str) -> None:
        written.append(text)
        if "".join(written) == "Hell":
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_print", interrupted)
    typing(monkeypatch, "one", KeyboardInterrupt, "two")
    assert talk(conversation, runner, None) == 0
    assert len(engine.calls) == 2
    assert engine.running == set()
    assert len(engine.aborted) == 1
    assert prompts(engine)[1] == "<user>one<assistant>Hell<user>two<assistant>"


def test_a_refused_question_is_forgotten(runner, monkeypatch, capsys) -> None:
    engine = FakeEngine(max_model_len=60, reply=lambda prompt, _: "yes")
    typing(monkeypatch, "one", "x" * 100, "two")
    talk(with_engine(engine), runner, None)
    assert "/clear begins anew" in capsys.readouterr().err
    assert prompts(engine)[1] == "<user>one<assistant>yes<user>two<assistant>"


@pytest.mark.parametrize("error", [RequestFailed("broke"), Overloaded("full")])
def test_a_failed_answer_does_not_end_the_conversation(runner, monkeypatch, capsys, error) -> None:
    def reply(prompt: list[int], index: int) -> str:
        if b"two" in bytes(prompt):
            raise error
        return "yes"

    typing(monkeypatch, "one", "two", "three")
    engine = FakeEngine(reply=reply, max_model_len=1000)
    assert talk(with_engine(engine), runner, None) == 0
    out, err = capsys.readouterr()
    assert out == "yes\n\nyes\n\n"
    assert error.message in err
    assert prompts(engine)[2] == "<user>one<assistant>yes<user>three<assistant>"


def test_an_engine_that_died_ends_the_conversation(runner, monkeypatch) -> None:
    typing(monkeypatch, "one", "two")
    with pytest.raises(EngineDead):
        talk(with_engine(FakeEngine(error=EngineDead("gone"))), runner, None)


DOWNLOAD = """
import asyncio, os, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where whoever runs the tests ignores it
from octavo.cli.main import main
from octavo.engine.async_engine import AsyncLLMEngine

def download():
    for _ in range(100):  # one that comes while the loop goes to sleep is not heard
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.5)

async def start(config):
    await asyncio.to_thread(download)

AsyncLLMEngine.start = start
raise SystemExit(main(["run", "--local", "Hi"]))
"""


def test_ctrl_c_does_not_wait_for_a_download() -> None:
    done = subprocess.run([sys.executable, "-c", DOWNLOAD], capture_output=True, timeout=30, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_without_a_template_texts_are_continued(runner, monkeypatch, capsys) -> None:
    engine = FakeEngine(reply=lambda prompt, _: " upon")
    engine.tokenizer.chat_template = None
    typing(monkeypatch, "Once", "Twice")
    talk(with_engine(engine), runner, None)
    assert [call["prompt"] for call in engine.calls] == [[256, *b"Once"], [256, *b"Twice"]]
    assert "no chat template" in capsys.readouterr().err


def test_an_engine_that_refuses_one_prompt_is_an_error(runner, capsys) -> None:
    engine = FakeEngine(error=InvalidRequest("no"))
    with pytest.raises(InvalidRequest):
        talk(with_engine(engine), runner, "Hi")
    assert capsys.readouterr().out == ""


def test_the_only_word_of_chat_is_a_model(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(env, "OFFLINE", True)
    (tmp_path / "piped").write_text("Hi")
    with open(tmp_path / "piped") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["chat", "gpt2", "--local", "--download-dir", str(tmp_path)]) == 1
    assert "gpt2 is not on this machine" in capsys.readouterr().err
