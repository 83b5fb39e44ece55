"""Log-probabilities in the two shapes OpenAI's clients know, and vLLM's `prompt_logprobs`."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.api.generation import PromptLogprobs
from octavo.api.openai.types import (
    ChatLogprobs,
    CompletionLogprobs,
    TokenLogprob,
    TopLogprob,
    WireLogprob,
    WirePromptLogprobs,
)
from octavo.face import Tokenizer
from octavo.request import Logprob

_CONTINUES = range(0x80, 0xC0)  # UTF-8 bytes inside a character
_LOWEST = -9999.0  # JSON has no infinity

Position = dict[int, Logprob] | None


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)


def _text(token_id: int, entry: Logprob | None, tokenizer: Tokenizer) -> str:
    if entry is not None and entry.decoded_token is not None:
        return entry.decoded_token
    return tokenizer.token(token_id)


def chat_logprobs(
    token_ids: Sequence[int], positions: Sequence[dict[int, Logprob]], top: int, tokenizer: Tokenizer
) -> ChatLogprobs:
    content = []
    for token_id, position in zip(token_ids, positions, strict=True):
        best = sorted(position.items(), key=lambda item: -item[1].logprob)[:top]
        chosen = _top_logprob(token_id, position[token_id], tokenizer)
        content.append(
            TokenLogprob(
                token=chosen.token,
                logprob=chosen.logprob,
                bytes=chosen.bytes,
                top_logprobs=[_top_logprob(other, entry, tokenizer) for other, entry in best],
            )
        )
    return ChatLogprobs(content=content)


def _top_logprob(token_id: int, entry: Logprob, tokenizer: Tokenizer) -> TopLogprob:
    text, raw = _text(token_id, entry, tokenizer), tokenizer.token_bytes(token_id)
    return TopLogprob(token=text, logprob=_finite(entry.logprob), bytes=list(raw))


def completion_logprobs(
    token_ids: Sequence[int], positions: Sequence[Position], offset: int, tokenizer: Tokenizer
) -> tuple[CompletionLogprobs, int]:
    """`offset`: where in the choice's text the first token begins; returned with it, where the next one will.

    A prompt's first token has no logprob. A token that is part of a character shows its bytes: as text, all of these
    would be the same.
    """
    found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token_id, position in zip(token_ids, positions, strict=True):
        found.tokens.append(_name(token_id, position.get(token_id) if position else None, tokenizer))
        found.text_offset.append(offset)
        offset += sum(byte not in _CONTINUES for byte in tokenizer.token_bytes(token_id))
        if position is None:
            found.token_logprobs.append(None)
            found.top_logprobs.append(None)
            continue
        top: dict[str, float] = {}
        for other, entry in position.items():
            top.setdefault(_name(other, entry, tokenizer), _finite(entry.logprob))
        found.token_logprobs.append(_finite(position[token_id].logprob))
        found.top_logprobs.append(top)
    return found, offset


def _name(token_id: int, entry: Logprob | None, tokenizer: Tokenizer) -> str:
    """A token's text or, where its bytes are not whole characters, `bytes:\\xf0\\x9f`."""
    raw = tokenizer.token_bytes(token_id)
    try:
        raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
    return _text(token_id, entry, tokenizer)


def wire_prompt_logprobs(positions: PromptLogprobs) -> WirePromptLogprobs:
    return [
        {str(token_id): _wire(entry) for token_id, entry in position.items()} if position is not None else None
        for position in positions
    ]


def _wire(entry: Logprob) -> WireLogprob:
    return WireLogprob(logprob=_finite(entry.logprob), rank=entry.rank, decoded_token=entry.decoded_token)
