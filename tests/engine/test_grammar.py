"""What is no grammar is refused in words before anything is compiled; equal wishes make equal texts."""

from __future__ import annotations

import json

import pytest

from octavo.engine.grammar import DEFAULT_WHITESPACE, LONGEST_GRAMMAR, MOST_CHOICES, grammar_text, lark_text
from octavo.errors import InvalidRequest
from octavo.request import SamplingParams, StructuredOutputs


def grammar(**wishes):
    [only] = json.loads(grammar_text(StructuredOutputs(**wishes)))["grammars"]
    return only


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_a_schema_keeps_its_order_and_its_large_numbers():
    schema = {"properties": {"b": {"const": 10**40}, "a": {}}}
    assert list(grammar(json=schema)["json_schema"]["properties"]) == ["b", "a"]
    assert grammar(json=json.dumps(schema)) == grammar(json=schema)
    assert grammar(json=schema)["json_schema"]["properties"]["b"]["const"] == 10**40


def test_a_schema_may_be_as_deep_as_said():
    assert grammar(json=nested(63))


def test_any_object_is_a_schema_too():
    assert grammar(json_object=True) == grammar(json={"type": "object"})


@pytest.mark.parametrize(
    ("wishes", "options"),
    [
        ({}, {"whitespace_pattern": DEFAULT_WHITESPACE}),
        ({"disable_any_whitespace": True}, {"whitespace_flexible": False}),
        ({"whitespace_pattern": "_"}, {"whitespace_pattern": "_"}),
    ],
)
def test_white_space_is_what_was_asked_for(wishes, options):
    assert grammar(json={"type": "object"}, **wishes)["json_schema"]["x-guidance"] == options


def test_a_schemas_own_options_win():
    own = {"x-guidance": {"whitespace_pattern": "-", "coerce_one_of": True}}
    assert grammar(json=own)["json_schema"]["x-guidance"] == own["x-guidance"]


@pytest.mark.parametrize(
    ("wishes", "word"),
    [
        ({"json": "{"}, "JSON"),
        ({"json": "[]"}, "object"),
        ({"json": "[" * 10_000}, "deep"),
        ({"json": nested(65)}, "deep"),
        ({"json": '{"items":' * 900 + "{}" + "}" * 900}, "deep"),
        ({"json": {"patternProperties": {f"a{number}": {} for number in range(65)}}}, "patternProperties"),
        ({"json": {"items": {"patternProperties": {f"a{number}": {} for number in range(65)}}}}, "patternProperties"),
        ({"json": {"enum": ["x" * LONGEST_GRAMMAR]}}, "long"),
        ({"regex": "x" * (LONGEST_GRAMMAR + 1)}, "long"),
        ({"grammar": "x" * (LONGEST_GRAMMAR + 1)}, "long"),
        ({"grammar": " \n"}, "empty"),
        ({"grammar": "root ::= other"}, "GBNF"),
        ({"grammar": "root ::= " + "(" * 5000}, "GBNF"),
        ({"choice": ["x"] * (MOST_CHOICES + 1)}, "choice"),
        ({"structural_tag": "{}"}, "structural_tag"),
        ({"structural_tag": '{"structures": [{"begin": "<f>"}], "triggers": ["<"]}'}, "structural_tag"),
        ({"structural_tag": '{"structures": [{"begin": "f", "schema": {}, "end": ""}], "triggers": ["<"]}'}, "trigger"),
    ],
)
def test_what_is_no_grammar_is_refused(wishes, word):
    with pytest.raises(InvalidRequest, match=word) as caught:
        grammar(**wishes)
    assert caught.value.param == "structured_outputs"
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("wishes", [{}, {"regex": "a", "json": {}}, {"json_object": False}, {"choice": []}])
def test_a_wish_is_exactly_one(wishes):
    with pytest.raises(InvalidRequest) as caught:
        StructuredOutputs(**wishes)
    assert caught.value.param == "structured_outputs"


class Tokens:
    special_ids = frozenset({7})

    def encode(self, text, add_special_tokens=True):
        return [7] if text == "[CALL]" else [1] if text == "a" else [1, 7]


def test_a_lark_grammar_names_special_tokens_by_number():
    assert lark_text(Tokens(), "[CALL]") == "<[7]>"
    assert lark_text(Tokens(), "a") == '"a"'
    assert lark_text(Tokens(), 'x"[CALL]') == '"x\\"[CALL]"'


def test_the_wish_is_part_of_the_sampling_parameters():
    assert SamplingParams(structured_outputs=StructuredOutputs(regex="a")) != SamplingParams()
