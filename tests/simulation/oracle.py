"""What a request says when it is alone: the same function of its own tokens, without blocks, batches or steps.

The model's "keys and values" at a position are one number: a hash of the token, its position and everything before it.
The next token is a hash of all of them and of the sampler's history. Equal inputs give equal outputs on every run:
Python hashes integers without a random seed.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from typing import NamedTuple

from octavo.plan import fork_seed
from octavo.request import FinishReason, Request

VOCABULARY = 53
SPECIAL = 52  # the one special token: never part of the text
DEADLY = SPECIAL  # a prompt that begins with it kills the core which computes it
_LETTERS = "abcdef"


def entry(token: int, position: int, view: Sequence[int]) -> int:
    """What is stored for a token that was computed after reading `view`."""
    return hash((token, position, *view))


def draw(view: Sequence[int], history: Sequence[int], prompt_length: int, seed: int) -> int:
    return hash((prompt_length, seed, *history, *view)) % VOCABULARY


def logprob(view: Sequence[int], token: int) -> float:
    return -(hash((token, *view)) % 997) / 100


def candidates(view: Sequence[int], history: Sequence[int], count: int) -> list[tuple[int, float]]:
    """`count` distinct tokens with falling log-probabilities."""
    mixed = hash((*history, *view))
    first, step = mixed % VOCABULARY, 1 + mixed // 64 % (VOCABULARY - 1)
    return [((first + i * step) % VOCABULARY, -(mixed // 7**i % 5 + 6 * i) / 10) for i in range(count)]


@cache
def token_bytes(token: int) -> bytes:
    """One letter, two letters, or a half of a two-byte character."""
    if token < 6:
        return _LETTERS[token].encode()
    if token < 42:
        return (_LETTERS[token // 6 - 1] + _LETTERS[token % 6]).encode()
    return b"" if token == SPECIAL else "é".encode()[token % 2 : token % 2 + 1]


class Line:
    """One sequence alone: its tokens and what the model stored for them, computed as far as anyone asks."""

    def __init__(self, prompt: Sequence[int], seed: int) -> None:
        self._prompt_length = len(prompt)
        self._seed = seed
        self.view: list[int] = []
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        for token in prompt:
            self._know(token)

    def output(self, count: int) -> list[int]:
        """The first `count` tokens that it says."""
        while len(self.tokens) < self._prompt_length + count:
            token = draw(self.view, self.tokens, self._prompt_length, self._seed)
            self.logprobs.append(logprob(self.view, token))
            self._know(token)
        return self.tokens[self._prompt_length : self._prompt_length + count]

    def _know(self, token: int) -> None:
        self.view.append(entry(token, len(self.tokens), self.view))
        self.tokens.append(token)


def prompt_logprobs(prompt: Sequence[int]) -> list[float]:
    """For positions 1 … of the prompt."""
    view = Line(prompt, 0).view
    return [logprob(view[:position], prompt[position]) for position in range(1, len(prompt))]


class Ending(NamedTuple):
    """How one continuation ends."""

    token_ids: list[int]
    text: str
    reason: FinishReason
    stop_reason: int | str | None


def ending(request: Request, token_ids: list[int], ended_by: int | None) -> Ending:
    """What the caller sees of computed tokens: text, cut at the first stop string."""
    params = request.params
    asked = ended_by in params.stop_token_ids
    reason: FinishReason = "length" if ended_by is None else "stop"
    if not params.detokenize:
        return Ending(token_ids, "", reason, ended_by if asked else None)
    shown = asked and params.include_stop_str_in_output
    visible = token_ids if ended_by is None or shown else token_ids[:-1]
    decode = _decoder(request)
    free, text = "", ""  # before and after stop strings count
    for place, token in enumerate(visible):
        piece = decode(token_bytes(token), False)
        if place < params.min_tokens:
            free += piece
            continue
        text += piece
        if (found := _first_stop(text, params.stop)) is not None:
            end, stop = found
            kept = text[:end] if params.include_stop_str_in_output else text[: end - len(stop)]
            return Ending(token_ids[: place + 1], free + kept, "stop", stop)
    return Ending(token_ids, free + text + decode(b"", True), reason, ended_by if asked else None)


def _decoder(request: Request) -> Callable[[bytes, bool], str]:
    """Reads on where the prompt ended: it may have ended inside a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(b"".join(map(token_bytes, request.prompt_token_ids)))
    return decoder.decode


def _first_stop(text: str, stops: Iterable[str]) -> tuple[int, str] | None:
    """Where the first stop string to be complete ends, and which; of those that end together, the longest."""
    found = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    return (min(found)[0], min(found)[2]) if found else None


def beams(request: Request, most: int) -> list[tuple[list[int], float]]:
    """Beam search without blocks: the best outputs and their cumulative log-probabilities, best first."""
    search = request.beam
    assert search is not None
    ends = set(request.end_token_ids)
    living: list[tuple[list[int], float]] = [([], 0.0)]
    done: list[tuple[list[int], float]] = []
    for _ in range(most):
        grown: list[tuple[list[int], float]] = []
        for output, total in living:
            line = Line([*request.prompt_token_ids, *output], 0)
            for token, value in candidates(line.view, line.tokens, 2 * search.beam_width):
                (done if token in ends else grown).append(([*output, token], total + value))
        living = sorted(grown, key=lambda beam: -beam[1])[: search.beam_width]
        if not living:
            break
    ranked = sorted(done + living, key=lambda beam: -(beam[1] / float(len(beam[0]) ** search.length_penalty)))
    return ranked[: search.beam_width]


class Alone:
    """A request as it goes when nothing else exists."""

    def __init__(self, request: Request, capacity: int) -> None:
        self.request = request
        self._capacity = capacity
        self.most = min(request.max_tokens, capacity - len(request.prompt_token_ids))
        self._ends = frozenset(request.end_token_ids)
        self.width = request.beam.beam_width if request.beam else request.params.n
        self._lines: dict[int, Line] = {}

    def line(self, index: int) -> Line:
        found = self._lines.get(index)
        if found is None:
            request = self.request
            found = self._lines[index] = Line(request.prompt_token_ids, fork_seed(request.seed, index))
        return found

    def step(self, index: int, place: int) -> tuple[int, FinishReason | None]:
        """The token that a sequence says at a place of its output, and whether the core ends it there."""
        token = self.line(index).output(place + 1)[place]
        if place >= self.request.params.min_tokens and token in self._ends:
            return token, "stop"
        return token, "length" if place + 1 >= self.most else None

    @cached_property
    def beams(self) -> list[tuple[list[int], float]]:
        return beams(self.request, self.most)

    def ended_by(self, token: int) -> int | None:
        return token if token in self._ends else None

    def endings(self) -> list[Ending]:
        """How every continuation ends."""
        if self.request.beam:
            return [ending(self.request, tokens, self.ended_by(tokens[-1])) for tokens, _ in self.beams]
        return [self._ending(index) for index in range(self.width)]

    def _ending(self, index: int) -> Ending:
        place = 0
        while (step := self.step(index, place))[1] is None:
            place += 1
        token, reason = step
        return ending(self.request, self.line(index).output(place + 1), token if reason == "stop" else None)
