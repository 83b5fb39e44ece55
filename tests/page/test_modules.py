"""The page's own modules, in the browser that runs them: Markdown to elements, and schemas."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from fake_engine import FakeEngine
from fake_server import serving

if TYPE_CHECKING:
    from conftest import Stage

pytestmark = pytest.mark.page

SHOW = """async (text) => {
  const { showMarkdown } = await import(new URL("page/markdown.js", document.baseURI));
  const target = document.createElement("div");
  showMarkdown(target, text);
  return target.outerHTML.replace(/^<div>|<\\/div>$/g, "");
}"""
GROW = """async (text) => {
  const { showMarkdown } = await import(new URL("page/markdown.js", document.baseURI));
  const grown = document.createElement("div");
  for (let end = 1; end <= text.length; end += 1) {
    const whole = document.createElement("div");
    showMarkdown(grown, text.slice(0, end));
    showMarkdown(whole, text.slice(0, end));
    if (grown.outerHTML !== whole.outerHTML) return text.slice(0, end);
  }
  return null;
}"""
CHECK = """async ([value, schema]) => {
  const { check } = await import(new URL("page/schema.js", document.baseURI));
  return check(value, schema);
}"""

WHOLE = """# Title
Some *soft* and **strong _both_** words, `code`, ~~gone~~, snake_case_name, 2 * 3 * 4.

- one
- two
  1. deep
  2. deeper

     more
- three

> quoted
> - list

a | b
:-- | --:
1 | 2

---
```python
def f():

    return "``"
```
Line\x20\x20
break https://example.org/a_b_c. End
~~~
open"""


def see(stage: Stage, script: str, argument: Any) -> Any:
    found: list[Any] = []

    async def play() -> None:
        async with serving(FakeEngine()) as (_, port), stage.visit(f"http://127.0.0.1:{port}/") as visit:
            page = await visit.open()
            found.append(await page.evaluate(script, argument))

    stage.run(play)
    return found[0]


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a\nb", "<p>a\nb</p>"),
        ("a  \nb", "<p>a<br>b</p>"),
        (
            "**a** *b* __c__ _d_ ~~e~~",
            "<p><strong>a</strong> <em>b</em> <strong>c</strong> <em>d</em> <del>e</del></p>",
        ),
        ("***a***", "<p><strong><em>a</em></strong></p>"),
        ("*a **b** c*", "<p><em>a <strong>b</strong> c</em></p>"),
        ("2 * 3 * 4, a_b_c, **open", "<p>2 * 3 * 4, a_b_c, **open</p>"),
        (r"\*a\*", "<p>*a*</p>"),
        ("`a *b*` ``c ` d``", "<p><code>a *b*</code> <code>c ` d</code></p>"),
        ("# A #\n### B", "<h2>A</h2><h4>B</h4>"),
        ("- a\n- b", "<ul><li>a</li><li>b</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("- a\n  - b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
        ("> a\n> b", "<blockquote><p>a\nb</p></blockquote>"),
        ("***", "<hr>"),
        ("<b>&amp;</b>", "<p>&lt;b&gt;&amp;amp;&lt;/b&gt;</p>"),
        ("[a](/b) [c](javascript:d)", "<p><span>a</span> <span>c</span></p>"),
        ("![a](https://b.example/c.png)", None),
    ],
)
def test_markdown(stage: Stage, text: str, html: str | None) -> None:
    shown = see(stage, SHOW, text)
    if html is None:
        assert "<img" not in shown
        assert "image: a" in shown
    else:
        assert shown == html


def test_a_stream_looks_like_the_whole(stage: Stage) -> None:
    assert see(stage, GROW, WHOLE) is None


HARD = [
    "*a ", "**", "`", "`a", "[", "[a](", "> ", "- ", "- a\n", "_a_b", "<", "~~", "\\", "| ", "  - a\n", "#", "```\n",
    "![", "h",
]  # fmt: skip


@pytest.mark.parametrize("piece", HARD)
def test_no_answer_is_too_hard(stage: Stage, piece: str) -> None:
    assert see(stage, SHOW, piece * (100_000 // len(piece)))


SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["x", 1, None]}, "minItems": 1, "maxItems": 2, "uniqueItems": True},
    {"anyOf": [{"type": "string", "minLength": 2, "pattern": "^a"}, {"type": "number", "exclusiveMinimum": 0}]},
    {"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}], "type": "integer"},
    {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
    {"prefixItems": [{"type": "string"}], "items": {"type": "boolean"}, "type": "array"},
    {"not": {"const": {"a": 1}}, "maxProperties": 1},
]
VALUES: list[Any] = [
    None, True, 0, 1, 2, 3, 6, 1.5, -1, "", "a", "ab", "bc", [], ["x"], ["x", "x"], ["x", 1], ["x", 1, None], [True],
    ["s", True], ["s", 1], {}, {"a": 1}, {"a": "1"}, {"a": 1, "b": 2}, {"next": {"next": {}}}, {"next": {"next": 1}},
]  # fmt: skip


def test_schemas_are_read_as_everybody_reads_them(stage: Stage) -> None:
    each = "value.map((v) => schema.map((s) => check(v, s).problems.length === 0))"
    script = CHECK.replace("check(value, schema);", each)
    told = see(stage, script, [VALUES, SCHEMAS])
    validators = [jsonschema.Draft202012Validator(schema) for schema in SCHEMAS]
    for value, verdicts in zip(VALUES, told, strict=True):
        for schema, verdict, validator in zip(SCHEMAS, verdicts, validators, strict=True):
            assert verdict == validator.is_valid(value), (json.dumps(value), json.dumps(schema))


def test_what_is_not_looked_at_is_said(stage: Stage) -> None:
    assert see(stage, CHECK, [{}, {"dependentRequired": {"a": ["b"]}}]) == {
        "problems": [],
        "unknown": ["dependentRequired"],
    }
