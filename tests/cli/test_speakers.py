"""Who answers: a running server says what an engine in this program says, and its errors are sentences."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_engine import FakeEngine
from fake_server import run, serving

from octavo.cli.client import NoServer, Server
from octavo.cli.conversation import Conversation, Ended, Settings
from octavo.cli.speakers import Local, Remote
from octavo.errors import InvalidRequest, ModelNotFound, OctavoError, RequestFailed, Unauthorized


class Paper:
    """Takes down an answer."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, text: str, *, thought: bool = False) -> None:
        assert not thought
        self.text += text


async def found(port: int, key: str | None = None, name: str | None = "fake-model") -> Remote:
    return await Remote.find(Server(f"127.0.0.1:{port}", key), name)


async def ask(speaker: Any, *texts: str, system: str | None = None, **sampling: Any) -> tuple[list[str], list[Ended]]:
    conversation = Conversation(speaker, Settings(sampling), system)
    answers, ends = [], []
    for text in texts:
        paper = Paper()
        ends.append(await conversation.ask(text, paper))
        answers.append(paper.text)
    return answers, ends


def test_a_server_says_what_an_engine_here_says() -> None:
    async def scenario() -> None:
        far, near = FakeEngine(max_model_len=1000), FakeEngine(max_model_len=1000)
        async with serving(far) as (_, port):
            said = await ask(await found(port), "one", "two", system="Be kind", temperature=0.5, max_tokens=9)
        here = await ask(Local(near), "one", "two", system="Be kind", temperature=0.5, max_tokens=9)
        assert said[0] == here[0]
        for theirs, ours in zip(said[1], here[1], strict=True):
            assert (theirs.cut, theirs.prompt_tokens, theirs.output_tokens) == (
                ours.cut,
                ours.prompt_tokens,
                ours.output_tokens,
            )
            assert theirs.cut == "cut after 9 tokens; --max-tokens N or /set max_tokens N sets another limit"
            assert theirs.first_token_s is not None
            assert theirs.seconds >= theirs.first_token_s
        assert [call["prompt"] for call in far.calls] == [call["prompt"] for call in near.calls]
        assert far.calls[0]["params"].temperature == 0.5

    run(scenario)


def test_names_of_models() -> None:
    async def scenario() -> None:
        async with serving() as (_, port):
            assert (await found(port, name="FAKE-model")).name == "fake-model"
            assert (await found(port, name=None)).name == "fake-model", "the only one"
            with pytest.raises(ModelNotFound, match="it has no model 'other'; these are: fake-model"):
                await found(port, name="other")
            server = Server(f"http://127.0.0.1:{port}/v1/")
            assert await asyncio.to_thread(Remote.nearby, server, "other") is None
            near = await asyncio.to_thread(Remote.nearby, server, "Fake-Model")
            assert near is not None
            assert near.where == f"at http://127.0.0.1:{port}"

    run(scenario)


def test_keys() -> None:
    async def scenario() -> None:
        async with serving(api_key=("secret",)) as (_, port):
            with pytest.raises(Unauthorized, match="set OCTAVO_API_KEY"):
                await found(port)
            speaker = await found(port, "secret")
            assert (await ask(speaker, "Hi"))[0] == ["Hello, wörld! 0"]
            assert await asyncio.to_thread(Remote.nearby, Server(f"127.0.0.1:{port}"), "fake-model") is None

    run(scenario)


def test_without_a_chat_template_texts_are_continued() -> None:
    async def scenario() -> None:
        engine = FakeEngine(reply=lambda prompt, _: " upon")

        def render(*_: Any, **__: Any) -> str:
            raise InvalidRequest("this model has no chat template; use /v1/completions")

        engine.chat_template.render = render  # type: ignore[method-assign]
        async with serving(engine) as (_, port):
            speaker = await found(port)
            assert (await ask(speaker, "Once", "Twice"))[0] == [" upon", " upon"]
            assert not speaker.chats
        assert [call["prompt"] for call in engine.calls] == [[256, *b"Once"], [256, *b"Twice"]]

    run(scenario)


@pytest.mark.parametrize(
    ("engine", "error", "message"),
    [
        (FakeEngine(max_model_len=20), InvalidRequest, "too long"),
        (FakeEngine(error=RequestFailed("broke"), fail_after=2), RequestFailed, "broke"),
        (FakeEngine(ready=False), OctavoError, "oad"),
    ],
)
def test_refusals_are_the_servers_own_words(engine: FakeEngine, error: type[OctavoError], message: str) -> None:
    async def scenario() -> None:
        async with serving(engine) as (_, port):
            speaker = Remote(Server(f"127.0.0.1:{port}"), "fake-model")
            conversation, paper = Conversation(speaker, Settings()), Paper()
            with pytest.raises(error, match=message):
                await conversation.ask("x" * 40, paper)
            assert [each["role"] for each in conversation.messages] == (["user", "assistant"] if paper.text else [])

    run(scenario)


def test_an_answer_that_is_stopped_ends_at_the_server_too() -> None:
    async def scenario() -> None:
        engine = FakeEngine(hang_after=3)
        async with serving(engine) as (_, port):
            conversation, paper = Conversation(await found(port)), Paper()
            asking = asyncio.create_task(conversation.ask("Hi", paper))
            while len(paper.text) < 3:
                await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            while engine.running:
                await asyncio.sleep(0)
        assert conversation.messages[-1] == {"role": "assistant", "content": paper.text}

    run(scenario)


@pytest.mark.parametrize(
    ("structure", "format_"),
    [
        ({"json_object": True}, {"type": "json_object"}),
        ({"json": {"type": "object"}}, {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}),
    ],
)
def test_structures_reach_the_engine_either_way(structure: dict[str, Any], format_: dict[str, Any]) -> None:
    async def scenario() -> None:
        far, near = FakeEngine(), FakeEngine()
        async with serving(far) as (_, port):
            await (await found(port)).answer([{"role": "user", "content": "Hi"}], Settings({}, structure), Paper())
        await Local(near).answer([{"role": "user", "content": "Hi"}], Settings({}, structure), Paper())
        for engine in (far, near):
            asked = engine.calls[0]["params"].structured_outputs
            assert asked is not None
            assert {name: getattr(asked, name) for name in structure} == structure

    run(scenario)


@pytest.mark.parametrize("url", ["ftp://host", "http://", "nonsense://x", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(OctavoError, match="is not an address such as http"):
        Server(url)


def test_nobody_there() -> None:
    with pytest.raises(NoServer, match=r"no answer from a server at http://127\.0\.0\.1:1 .*octavo serve starts one"):
        Server("127.0.0.1:1").get("/v1/models")
