"""Token ids to text while a sequence grows: no half characters, nothing that might belong to a stop string.

Text leaves in two steps. Bytes wait until they make whole characters; characters wait while they could be the beginning
of a stop string. What a caller receives does not depend on how the tokens were grouped. Work per token does not grow
with the length of the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from octavo.engine.tokenizer import Tokenizer
from octavo.request import SamplingParams

_LONGEST_CHARACTER = 4  # bytes of UTF-8


class Detokenizer:
    """The text of one sequence. The caller leaves out an end token that should not be seen."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        self.stop_string: str | None = None
        self._tokenizer = tokenizer
        self._skipped = frozenset[int]()
        if params.skip_special_tokens:
            self._skipped = tokenizer.special_ids.difference(params.visible_special_token_ids)
        self._stops = params.stop
        self._longest_stop = max(map(len, params.stop), default=0)
        self._keeps_stop = params.include_stop_str_in_output
        self._unchecked = params.min_tokens  # tokens before stop strings count
        self._held = ""  # decoded, but maybe the beginning of a stop string
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = self._tail(prompt_token_ids)
        self._at_start = not tail
        self._decoder.decode(tail)  # a prompt may end inside a character, which the output then completes

    def append(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens; return the new text that may be seen. Nothing comes after a stop string."""
        return "".join(self._take(token_id) for token_id in token_ids if self.stop_string is None)

    def finish(self) -> str:
        """No more tokens come: return what was held back, an unfinished character as U+FFFD."""
        if self.stop_string is not None:
            return ""
        rest = self._pass_stops(self._decoder.decode(b"", final=True))
        if self.stop_string is None:
            rest, self._held = rest + self._held, ""
        return rest

    def _take(self, token_id: int) -> str:
        raw = b"" if token_id in self._skipped else self._tokenizer.token_bytes(token_id)
        if self._at_start and raw:
            raw, self._at_start = self._tokenizer.strip_start(raw), False
        text = self._decoder.decode(raw)
        if self._unchecked > 0:
            self._unchecked -= 1
            return text
        return self._pass_stops(text)

    def _pass_stops(self, text: str) -> str:
        """What may be released of the held text and `text`; sets `stop_string` when one is complete."""
        if not self._stops or not text:
            return text
        waiting = self._held + text
        end, stop = min(
            ((found + len(stop), stop) for stop in self._stops if (found := waiting.find(stop)) >= 0),
            key=lambda match: (match[0], -len(match[1])),  # the first to be complete; of those, the longest
            default=(0, None),
        )
        if stop is not None:
            self.stop_string, self._held = stop, ""
            return waiting[:end] if self._keeps_stop else waiting[: end - len(stop)]
        held = self._beginning_of_stop(waiting)
        self._held = waiting[len(waiting) - held :]
        return waiting[: len(waiting) - held]

    def _beginning_of_stop(self, text: str) -> int:
        """Length of the longest end of `text` that is the beginning of a stop string."""
        for start in range(max(0, len(text) - self._longest_stop + 1), len(text)):
            end = text[start:]
            if any(stop.startswith(end) for stop in self._stops):
                return len(end)
        return 0

    def _tail(self, prompt_token_ids: Sequence[int]) -> bytes:
        """The prompt's last bytes, enough of them to hold a character."""
        tail = b""
        for token_id in reversed(prompt_token_ids):
            if token_id not in self._skipped:
                tail = self._tokenizer.token_bytes(token_id) + tail
            if len(tail) >= _LONGEST_CHARACTER:
                break
        return tail
