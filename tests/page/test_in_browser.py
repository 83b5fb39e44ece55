"""The page as people use it: by keyboard, with answers that stop, break, call tools or mean harm."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fake_engine import FakeEngine
from fake_server import serving
from qa_server import QaServer, serve
from tiny_model import write_tiny_model

from octavo.errors import RequestFailed

if TYPE_CHECKING:
    from conftest import Stage, Visit
    from playwright.async_api import Page, Route

pytestmark = pytest.mark.page

VIEWS = ("chat", "schema", "tools", "live")
HOSTILE = r"""
<img src=x onerror="window.harm=1"><script>window.harm=2</script>

[click](javascript:window.harm=3) [data](data:text/html,<script>window.harm=4</script>)
![seen](https://evil.example/p.png) <https://evil.example/"onclick="window.harm=5> `<b>code</b>`

```html
<iframe src=javascript:window.harm=6></iframe>
```

| <svg onload=window.harm=7> | b |
|---|---|
| <u>c</u> | d |
"""
RICH = """# Head

Text with `code`, [a link](https://example.org)

> quote

| a | b |
|--|--|
| c | d |

```py
x = 1
```
"""


def says(text: str, **options: Any) -> FakeEngine:
    return FakeEngine(reply=lambda _prompt, _index: text, max_model_len=16384, **options)


@asynccontextmanager
async def opened(stage: Stage, engine: FakeEngine, view: str = "chat", **options: Any) -> AsyncIterator[Visit]:
    """A server with this engine and its page, open."""
    flags = {name: options.pop(name) for name in ("api_key", "admin_port") if name in options}
    async with serving(engine, **flags) as (_, port), stage.visit(f"http://127.0.0.1:{port}/", **options) as visit:
        await visit.open(view)
        yield visit


async def ask(page: Page, text: str) -> None:
    await page.locator("#chat-input").press_sequentially(text)
    await page.keyboard.press("Enter")


async def is_whole(page: Page) -> None:
    await page.wait_for_selector("#view-chat [role=log][aria-busy=false]")


async def until(page: Page, condition: str) -> None:
    while not await page.evaluate(condition):  # the page's policy forbids what `wait_for_function` does
        await asyncio.sleep(0.02)


# ---------------------------------------------------------------------- chat


def test_a_chat_by_keyboard_alone(stage: Stage) -> None:
    async def play() -> None:
        engine = says("An **octavo** has\n\n1. eight leaves")
        async with opened(stage, engine) as visit:
            page = visit.page
            assert await page.evaluate("document.activeElement.id") == "chat-input"
            await page.keyboard.type("One line")
            await page.keyboard.press("Shift+Enter")
            await page.keyboard.type("and another")
            await page.keyboard.press("Enter")
            await is_whole(page)
            assert await page.locator("article.user .said").inner_text() == "One line\nand another"
            assert await page.locator("article.assistant strong").inner_text() == "octavo"
            assert await page.locator("article.assistant li").inner_text() == "eight leaves"
            assert await page.locator("#conversations li").count() == 1
            assert await page.evaluate("document.activeElement.id") == "chat-input"
            assert re.search(r"\d+ tokens", await page.locator("article.assistant .actions").inner_text())

            await page.keyboard.press("ArrowUp")  # the last message, said otherwise
            await page.keyboard.press("Control+a")
            await page.keyboard.type("Again")
            await page.keyboard.press("Enter")
            await is_whole(page)
            assert await page.locator("article.user .said").all_inner_texts() == ["Again"]
            await page.get_by_role("button", name="Regenerate").press("Enter")
            await is_whole(page)
            assert await page.evaluate("document.activeElement.role") == "log"  # the button is gone, the place is not
            assert len(engine.calls) == 3

            await page.keyboard.press("Alt+Shift+N")
            assert await page.locator("article").count() == 0
            await ask(page, "Other")
            await is_whole(page)
            await visit.open()
            assert await page.locator("#conversations li").count() == 2
            await page.locator("#conversations button").nth(2).press("Enter")
            assert await page.locator("article.user .said").all_inner_texts() == ["Again"]
            await page.get_by_role("button", name="Delete “Other”").press("Enter")
            assert await page.locator("#conversations li").count() == 1

    stage.run(play)


def test_escape_stops_an_answer_and_frees_the_engine(stage: Stage) -> None:
    async def play() -> None:
        engine = says("x" * 5000, step_seconds=0.01)
        async with opened(stage, engine) as visit:
            page = visit.page
            await ask(page, "Go")
            await until(page, "document.querySelector('article.assistant > .said')?.textContent.length > 3")
            assert await page.get_by_role("button", name="Stop").is_visible()
            await page.keyboard.press("Escape")
            await is_whole(page)
            while not engine.aborted:
                await asyncio.sleep(0.01)
            assert "Stopped" in await page.locator("article.assistant .actions").inner_text()
            assert await page.get_by_role("button", name="Send").is_visible()
            assert await page.evaluate("document.activeElement.id") == "chat-input"

    stage.run(play)


def test_a_hostile_answer_stays_text(stage: Stage) -> None:
    async def play() -> None:
        async with opened(stage, says(HOSTILE)) as visit:
            page = visit.page
            await ask(page, "<script>window.harm=8</script>")
            await is_whole(page)
            log = page.locator("#view-chat [role=log]")
            text = await log.inner_text()
            for piece in ("<img src=x", "<script>window.harm=2</script>", "<b>code</b>", "<iframe", "<svg", "harm=8"):
                assert piece in text
            assert await log.locator("img, script, iframe, svg, b, u, object, embed, form").count() == 0
            links = await log.locator("a").evaluate_all("each => each.map((a) => a.protocol)")
            assert set(links) <= {"https:"}
            attributes = await log.evaluate("(e) => [...e.querySelectorAll('*')].flatMap((x) => x.getAttributeNames())")
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            assert await page.evaluate("window.harm") is None

    stage.run(play)


def test_an_error_is_told_with_its_request(stage: Stage) -> None:
    async def play() -> None:
        engine = says("Hello", error=RequestFailed("the model tripped"), fail_after=3)
        async with opened(stage, engine) as visit:
            page = visit.page
            await ask(page, "Hi")
            await is_whole(page)
            words = await page.locator("article.assistant .error").inner_text()
            assert "the model tripped" in words
            assert re.search(r"Request [0-9a-f]{32}", words)
            engine.error = None
            await page.get_by_role("button", name="Try again").press("Enter")
            await page.wait_for_selector("article.assistant .said:has-text('Hello')")
            assert await page.locator(".error").count() == 0

    stage.run(play)


def test_settings_go_with_the_request(stage: Stage) -> None:
    async def play() -> None:
        engine = says("ok")
        async with opened(stage, engine) as visit:
            page = visit.page
            await page.keyboard.press("Alt+Shift+S")
            for label, value in (("System prompt", "Be brief"), ("Temperature", "0.5"), ("Top k", "7"), ("Seed", "11")):
                await page.get_by_label(label).fill(value)
            await page.get_by_label("Stop at").fill("END\n###")
            await page.keyboard.press("Escape")
            await ask(page, "Hi")
            await is_whole(page)
            params = engine.calls[0]["params"]
            assert (params.temperature, params.top_k, params.seed, params.stop) == (0.5, 7, 11, ["END", "###"])
            assert "Be brief" in engine.tokenizer.decode(engine.calls[0]["prompt"])

    stage.run(play)


def test_a_key_is_asked_for_and_forgotten_with_the_tab(stage: Stage) -> None:
    async def play() -> None:
        engine = says("ok")
        async with (
            serving(engine, api_key=("sk-right",)) as (_, port),
            stage.visit(f"http://127.0.0.1:{port}/", expected="401") as visit,
        ):
            page = visit.page
            await page.goto(visit.url)
            await page.get_by_label("API key").fill("sk-wrong")
            await page.keyboard.press("Enter")
            await page.get_by_text("That key was not accepted.").wait_for()
            await page.get_by_label("API key").fill("sk-right")
            await page.keyboard.press("Enter")
            await page.wait_for_selector("#model:not([disabled])")
            await ask(page, "Hi")
            await is_whole(page)
            assert len(engine.calls) == 1
            assert "sk-right" not in await page.evaluate("JSON.stringify({ ...localStorage })")

    stage.run(play)


def test_below_a_path(stage: Stage) -> None:
    """As behind a proxy that strips `/llm`."""

    async def play() -> None:
        async with serving(says("ok"), root_path="/llm") as (_, port):

            async def strip(route: Route) -> None:
                await route.continue_(url=route.request.url.replace("/llm/", "/", 1))

            async with stage.visit(f"http://127.0.0.1:{port}/llm/") as visit:
                await visit.page.route("**/llm/**", strip)
                await visit.open()
                await ask(visit.page, "Hi")
                await is_whole(visit.page)
                assert await visit.page.locator("article.assistant .said").last.inner_text() == "ok"

    stage.run(play)


# ---------------------------------------------------------------------- reasoning and tools, as events of the API


def stream(*deltas: dict[str, Any]) -> str:
    choices = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    events = [json.dumps({"choices": choice}) for choice in choices]
    return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])


@asynccontextmanager
async def scripted(stage: Stage, view: str, *streams: str) -> AsyncIterator[tuple[Page, list[dict[str, Any]]]]:
    """The page with a server that answers so, one stream after the other, and the bodies it was sent."""
    bodies: list[dict[str, Any]] = []

    async def answer(route: Route) -> None:
        bodies.append(json.loads(route.request.post_data or ""))
        await route.fulfill(body=streams[len(bodies) - 1], content_type="text/event-stream")

    async with opened(stage, says(""), view) as visit:
        await visit.page.route("**/v1/chat/completions", answer)
        yield visit.page, bodies


def test_reasoning_is_folded(stage: Stage) -> None:
    async def play() -> None:
        answer = stream({"reasoning_content": "Let me "}, {"reasoning_content": "think"}, {"content": "Yes"})
        async with scripted(stage, "chat", answer, stream({"content": "Again"})) as (page, bodies):
            await ask(page, "Really?")
            await is_whole(page)
            assert not await page.get_by_text("Let me think").is_visible()
            await page.get_by_text("Reasoning").press("Enter")
            assert await page.get_by_text("Let me think").is_visible()
            await ask(page, "Sure?")
            await page.get_by_text("Again").wait_for()
            assert await page.get_by_text("Let me think").is_visible()  # what was unfolded stays so
            assert bodies[1]["messages"][1] == {"role": "assistant", "content": "Yes"}

    stage.run(play)


def test_a_tool_call_is_shown_and_answered(stage: Stage) -> None:
    async def play() -> None:
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
        parts = [{"index": 0, "function": {"arguments": part}} for part in ('{"city": ', '"Lisbon"}')]
        calls = stream({"tool_calls": [call]}, *({"tool_calls": [part]} for part in parts))
        async with scripted(stage, "tools", calls, stream({"content": "Sunny"})) as (page, bodies):
            await page.get_by_label("The model").select_option("required")
            await page.get_by_role("button", name="Ask").press("Enter")
            await page.get_by_label("What get_weather returns").fill('{"sky": "clear"}')
            assert '"city": "Lisbon"' in await page.locator(".call pre").inner_text()
            await page.get_by_role("button", name="Return it and go on").press("Enter")
            await page.get_by_text("Sunny").wait_for()
            assert [body["tool_choice"] for body in bodies] == ["required", "auto"]
            assert bodies[0]["tools"][0]["function"]["name"] == "get_weather"
            function = {"name": "get_weather", "arguments": '{"city": "Lisbon"}'}
            _, asked, returned = bodies[1]["messages"]
            assert asked["tool_calls"] == [{"id": "call_1", "type": "function", "function": function}]
            assert returned == {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "clear"}'}

    stage.run(play)


# ---------------------------------------------------------------------- schemas


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ('{"name": "Ada", "age": 36, "languages": []}', "Follows the schema."),
        ('{"name": "Ada", "age": 360, "languages": []}', "must be at most 130"),
        ('{"name": "Ada', "The answer is no JSON."),
    ],
)
def test_an_answer_is_checked_against_its_schema(stage: Stage, answer: str, verdict: str) -> None:
    async def play() -> None:
        async with scripted(stage, "schema", stream({"content": answer})) as (page, bodies):
            area = page.get_by_label("JSON schema")
            schema = json.loads(await area.input_value())
            await area.fill("{")
            assert await page.get_by_text("This is no JSON").is_visible()
            await area.fill(json.dumps(schema))
            await page.get_by_role("button", name="Ask").press("Enter")
            await page.locator("#schema-result").get_by_text(verdict).wait_for()
            assert bodies[0]["response_format"]["json_schema"]["schema"] == schema

    stage.run(play)


# ---------------------------------------------------------------------- live


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QaServer]:
    model = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    flags = ("--max-model-len", "8192", "--kv-cache-memory", "8MiB")
    with serve(model, tmp_path_factory.mktemp("server"), *flags) as server:
        yield server


PAINTED = """() => {
  const canvas = document.getElementById("pages");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const wanted = getComputedStyle(document.querySelector(".legend .used")).backgroundColor.match(/\\d+/g).map(Number);
  for (let i = 0; i < pixels.length; i += 4) if (wanted.every((value, j) => pixels[i + j] === value)) return true;
  return false;
}"""


def test_the_live_view_shows_what_runs(stage: Stage, tiny_server: QaServer) -> None:
    async def play() -> None:
        async with stage.visit(f"http://127.0.0.1:{tiny_server.port}/") as visit:
            page = await visit.open()
            await ask(page, "Tell me everything")
            await page.keyboard.press("Alt+Shift+4")
            row = page.locator("#live-requests tr", has_text="running")
            await row.wait_for()
            assert (await row.locator("td").first.inner_text()).startswith("chatcmpl-")
            await until(page, f"({PAINTED})()")
            assert re.search(r"\d+ pages of \d+ tokens: [1-9]\d* used", await page.locator("#pages-text").inner_text())
            await page.keyboard.press("Alt+Shift+1")
            await page.keyboard.press("Escape")
            await is_whole(page)
            await page.keyboard.press("Alt+Shift+4")
            await page.get_by_text("Nothing to do.").wait_for()

    stage.run(play)


# ---------------------------------------------------------------------- everybody


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_every_view_is_accessible_and_fits(stage: Stage, theme: str, width: int) -> None:
    from axe_playwright_python.async_playwright import Axe

    async def play() -> None:
        engine = says(RICH)
        size = {"width": width, "height": 800}
        async with opened(stage, engine, color_scheme=theme, viewport=size, reduced_motion="reduce") as visit:
            page = visit.page

            async def check(place: str) -> None:
                found = await Axe().run(page, options={"resultTypes": ["violations"]})
                problems = [
                    (each["id"], [node["html"][:120] for node in each["nodes"]])
                    for each in found.response["violations"]
                ]
                assert problems == [], place
                overflow = await page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
                assert overflow <= 0, place

            await check("empty")
            await ask(page, "Hi")
            await is_whole(page)
            await check("answer")
            for view in VIEWS[1:]:
                await page.goto(f"{visit.url}#{view}")
                if view == "live":
                    await page.wait_for_selector("#live-figures dd")
                await check(view)
            for opener in ("#open-settings", "#open-help"):
                await page.click(opener)
                await check(opener)
                await page.keyboard.press("Escape")
                assert await page.evaluate("document.activeElement.id") == opener[1:]
            moving = "document.getAnimations().length"
            assert await page.evaluate(moving) == 0

    stage.run(play)


def test_the_theme_can_be_changed_and_is_kept(stage: Stage) -> None:
    async def play() -> None:
        paper = "getComputedStyle(document.body).backgroundColor"
        async with opened(stage, says("ok"), color_scheme="light") as visit:
            page = visit.page
            light = await page.evaluate(paper)
            await page.get_by_role("button", name="Change to the dark theme").press("Enter")
            dark = await page.evaluate(paper)
            assert dark != light
            await visit.open()
            assert await page.evaluate(paper) == dark
            await page.get_by_role("button", name="Change to the light theme").press("Enter")
            assert await page.evaluate(paper) == light
            assert await page.evaluate("localStorage.getItem('octavo.theme')") is None

    stage.run(play)


FOCUS = """() => {
  const focused = document.activeElement;
  const drawn = focused.id === "chat-input" ? focused.parentElement : focused;
  const { outlineStyle, outlineWidth } = getComputedStyle(drawn);
  return [focused.dataset?.mark, outlineStyle !== "none" && parseFloat(outlineWidth) > 0];
}"""


@pytest.mark.parametrize("view", VIEWS)
def test_tab_reaches_everything_and_shows_where_it_is(stage: Stage, view: str) -> None:
    async def play() -> None:
        async with opened(stage, says("ok"), view) as visit:
            page = visit.page
            wanted = await page.evaluate(
                """() => [...document.querySelectorAll('a[href], button, select, input, textarea, [tabindex="0"]')]
                     .filter((e) => e.checkVisibility() && !e.disabled && e.tabIndex >= 0)
                     .map((e, i) => (e.dataset.mark = i, i))"""
            )
            await page.evaluate("document.activeElement.blur()")
            reached = set()
            for _ in range(len(wanted) + 2):
                await page.keyboard.press("Tab")
                mark, ring = await page.evaluate(FOCUS)
                if mark is not None:
                    reached.add(int(mark))
                    assert ring, await page.evaluate("document.activeElement.outerHTML")
            assert reached == set(wanted)

    stage.run(play)
