"""Calls as Python: `[f(city="Paris", days=2), g()]`, as Llama 4 and LFM2 write them. Nothing is ever evaluated.

Only tools that the request offers count: brackets are common. An argument without a name gets the one that the tool's
schema has at its place.
"""

from __future__ import annotations

import re
import sys

from octavo.api.reading import NotACall, Piece, Steps, Text, attempt
from octavo.api.tool_calls.format import Known, Lark
from octavo.api.tool_calls.json_calls import dumps, loads

_AROUND = ("<|python_start|>", "<|python_end|>", "<|tool_call_start|>", "<|tool_call_end|>")
_NAME = re.compile(r"[\w.:/-]*")
_PLAIN = re.compile(r"""[^"'()\[\]{},]*""")
_KEYWORD = re.compile(r"\s*([^\W\d]\w*)\s*=(?!=)", re.ASCII)
_WITHIN = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r'|(?P<text>"""(?:[^\\]|\\.)*?"""|\'\'\'(?:[^\\]|\\.)*?\'\'\'|"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\')'
    r"|(?P<name>[^\W\d]\w*)|(?P<number>[-+.\d][\w.+-]*)|(?P<mark>[\[\]{}(),:])",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": "", "\\": "\\", "'": "'", '"': '"'}
_NAMES = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_MARKS = {"(": "[", ")": "]"}


class Pythonic:
    markers = _AROUND

    def read(self, text: Text, known: Known) -> Steps[None]:
        while found := (yield from text.until("[", *_AROUND)):
            if found == "[":
                yield from attempt(text, self._calls(text, known))
            else:
                yield from text.take(found)

    def grammar(self, _lark: Lark) -> None:
        return None

    def _calls(self, text: Text, known: Known) -> Steps[None]:
        yield from text.expect("[")
        more = True
        while more:
            yield from text.space()
            text.mark()
            yield from self._call(text, known)
            yield from text.space()
            more = yield from text.take(",")
        yield from text.take("]")

    def _call(self, text: Text, known: Known) -> Steps[None]:
        name = yield from text.while_in(_NAME)
        if name not in known:
            raise NotACall
        yield from text.expect("(")
        text.release()
        yield Piece("call", name)
        before = "{"
        unnamed = iter(known[name].get("properties") or ())
        yield from text.space()
        while not (yield from text.take(")")):
            raw = yield from _argument(text)
            keyword = _KEYWORD.match(raw)
            key = keyword[1] if keyword else next(unnamed, "")
            value = raw[keyword.end() :] if keyword else raw
            if not (yield from text.peek()):  # cut off
                return
            yield Piece("arguments", f"{before}{dumps(key)}: {to_json(value)}")
            before = ", "
            yield from text.take(",")
            yield from text.space()
        yield Piece("arguments", "}" if before == ", " else "{}")


def _argument(text: Text) -> Steps[str]:
    """What stands before the comma or the parenthesis that ends an argument, strings and brackets in it whole."""
    found = []
    depth = 0
    while True:
        found.append((yield from text.while_in(_PLAIN)))
        mark = yield from text.peek()
        if mark in ("'", '"'):
            found.append((yield from _quoted(text, mark)))
            continue
        if not mark or (depth == 0 and mark in "),"):
            return "".join(found)
        depth += (mark in "([{") - (mark in ")]}")
        text.skip(1)
        found.append(mark)


def _quoted(text: Text, quote: str) -> Steps[str]:
    within = _WITHIN[quote]
    if (yield from text.take(quote * 3)):
        quote *= 3
    else:
        text.skip(1)
    found = [quote]
    while not (yield from text.take(quote)):
        inside = yield from text.while_in(within)
        mark = yield from text.peek()
        if not inside and not mark:
            break
        if not inside or mark == "\\":
            text.skip(1)
            inside += mark
            if mark == "\\":
                after = yield from text.peek()
                text.skip(len(after))
                inside += after
        found.append(inside)
    else:
        found.append(quote)
    return "".join(found)


def to_json(literal: str) -> str:
    """A Python literal as JSON; what is none, as a JSON string."""
    literal = literal.strip()
    found: list[str] = []
    place = 0
    while place < len(literal):
        token = _TOKEN.match(literal, place)
        if token is None or (token.lastgroup == "name" and token[0] not in _NAMES):
            return dumps(literal)
        if token.lastgroup == "mark" and token[0] in ")]}" and found and found[-1] == ",":
            found.pop()
        if token.lastgroup != "space":
            found.append(_json_token(token.lastgroup, token[0]))
        place = token.end()
    try:
        return dumps(loads("".join(found)))
    except ValueError:
        return dumps(literal)


def _json_token(kind: str | None, text: str) -> str:
    match kind:
        case "text":
            quotes = 3 if text[:3] in ('"""', "'''") and len(text) >= 6 else 1
            return dumps(_ESCAPE.sub(_unescaped, text[quotes:-quotes]))
        case "name":
            return _NAMES[text]
        case "mark":
            return _MARKS.get(text, text)
    return text


def _unescaped(escape: re.Match[str]) -> str:
    code = escape[1]
    if len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number <= sys.maxunicode else escape[0]
    return _ESCAPED.get(code, escape[0])


FORMATS = {"pythonic": Pythonic()}
