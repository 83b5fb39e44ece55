"""Formats of tool calls: what each reads, that cutting a text changes nothing, and that no text is lost or refused."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from formats import KNOWN, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.api.reading import Piece, Reading, Text
from octavo.api.tool_calls import NAMES, tool_format
from octavo.config import ToolCallParser

Read = tuple[str, str, list[tuple[str, str]]]  # content, reasoning, calls with their arguments


def pieces(name: str, cuts: list[str]) -> list[Piece]:
    text = Text()
    reading = Reading(text, tool_format(name).read(text, KNOWN))
    return [piece for cut in cuts for piece in reading.feed(cut)] + reading.finish()


def folded(found: list[Piece]) -> Read:
    said = {"content": "", "reasoning": ""}
    calls: list[tuple[str, str]] = []
    for kind, text in found:
        if kind == "call":
            calls.append((text, ""))
        elif kind == "arguments":
            calls[-1] = (calls[-1][0], calls[-1][1] + text)
        else:
            said[kind] += text
    return said["content"], said["reasoning"], calls


def read(name: str, *cuts: str) -> Read:
    return folded(pieces(name, list(cuts)))


def calls(name: str, text: str) -> list[tuple[str, str]]:
    return read(name, text)[2]


def test_configuration_lists_the_formats() -> None:
    assert set(get_args(ToolCallParser)) == {"auto", *NAMES} == {"auto", *TEXTS}


@pytest.mark.parametrize("name", NAMES)
def test_every_format_reads_its_calls(name: str) -> None:
    content, reasoning, found = read(name, TEXTS[name])
    assert content == ("" if name == "llama3_json" else "Let me see.")
    assert reasoning == ""
    assert [(call, json.loads(arguments)) for call, arguments in found] == [
        ("weather", {"city": "Köln", "days": 2}),
        ("time", {}),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_arguments_come_while_they_are_written(name: str) -> None:
    text = TEXTS[name]
    text = text[: text.index("Köln") + 5].rstrip("'\"<")
    found = pieces(name, [text])
    assert Piece("call", "weather") in found
    held_to_the_end_of_an_argument = name in ("pythonic", "qwen3_coder", "minimax_m2", "glm45")
    assert ("Köln" in folded(found)[2][0][1]) is not held_to_the_end_of_an_argument


def mixed() -> st.SearchStrategy[str]:
    """Texts of marks, calls and anything."""
    marks = [mark for name in NAMES for mark in tool_format(name).markers]
    scraps = [text[start : start + 40] for text in TEXTS.values() for start in range(0, len(text), 11)]
    words = ["{", "}", "[", "]", '"', "'", "\\", ",", ":", "(", ")", "```", "```json\n", "weather", "time(", " ", "\n",
             '{"name": "', '"arguments": ', '{"name": "time", "arguments": {}}', "functions.time", "true", "\x00", "é",
             *TEXTS.values()]  # fmt: skip
    return st.lists(st.sampled_from([*marks, *scraps, *words]) | st.text(max_size=5), max_size=12).map("".join)


DROPS_MARKS = {"deepseek_v3", "kimi_k2", "openai", "pythonic"}  # those around calls, also where there is none


@settings(max_examples=150, deadline=None)
@given(text=mixed(), data=st.data())
@pytest.mark.parametrize("name", NAMES)
def test_any_text_read_in_any_pieces_says_the_same(name: str, text: str, data: st.DataObject) -> None:
    whole = read(name, text)
    assert read(name, *text) == whole
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    assert read(name, *(text[start:end] for start, end in zip([0, *places], [*places, None], strict=True))) == whole
    if not whole[2] and name not in DROPS_MARKS:
        assert whole[0] == text
    for _, arguments in whole[2]:
        arguments.encode()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "plain words, (brackets) [and] {braces}",
        "  \n white space around \n ",
        '{"name": "unknown", "arguments": {}}',
        '{"city": "Paris", "weather": 3}',
        "```json\n{}\n```",
        "a < b, <tool",
        "[weather",
        "",
    ],
)
def test_what_is_no_call_stays_as_it_is(name: str, text: str) -> None:
    assert read(name, *text) == (text, "", [])


@pytest.mark.parametrize("name", sorted(set(NAMES) - DROPS_MARKS))
def test_a_mark_that_begins_no_call_stays_as_it_is(name: str) -> None:
    for mark in {mark for each in NAMES for mark in tool_format(each).markers}:
        for text in (mark, mark + mark, mark + " ", f"{mark},"):
            assert read(name, *text) == (text, "", [])


@pytest.mark.parametrize("name", NAMES)
def test_a_flood_of_beginnings_is_read_in_one_go(name: str) -> None:
    """Nothing is read twice, whatever the text begins and does not end."""
    marks = tool_format(name).markers
    for flood in (
        *marks,
        *(mark + '{"arguments": ' for mark in marks),
        '{"name": {',
        "[" * 7,
        '{"function": ',
        "`" * 3,
    ):
        text = flood * (30_000 // len(flood))
        content, reasoning, _ = read(name, text)
        assert len(content) + len(reasoning) <= len(text)


def test_what_is_held_back_has_a_bound_and_is_given_back() -> None:
    long = "<tool_call>" + " " * 70_000 + '{"name": "time", "arguments": {}}</tool_call>'
    assert read("hermes", long) == (long, "", [])
    assert read("hermes", *long) == (long, "", [])


@pytest.mark.parametrize("beginning", ["", "<|python_tag|>"])
def test_a_flood_of_white_space_is_content(beginning: str) -> None:
    flood = beginning + " " * 70_000 + "{}"
    assert read("llama3_json", flood) == (flood, "", [])


# ---------------------------------------------------------------------- JSON calls


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"name": "f"}', [("f", "{}")]),
        ('{"name": "f", "arguments": null}', [("f", "{}")]),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', [("f", '{"a": 1}')]),
        ('{"id": 7, "name": "f", "extra": [{"}": 1}], "arguments": {"a": "}"}, "z": 0}', [("f", '{"a": "}"}')]),
        ('{"name": "f", "arguments": {"a": "line\nbreak\ttab"}}', [("f", '{"a": "line\\nbreak\\ttab"}')]),
        ('{"name": "f", "arguments": {"a": "\\\n"}}', [("f", '{"a": "\\n"}')]),
        ('{"name": "f", "arguments": {"a": 1}}}}', [("f", '{"a": 1}')]),
        ('[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', [("f", "{}"), ("g", "{}")]),
        ('{"function": {"name": "f", "arguments": {}}}', [("f", "{}")]),
        ('{"name": "\\ud800", "arguments": {}}', []),
        ('{"name": "", "arguments": {}}', []),
        ('{"arguments": {}}', []),
        ('{"name": "f" "arguments": {}}', []),
    ],
)
def test_json_calls(text: str, found: list[tuple[str, str]]) -> None:
    assert calls("hermes", f"<tool_call>{text}</tool_call>") == found


def test_a_call_that_is_cut_off_has_the_arguments_so_far() -> None:
    assert calls("hermes", '<tool_call>{"name": "f", "arguments": {"a": [1, "b') == [("f", '{"a": [1, "b')]
    assert read("hermes", '<tool_call>{"name": "f", "argum') == ('<tool_call>{"name": "f", "argum', "", [])


def test_a_call_after_a_broken_one_is_read() -> None:
    text = '<tool_call>{"name": 3}</tool_call>\n<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    assert read("hermes", text) == ('<tool_call>{"name": 3}</tool_call>', "", [("g", "{}")])


def test_what_follows_a_call_and_is_none_stays_as_it_is() -> None:
    text = '{"name": "time", "parameters": {}}'
    assert read("llama3_json", text + "; hello") == ("; hello", "", [("time", "{}")])
    assert read("llama3_json", text + " ; " + text) == ("", "", [("time", "{}")] * 2)


# ---------------------------------------------------------------------- other formats


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("'it\\'s'", "it's"),
        ('"a\\n\\x41\\u00e9"', "a\nAé"),
        ("'''say \"it's\" '''", 'say "it\'s" '),
        ("(1, 2.5, -3)", [1, 2.5, -3]),
        ("{'a': [True, None, false],}", {"a": [True, None, False]}),
        ("''", ""),
        ("', ]'", ", ]"),
        ("__import__('os')", "__import__('os')"),
        ("1 + 1", "1 + 1"),
        ("'\\ud800'", "\ud800"),
        ("float('nan')", "float('nan')"),
        ("-Infinity", "-Infinity"),
        ("[1e999]", "[1e999]"),
        ("[" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000),
    ],
)
def test_python_arguments(literal: str, value: object) -> None:
    ((name, arguments),) = calls("pythonic", f"[weather({literal}, days = 2)]")
    assert name == "weather"
    assert json.loads(arguments) == {"city": value, "days": 2}


def test_tagged_arguments_have_the_types_of_the_schema() -> None:
    def argument(key: str, value: str) -> object:
        text = f"<function=weather><parameter={key}>\n{value}\n</parameter></function>"
        ((_, arguments),) = calls("qwen3_coder", text)
        return json.loads(arguments)[key]

    assert argument("city", "12") == "12"
    assert argument("days", "12") == 12
    assert argument("days", "soon") == "soon"
    assert argument("other", '{"a": [1]}') == {"a": [1]}
    assert argument("other", "True") is True
    assert argument("city", "a <b>bold</b>\n\n") == "a <b>bold</b>\n\n"


def test_harmony_has_reasoning_of_its_own() -> None:
    text = (
        "<|channel|>analysis<|message|>Hm. {x}<|end|><|start|>assistant<|channel|>commentary to=functions.time "
        "<|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>final<|message|>Noon."
    )
    assert read("openai", text) == ("Noon.", "Hm. {x}", [("time", "{}")])


# ---------------------------------------------------------------------- which format


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '<tool_call>\\n<function=' }}", "qwen3_coder"),
        ("[TOOL_CALLS]", "mistral"),
        ("<|python_tag|>", "llama3_json"),
        ("<|start|>assistant<|channel|>final", "openai"),
        ("no tools", "generic"),
        (None, "generic"),
    ],
)
def test_the_template_tells_the_format(template: str | None, name: str) -> None:
    assert tool_format("auto", template) is tool_format(name)
    assert tool_format("mistral", template) is tool_format("mistral")
