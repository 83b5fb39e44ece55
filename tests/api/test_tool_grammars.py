"""Grammars of tool calls: whatever they let a model write is read as calls whose arguments follow their schemas."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, TagTemplate, chat

from octavo.api.reading import Reading, Text
from octavo.api.tool_calls import NAMES, tool_format
from octavo.api.tool_calls.format import Lark
from octavo.config import EngineConfig
from octavo.engine.grammar import grammar_text
from octavo.engine.guidance import Grammars
from octavo.request import StructuredOutputs

URL = "/v1/chat/completions"
_ENDING = frozenset(b'"}]<')
WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "$defs": {"city": {"enum": ["Köln", 'a "b"\n', "</tool_call>"]}},
}
KNOWN: dict[str, dict[str, Any]] = {"weather": WEATHER, "time.now": {}}


@dataclass
class ByteVocabulary:
    """A token a byte, and one for each special text."""

    specials: tuple[str, ...] = ()

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(range(256, self.vocab_size))

    @property
    def eos_token_ids(self) -> list[int]:
        return [self.vocab_size - 1]

    @property
    def vocab_size(self) -> int:
        return 256 + len(self.specials) + 1

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else (*self.specials, "<eos>")[token_id - 256].encode()

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [256 + self.specials.index(text)] if text in self.specials else list(text.encode())


def matching(vocabulary: ByteVocabulary, grammar: str) -> Any:
    grammars = Grammars(lambda: vocabulary, vocabulary.vocab_size)
    return grammars.compile(grammar_text(StructuredOutputs(grammar=grammar))).matcher.deep_copy()


def accepts(grammar: str, text: str) -> bool:
    matcher = matching(ByteVocabulary(), grammar)
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


def written(vocabulary: ByteVocabulary, grammar: str, seed: int) -> str:
    """A text that the grammar lets a model write, the model having no idea but to come to an end."""
    matcher, chance, text = matching(vocabulary, grammar), random.Random(seed), b""
    (end,) = vocabulary.eos_token_ids
    for _ in range(2000):
        mask = matcher.compute_bitmask()
        allowed = [each for each in range(vocabulary.vocab_size) if mask[each // 8] >> each % 8 & 1]
        ending = [each for each in allowed if each in _ENDING or each >= 256]
        token = chance.choice(ending if ending and chance.random() < 0.5 else allowed)
        if token == end:
            return text.decode()
        text += vocabulary.token_bytes(token)
        assert matcher.consume_token(token)
    raise AssertionError(f"no end: {text[-200:]!r}")


def read(name: str, text: str) -> tuple[str, list[tuple[str, Any]]]:
    stream = Text()
    reading = Reading(stream, tool_format(name).read(stream, KNOWN))
    said, calls = "", []
    for kind, piece in (*reading.feed(text), *reading.finish()):
        if kind == "content":
            said += piece
        elif kind == "call":
            calls.append([piece, ""])
        else:
            calls[-1][1] += piece
    return said, [(call, json.loads(arguments)) for call, arguments in calls]


def check(calls: list[tuple[str, Any]]) -> None:
    for name, arguments in calls:
        if name == "time.now":
            assert arguments == {}
            continue
        assert name == "weather"
        assert arguments.pop("city") in WEATHER["$defs"]["city"]["enum"]
        assert arguments.pop("days", 1) in range(1, 10)
        assert arguments == {}


def has_grammar(name: str) -> bool:
    return tool_format(name).grammar(Lark(ByteVocabulary(), KNOWN, parallel=True)) is not None


def test_formats_with_grammars() -> None:
    assert {name for name in NAMES if not has_grammar(name)} == {"pythonic", "qwen3_coder", "minimax_m2", "glm45"}


@pytest.mark.parametrize("special", [False, True], ids=["text", "special"])
@pytest.mark.parametrize("name", list(filter(has_grammar, NAMES)))
def test_what_a_grammar_allows_is_read_as_calls(name: str, special: bool) -> None:
    form = tool_format(name)
    vocabulary = ByteVocabulary(form.markers if special else ())
    several = 0
    for parallel in (False, True):
        lark = Lark(vocabulary, KNOWN, parallel=parallel)
        grammar = lark.grammar(f"{form.grammar(lark)}")
        for seed in range(24):
            text = written(vocabulary, grammar, seed)
            content, calls = read(name, text)
            assert content == "", text
            check(calls)
            assert len(calls) == 1 or (parallel and calls)
            several += len(calls) > 1
    assert several or name == "openai"  # whose turns end with a call


# ---------------------------------------------------------------------- through /v1/chat/completions

TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in KNOWN.items()]


class ThinkingTemplate(TagTemplate):
    source = "{{ tools }} <think>"

    def render(self, messages, *, opened=False, **kwargs) -> str:
        return super().render(messages, **kwargs) + "<think>" * opened


def asked(template: Any = None, config: dict[str, Any] | None = None, **fields: Any) -> str | None:
    """The grammar that the engine is asked to follow."""
    engine = FakeEngine(max_model_len=8192, config=EngineConfig.of(**(config or {})))
    engine.chat_template = template or TagTemplate()
    reply = Client(engine).post(URL, chat(**{"tools": TOOLS, **fields}))
    assert reply.status == 200, reply.body
    structure = engine.calls[0]["params"].structured_outputs
    return structure and structure.grammar


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "time.now"}),
        ({"type": "function", "function": {"name": "time.now"}}, {"time.now"}),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"function": {"name": "weather"}}]}},
         {"weather"}),
    ],
)  # fmt: skip
def test_required_calls_are_constrained(choice: Any, names: set[str]) -> None:
    grammar = asked(tool_choice=choice)
    assert grammar is not None
    found = set()
    for seed in range(12):
        _, calls = read("generic", written(ByteVocabulary(), grammar, seed))
        check(calls)
        found |= {name for name, _ in calls}
    assert found == names


@pytest.mark.parametrize("fields", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}])
def test_what_is_not_required_is_not_constrained(fields: dict[str, Any]) -> None:
    assert asked(**fields) is None


def test_a_format_without_json_is_constrained_to_one_with_it() -> None:
    grammar = asked(tool_choice="required", parallel_tool_calls=False, config={"tool_call_parser": "pythonic"})
    assert grammar is not None
    _, calls = read("generic", written(ByteVocabulary(), grammar, 1))
    assert len(calls) == 1


@pytest.mark.parametrize("opened", [True, False])
def test_reasoning_comes_before_what_is_constrained(opened: bool) -> None:
    options = {"template": ThinkingTemplate(), "chat_template_kwargs": {"opened": opened}}
    call = '<tool_call>\n{"name": "time.now", "arguments": {}}\n</tool_call>'
    called = asked(**options, tool_choice="required")
    formed = asked(**options, tools=[], response_format={"type": "json_schema", "json_schema": {"schema": WEATHER}})
    for grammar, answer in ((called, call), (formed, '{"city": "Köln"}')):
        assert grammar is not None
        begin = "" if opened else "<think>"
        assert accepts(grammar, f"{begin}\nHm <x> {{.\n</think>\n\n{answer}")
        assert not accepts(grammar, f"{begin}Hm.</think>Hm. {answer}")
        assert accepts(grammar, answer) is not opened
    assert asked(tools=[], response_format={"type": "json_object"}) is None  # the request's own form does


def test_a_form_of_the_content_leaves_tools_possible() -> None:
    grammar = asked(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "boolean"}}})
    assert grammar is not None
    texts = {written(ByteVocabulary(), grammar, seed)[:4] for seed in range(20)}
    assert {"true", "<too"} <= texts


def test_a_form_that_is_a_grammar_and_tools_exclude_each_other() -> None:
    engine = FakeEngine(max_model_len=8192)
    reply = Client(engine).post(URL, chat(tools=TOOLS, guided_grammar='start: "a"'))
    assert (reply.status, reply.error["param"]) == (400, "guided_grammar")
    reply = Client(engine).post(URL, chat(tools=TOOLS, tool_choice="required", use_beam_search=True))
    assert (reply.status, reply.error["param"]) == (400, "use_beam_search")
    assert not engine.calls
