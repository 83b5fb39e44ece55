"""The detokenizer against its definition: decode everything at once, cut at the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.checkpoint import Checkpoint
from octavo.engine.detokenizer import Detokenizer
from octavo.engine.tokenizer import Tokenizer
from octavo.request import SamplingParams

SETTINGS = settings(max_examples=400, deadline=None)


@pytest.fixture(scope="session")
def smol(smollm2: Checkpoint) -> Tokenizer:
    return Tokenizer.from_checkpoint(smollm2)


@pytest.fixture(scope="session")
def gemma(gemma3: Checkpoint) -> Tokenizer:
    return Tokenizer.from_checkpoint(gemma3)


@pytest.fixture(params=["smol", "gemma"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


PHRASES = [
    "Hello, world! ",
    "a\n\nb",
    "😀👩‍👩‍👧",
    "漢字かな",
    "the end. The END",
    "<|im_end|><eos>",
    "aaaa abab",
    "é\x85",
]


@st.composite
def outputs(draw: st.DrawFn, tokenizer: Tokenizer) -> list[int]:
    """Words, random tokens (half characters, special tokens) and Gemma's byte tokens, in any order."""
    parts = draw(
        st.lists(
            st.one_of(
                st.sampled_from(PHRASES).map(lambda text: tokenizer.encode(text, add_special_tokens=False)),
                st.lists(st.integers(0, 500), max_size=4),
                st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=4),
            ),
            max_size=6,
        )
    )
    return [token_id for part in parts for token_id in part]


def cut_at_stop(text: str, stops: Sequence[str], keep: bool) -> tuple[str, str | None]:
    """Letter by letter: the first stop string to be complete ends the text; the longest, if several are at once."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return (text[:end] if keep else text[: end - len(stop)]), stop
    return text, None


def whole_characters(tokenizer: Tokenizer, ids: list[int], skip: bool) -> str:
    """The text so far without an unfinished character at its end."""
    skipped = tokenizer.special_ids if skip else frozenset()
    raw = b"".join(tokenizer.token_bytes(token_id) for token_id in ids if token_id not in skipped)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(raw)


def chunked(ids: list[int], cuts: list[int]) -> list[list[int]]:
    places = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return [ids[start:end] for start, end in pairwise(places)]


@SETTINGS
@given(data=st.data(), skip=st.booleans(), keep=st.booleans(), cuts=st.lists(st.integers(0, 99)))
def test_whatever_the_chunks_the_text_is_that_of_the_whole(
    smol: Tokenizer, gemma: Tokenizer, data: st.DataObject, skip: bool, keep: bool, cuts: list[int]
) -> None:
    tokenizer = data.draw(st.sampled_from([smol, gemma]))
    ids = data.draw(outputs(tokenizer))
    whole = tokenizer.decode(ids, skip)
    pieces = st.integers(0, max(0, len(whole) - 1)).flatmap(
        lambda start: st.integers(1, 5).map(lambda length: whole[start : start + length])
    )
    stops = [stop for stop in data.draw(st.lists(st.one_of(pieces, st.text("ab .\n", max_size=3)), max_size=3)) if stop]
    params = SamplingParams(skip_special_tokens=skip, include_stop_str_in_output=keep, stop=stops)
    wanted, stop = cut_at_stop(whole, stops, keep)

    detokenizer = Detokenizer(tokenizer, [], params)
    released, taken = "", 0
    for chunk in chunked(ids, cuts):
        released += detokenizer.append(chunk)
        taken += len(chunk)
        assert wanted.startswith(released), "what was released is never taken back"
        if detokenizer.stop_string is None:
            assert not any(stop in released for stop in stops)
            seen = whole_characters(tokenizer, ids[:taken], skip)
            held = max((k for stop in stops for k in range(len(stop)) if seen.endswith(stop[:k])), default=0)
            assert released == seen[: len(seen) - held], "all that can be no stop string, and nothing else"
    released += detokenizer.finish()
    assert released == wanted
    assert detokenizer.stop_string == stop
    if stop is not None:
        assert detokenizer.append(ids) + detokenizer.finish() == ""


def step_by_step(tokenizer: Tokenizer, ids: list[int], prompt: Sequence[int] = (), **params: object) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt, SamplingParams(**params))  # type: ignore[arg-type]
    return [*(detokenizer.append([token_id]) for token_id in ids), detokenizer.finish()]


def test_characters_come_whole_and_at_once(tokenizer: Tokenizer) -> None:
    """An emoji of many tokens, with no token of its own."""
    text = "a\U0001f9ffb漢"
    parts = step_by_step(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert "".join(parts) == text
    assert {"a", "b"} < set(parts)
    assert not any("\ufffd" in part for part in parts)


def test_an_unfinished_character_waits_for_the_end(gemma: Tokenizer) -> None:
    grin = [238 + byte for byte in "😀".encode()]
    assert step_by_step(gemma, grin) == ["", "", "", "😀", ""]
    assert step_by_step(gemma, grin[:3]) == ["", "", "", "\ufffd"]


def test_bytes_that_never_become_a_character_do_not_pile_up(gemma: Tokenizer) -> None:
    parts = step_by_step(gemma, [238 + 0x80] * 1000)
    assert parts == ["\ufffd"] * 1000 + [""]


@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_prompt_may_end_inside_a_character(gemma: Tokenizer, split: int) -> None:
    grin = [238 + byte for byte in "😀".encode()]
    assert "".join(step_by_step(gemma, grin[split:], prompt=[2, *grin[:split]])) == "😀"


def test_the_prompt_is_not_part_of_the_text(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("Say <stop")
    output = tokenizer.encode("> now", add_special_tokens=False)
    assert "".join(step_by_step(tokenizer, output, prompt, stop=["<stop>"])) == "> now"


def test_a_stop_string_across_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("One. Two\n\nThree", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, [], SamplingParams(stop=["Two\n\nTh"]))
    assert "".join(detokenizer.append([token_id]) for token_id in ids) == "One. "
    assert (detokenizer.stop_string, detokenizer.finish()) == ("Two\n\nTh", "")


def test_held_text_is_released_when_it_was_no_stop_string(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<b", add_special_tokens=False)
    parts = step_by_step(tokenizer, ids, stop=["<c>"])
    assert "".join(parts[:-1]) == "a<b"
    assert parts[-1] == ""
    assert step_by_step(tokenizer, ids, stop=["<b>"])[-1] == "<b", "held until the end"


def test_stop_strings_do_not_count_before_min_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a b c a b c", add_special_tokens=False)
    assert len(ids) == 6
    assert "".join(step_by_step(tokenizer, ids, stop=[" b"], min_tokens=2)) == "a b c a"
    assert "".join(step_by_step(tokenizer, ids, stop=[" b c"], min_tokens=2)) == "a b c a", "nor do their beginnings"


def test_special_tokens(smol: Tokenizer) -> None:
    ids = smol.encode("a<|im_end|>b")
    assert "".join(step_by_step(smol, ids)) == "ab"
    assert "".join(step_by_step(smol, ids, skip_special_tokens=False)) == "a<|im_end|>b"
    assert "".join(step_by_step(smol, ids, skip_special_tokens=False, stop=["<|im_end|>"])) == "a"


def test_work_does_not_grow_with_the_text(smol: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    token_bytes = smol.token_bytes

    def counted(token_id: int) -> bytes:
        nonlocal asked
        asked += 1
        return token_bytes(token_id)

    monkeypatch.setattr(smol, "token_bytes", counted)
    ids = smol.encode("the cat sat " * 200)
    step_by_step(smol, ids, prompt=ids)
    assert asked < len(ids) + 10
