"""Segments hold all that was said, in order, and only the last one is ever open."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from octavo.api.conversation import Part, ToolCallPart
from octavo.api.segments import Segments

TEXT = st.text("abc", max_size=3)
STEP = st.tuples(st.sampled_from(["reasoning", "content", "call", "arguments"]), TEXT)


def parts(steps: list[tuple[str, str]]) -> list[Part]:
    """A part for each step; arguments continue the call just made, as a parser gives them."""
    made: list[Part] = []
    calls = 0
    calling = False
    for kind, text in steps:
        part = Part(index=0)
        if kind == "call" or (kind == "arguments" and not calling):
            part.tool_calls = [ToolCallPart(index=calls, id=f"call_{calls}", name="f", arguments=text)]
            calls, calling = calls + 1, True
        elif kind == "arguments":
            part.tool_calls = [ToolCallPart(index=calls - 1, arguments=text)]
        else:
            setattr(part, kind, text)
            calling = calling and not text
        made.append(part)
    return [*made, Part(index=0, finish_reason="stop")]


@given(st.lists(STEP, max_size=12))
def test_changes_tell_what_the_segments_are(steps: list[tuple[str, str]]) -> None:
    segments = Segments()
    told: list[tuple[str, str, str]] = []
    open_segments: list[int] = []
    for part in parts(steps):
        for change in segments.add(part):
            segment = change.segment
            if change.kind == "open":
                assert open_segments == []
                assert segment.index == len(told)
                told.append((segment.kind, segment.id, ""))
                open_segments.append(segment.index)
            elif change.kind == "grow":
                assert open_segments == [segment.index]
                assert change.text
                kind, call, text = told[segment.index]
                told[segment.index] = (kind, call, text + change.text)
            else:
                open_segments.remove(segment.index)
    assert open_segments == []
    assert [(each.kind, each.id, each.text) for each in segments.all] == told
    said = {"reasoning": "", "text": "", "tool_call": ""}
    for kind, _, text in told:
        said[kind] += text
    assert said["reasoning"] == "".join(text for kind, text in steps if kind == "reasoning")
    assert said["text"] == "".join(text for kind, text in steps if kind == "content")
    assert said["tool_call"] == "".join(text for kind, text in steps if kind in ("call", "arguments"))
    assert all(kind == "tool_call" or text for kind, _, text in told), "no empty texts"
    assert all(one[0] != two[0] or one[0] == "tool_call" for one, two in pairwise(told))
