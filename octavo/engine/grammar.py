"""From `StructuredOutputs` to a grammar's text, as llguidance reads it. Text in, text out: nothing is compiled here.

Text of every kind is wrapped the same way, so equal wishes are equal texts, which is what compiled grammars are cached
by. Only what is cheap to see is refused here: sizes, nesting, what is not JSON. Whether a grammar can be followed shows
when it is compiled, which happens where it may fail (`grammar_trial.py`, `guidance.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Protocol

from octavo.errors import InvalidRequest
from octavo.request import StructuredOutputs

LONGEST_GRAMMAR = 64 * 2**10  # characters
DEEPEST_NESTING = 64  # of brackets in a JSON schema
MOST_CHOICES = 4096
MOST_PATTERN_PROPERTIES = 64  # in a JSON schema: the compiler compares each with each
#: One blank, or a line end and an indentation: small models otherwise fill their output with white space.
DEFAULT_WHITESPACE = r" |\r?\n( {0,24}|\t{0,12})"
_PARAM = "structured_outputs"


class Tokens(Protocol):
    """The part of a tokenizer that knows its special tokens."""

    @property
    def special_ids(self) -> frozenset[int]: ...
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


def grammar_text(outputs: StructuredOutputs) -> str:
    """Raises InvalidRequest for what is no grammar, or too large a one."""
    if outputs.json is not None:
        grammar = {"json_schema": _schema(outputs.json, outputs)}
    elif outputs.json_object:
        grammar = {"json_schema": _schema({"type": "object"}, outputs)}
    elif outputs.structural_tag is not None:
        grammar = {"lark_grammar": _structural_tag(_parse(outputs.structural_tag, "structural_tag"))}
    elif outputs.choice is not None:
        grammar = {"lark_grammar": _choice(outputs.choice)}
    elif outputs.regex is not None:
        grammar = {"lark_grammar": f"start: TEXT\nTEXT: {_regex(outputs.regex)}"}
    else:
        assert outputs.grammar is not None
        grammar = {"lark_grammar": _lark(outputs.grammar)}
    text = json.dumps({"grammars": [grammar]}, separators=(",", ":"))
    _check_length(text, "structured_outputs")
    return text


def lark_text(tokenizer: Tokens, text: str) -> str:
    """How a rule of a Lark grammar says `text`: as the special token that it is, or else as a string.

    No string of a grammar ever matches a special token, and only this way of naming one works for every name.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) == 1 and ids[0] in tokenizer.special_ids:
        return f"<[{ids[0]}]>"
    return json.dumps(text)


def lark_expression(outputs: StructuredOutputs) -> str | None:
    """How a rule of a Lark grammar asks for it; None for what is a grammar of its own. Raises InvalidRequest."""
    if outputs.json is not None or outputs.json_object:
        return "%json " + json.dumps(_schema(outputs.json or {"type": "object"}, outputs))
    if outputs.choice is not None:
        return f"({' | '.join(map(json.dumps, outputs.choice))})"
    return None if outputs.regex is None else _regex(outputs.regex)


