"""A real browser in front of a real server with a scripted engine. Everything else of a test is what a person does.

A page that complains on its console, breaks its own policy or asks another server for anything fails its test.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Browser, ConsoleMessage, Page, Request

sys.path += [str(Path(__file__).parent.parent / folder) for folder in ("api", "qa")]

MOST_SECONDS = 120  # of a test: a bound, not an expectation
FLAGS = [
    "--no-sandbox",  # the tests open no page but ours, and may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_WATCH_POLICY = "addEventListener('securitypolicyviolation', (e) => console.error('policy: ' + e.violatedDirective))"


def find_browser() -> str:
    names = (os.environ.get("BROWSER", ""), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if found is None:
        pytest.exit("these tests need Chromium: apt-get install chromium, or BROWSER=path/to/chrome", 2)
    return found


@dataclass
class Visit:
    """A page that is open, and what it has complained about."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    expected: str = ""  # a complaint with these words is part of the test

    def complain(self, words: str) -> None:
        if not self.expected or self.expected not in words:
            self.complaints.append(words)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complain(message.text)

    def see(self, request: Request) -> None:
        if not request.url.startswith(self.url.split("/", 3)[2].join(("http://", "/"))):
            self.complain(f"asked {request.url}")

    async def open(self, view: str = "chat") -> Page:
        """The page with its models loaded."""
        await self.page.goto(f"{self.url}#{view}")
        await self.page.wait_for_selector("#model:not([disabled])")
        return self.page


class Stage:
    """One browser for all tests, and a loop that it shares with the servers they start."""

    def __init__(self, runner: asyncio.Runner, browser: Browser) -> None:
        self._runner = runner
        self._browser = browser

    @asynccontextmanager
    async def visit(self, url: str, expected: str = "", **options: Any) -> AsyncIterator[Visit]:
        context = await self._browser.new_context(**options)
        await context.add_init_script(_WATCH_POLICY)
        page = await context.new_page()
        visit = Visit(page, url, expected=expected)
        page.on("console", visit.hear)
        page.on("pageerror", lambda error: visit.complain(str(error)))
        page.on("request", visit.see)
        try:
            yield visit
        finally:
            await context.close()
        assert visit.complaints == []

    def run(self, play: Callable[[], Awaitable[None]]) -> None:
        self._runner.run(asyncio.wait_for(play(), MOST_SECONDS))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    from playwright.async_api import async_playwright

    path = find_browser()
    with asyncio.Runner() as runner:
        driver = runner.run(async_playwright().start())
        browser = runner.run(driver.chromium.launch(executable_path=path, args=FLAGS))
        yield Stage(runner, browser)
        runner.run(browser.close())
        runner.run(driver.stop())
