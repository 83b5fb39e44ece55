"""Filling in the middle: a prompt of what stands before and after a gap, for models that were trained to fill it.

Such a model's vocabulary has tokens that mark the pieces; which ones says how the pieces are laid out. Knows nothing of
requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from octavo.errors import InvalidRequest
from octavo.face import Tokenizer


@dataclass(frozen=True, slots=True)
class _Layout:
    """Tokens before the prefix, before the suffix and before the middle; and those that may end the middle."""

    prefix: str
    suffix: str
    middle: str | None  # None: the suffix comes first, and the prefix is continued
    ends: tuple[str, ...] = ()


_LAYOUTS = (
    # Qwen Coder, CodeGemma
    _Layout("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",
            ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>")),
    # StarCoder, Granite, SantaCoder
    _Layout("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<|endoftext|>", "<fim_pad>", "<file_sep>")),
    _Layout("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<|endoftext|>", "<fim-pad>")),
    # DeepSeek Coder
    _Layout("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ("<|EOT|>",)),
    # CodeLlama
    _Layout("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),
    # Codestral
    _Layout("[PREFIX]", "[SUFFIX]", None),
    # CodeGeeX, GLM
    _Layout("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gap:
    """A prompt whose continuation is the middle, and the tokens that end it besides the model's own."""

    token_ids: list[int]
    stop_token_ids: list[int]


def fill_in(tokenizer: Tokenizer, prefix: str | list[int], suffix: str) -> Gap:
    """The prompt for what stands between `prefix` and `suffix`. Raises InvalidRequest if the model cannot."""
    layout = next((each for each in _LAYOUTS if all(_ids(tokenizer, each))), None)
    if layout is None:
        message = "This model was not trained to fill in the middle: its vocabulary has no tokens for that."
        raise InvalidRequest(f"{message} Leave out 'suffix'.", param="suffix", code="unsupported_parameter")
    before = tokenizer.encode(prefix, add_special_tokens=False) if isinstance(prefix, str) else prefix
    after = tokenizer.encode(suffix, add_special_tokens=False)
    first, second, *rest = (token_id for token_id in _ids(tokenizer, layout) if token_id is not None)
    pieces = [first, *before, second, *after, *rest] if rest else [second, *after, first, *before]
    ends = (tokenizer.token_id(text) for text in layout.ends)
    return Gap([*_beginning(tokenizer), *pieces], [token_id for token_id in ends if token_id is not None])


def _ids(tokenizer: Tokenizer, layout: _Layout) -> Iterator[int | None]:
    return (tokenizer.token_id(text) for text in (layout.prefix, layout.suffix, layout.middle) if text is not None)


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text."""
    bare, whole = (tokenizer.encode("x", add_special_tokens=special) for special in (False, True))
    return whole[: whole.index(bare[0])] if bare and bare[0] in whole else []