def _refuse(message: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(message, param=_PARAM, code=code)


def _check_length(text: str, name: str) -> None:
    if len(text) > LONGEST_GRAMMAR:
        message = f"{name} is too long: {len(text)} characters, at most {LONGEST_GRAMMAR} are taken"
        raise _refuse(message, "string_above_max_length")


# ---- JSON schemas ----


def _schema(schema: str | dict[str, Any], outputs: StructuredOutputs) -> Any:
    parsed = _parse(schema, "json") if isinstance(schema, str) else schema
    if not isinstance(parsed, dict):
        raise _refuse("the JSON schema is not an object")
    _check_shape(parsed)
    if outputs.whitespace_pattern is not None:
        spaces: dict[str, Any] = {"whitespace_pattern": outputs.whitespace_pattern}
    elif outputs.disable_any_whitespace:
        spaces = {"whitespace_flexible": False}
    else:
        spaces = {"whitespace_pattern": DEFAULT_WHITESPACE}
    options = parsed.get("x-guidance")
    return {**parsed, "x-guidance": {**spaces, **(options if isinstance(options, dict) else {})}}


def _parse(text: str, name: str) -> Any:
    _check_length(text, name)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _refuse(f"{name} is not JSON: {reason}") from None


def _check_shape(schema: dict[str, Any]) -> None:
    """Level by level, so that no depth is too deep to find out."""
    level: list[Any] = [schema]
    patterns = 0
    for _ in range(DEEPEST_NESTING + 1):
        named = (each.get("patternProperties") for each in level if isinstance(each, dict))
        patterns += sum(len(each) for each in named if isinstance(each, dict))
        level = [inner for outer in level for inner in _parts(outer)]
        if patterns > MOST_PATTERN_PROPERTIES:
            raise _refuse(f"the JSON schema has more than {MOST_PATTERN_PROPERTIES} patternProperties")
        if not level:
            return
    raise _refuse(f"the JSON schema is nested more than {DEEPEST_NESTING} levels deep")


def _parts(value: Any) -> list[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in inside if isinstance(part, dict | list)]


# ---- other kinds ----


def _choice(texts: list[str]) -> str:
    if len(texts) > MOST_CHOICES:
        raise _refuse(f"choice has {len(texts)} texts, at most {MOST_CHOICES} are taken", "array_above_max_length")
    return "start: TEXT\nTEXT: " + " | ".join(map(json.dumps, texts))


def _regex(pattern: str) -> str:
    """Between the slashes that Lark wants; its own slashes and line ends escaped."""
    _check_length(pattern, "regex")
    pairs = re.compile(r"\\.|/|\n|\r", re.DOTALL)
    escapes = {"/": r"\/", "\n": r"\n", "\r": r"\r", "\\\n": r"\n", "\\\r": r"\r"}
    return "/" + pairs.sub(lambda found: escapes.get(found[0], found[0]), pattern) + "/"


def _lark(grammar: str) -> str:
    """GBNF is turned into Lark."""
    _check_length(grammar, "grammar")
    if not grammar.strip():
        raise _refuse("the grammar is empty")
    if "::=" not in grammar:
        return grammar
    from llguidance.gbnf_to_lark import any_to_lark

    convert: Callable[[str], str] = any_to_lark
    try:
        return convert(grammar)
    except Exception as error:  # the library raises nothing finer
        raise _refuse(f"the grammar cannot be read as GBNF: {str(error)[:200]}") from None


def _structural_tag(tag: Any) -> str:
    """{"structures": [{"begin", "schema", "end"}, …], "triggers": […]}: text in which triggers begin structures."""
    structures: Any = tag.get("structures") if isinstance(tag, dict) else None
    triggers: Any = tag.get("triggers") if isinstance(tag, dict) else None
    if not (_are_texts(triggers) and _are_structures(structures)):
        shape = '{"structures": [{"begin": text, "schema": {…}, "end": text}, …], "triggers": [text, …]}'
        raise _refuse(f"structural_tag has another shape than {shape}")
    tags = " | ".join(f"tag_{place}" for place in range(len(structures)))
    lines = [f"start: ({tags})* TEXT", r"TEXT: /(.|\n)*/"]
    for place, structure in enumerate(structures):
        _check_shape(structure["schema"])
        begin = structure["begin"]
        trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
        if trigger is None:
            raise _refuse(f"structural_tag: no trigger begins {begin[:64]!r}")
        parts = [begin[len(trigger) :], structure["end"]]
        rest, end = (json.dumps(part) if part else "" for part in parts)
        lines.append(f"head_{place}[lazy]: TEXT {json.dumps(trigger)}")
        lines.append(f"tag_{place}: head_{place} {rest} %json {json.dumps(structure['schema'])} {end}")
    return "\n".join(lines)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(each, str) and each for each in values)


def _are_structures(values: Any) -> bool:
    kinds = {"begin": str, "schema": dict, "end": str}
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(each, dict) for each in values)
        and all(isinstance(each.get(name), kind) for each in values for name, kind in kinds.items())
    )
