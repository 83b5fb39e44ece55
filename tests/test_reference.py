"""The compatibility table is the one the code makes, and it is true of the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "docs"), str(ROOT / "tests" / "api")]

import make_reference  # noqa: E402
from fake_engine import Client, chat, completion  # noqa: E402

MESSAGES = chat()["messages"]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat(),
    "/v1/completions": completion(),
    "/v1/responses": {"model": "fake-model", "input": "Hi"},
    "/v1/messages": {"model": "fake-model", "max_tokens": 8, "messages": MESSAGES},
    "/api/chat": {"model": "fake-model", "messages": MESSAGES, "stream": False},
    "/api/generate": {"model": "fake-model", "prompt": "Hi", "stream": False},
}
ANYTHING = {"some": {"thing": ["or", "other"]}}


def fields(kind: str) -> list[tuple[str, str]]:
    """Every (path, field) of which the table says this."""
    operations = make_reference.posts()
    return [
        (service.path, name)
        for service in make_reference.services()
        for name in service.fields
        if service.path in BODIES and make_reference.fate(operations[service.path], name).kind == kind
    ]


def test_the_table_is_up_to_date() -> None:
    assert (ROOT / "docs" / "compatibility.md").read_text() == make_reference.page("compatibility.md"), "make docs"


def test_all_services_are_answered() -> None:
    assert {service.path for service in make_reference.services()} <= make_reference.posts().keys()


@pytest.mark.parametrize(("path", "name"), fields("refused"))
def test_refused_fields_are_refused(path: str, name: str) -> None:
    reply = Client().post(path, {**BODIES[path], name: ANYTHING})
    assert reply.status == 400
    assert name in reply.body.decode()


@pytest.mark.parametrize(("path", "name"), fields("ignored"))
def test_ignored_fields_are_ignored(path: str, name: str) -> None:
    assert Client().post(path, {**BODIES[path], name: ANYTHING}).status == 200


@pytest.mark.parametrize(("path", "name"), fields("supported"))
def test_supported_fields_are_read(path: str, name: str) -> None:
    """What no such field can be is refused: an ignored one would not notice."""
    nonsense = [ANYTHING, -7.5, [[[]]]]
    assert 400 in [Client().post(path, {**BODIES[path], name: value}).status for value in nonsense]
