"""Grammars at work in the core: compiled once, one matcher for every sequence that has to follow one.

A matcher says which tokens may come next (a mask, a bit per token) and takes in the token that was drawn. The scheduler
and the workshop know nothing of this: masks travel in the plan, and a row's result says after which draw nothing may
follow. Compiling and matching are llguidance's, loaded with the first grammar. Its matchers of one grammar share what
they have found out about it, which makes masks cheap: so they are copied from one that is kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from octavo.errors import InvalidRequest
from octavo.plan import RowResult, StepPlan, StepResult
from octavo.request import Continuation, Output, Request

if TYPE_CHECKING:
    from octavo.engine.tokenizer import Tokenizer

PARAM = "structured_outputs"
_KEPT_BYTES = 256 * 2**20  # of compiled grammars that no request may be using
_BYTES, _BYTES_PER_CHARACTER, _BYTES_PER_MASK = 2**18, 256, 64  # that one is taken for; measured ones need less
_LONGEST_USE = 2**18  # masks of one compiled grammar; what was found out for them is never forgotten
_MOST_ITEMS_IN_ROW = 2000  # readings of the text so far that a matcher follows
_STACK = 2**28  # bytes for the compiler, which descends into grammars; only what is used takes memory
#: A row's sequence id -> request id, and which of its sequences; None once that has ended.
Whose = Callable[[int], tuple[str, int] | None]


class Matcher(Protocol):
    """Of llguidance's: what is used here. Nothing is raised; a matcher with an error stays so."""

    def deep_copy(self) -> Matcher: ...
    def compute_bitmask(self) -> bytes: ...
    def consume_token(self, token: int) -> bool: ...
    def consume_tokens(self, tokens: list[int]) -> bool: ...
    def is_accepting(self) -> bool: ...
    def is_stopped(self) -> bool: ...
    def is_error(self) -> bool: ...
    def get_error(self) -> str: ...


#: What llguidance says shortly, said so that a caller can do something about it.
_EXPLAINED = {
    "NoExtensionBias": "no output can satisfy it",
    "too many": "it is too complex; simplify it, or bound its repetitions lower",
    "fuel": "it is too complex; simplify it, or bound its repetitions lower",
}


def refusal(complaint: str) -> InvalidRequest:
    """llguidance's complaints may end with its own state, and quote all of a long grammar."""
    told = complaint.split("\n<")[0].strip()[:300]
    for word, meaning in _EXPLAINED.items():
        if word.lower() in told.lower():
            told = f"{meaning} ({told})"
            break
    return InvalidRequest(f"the grammar cannot be followed: {told}", param=PARAM, code="invalid_value")


@dataclass(slots=True)
class Grammar:
    """One that is compiled. `matcher` is at its beginning and stays there."""

    text: str
    matcher: Matcher
    masks: int = 0  # that copies of the matcher have made

    @property
    def size(self) -> int:
        return _BYTES + _BYTES_PER_CHARACTER * len(self.text) + _BYTES_PER_MASK * self.masks


class Grammars:
    """The compiled grammars of one model, those used last. `find` and `discard` never wait for `compile`.

    check: raises InvalidRequest for a text that had better not be compiled here.
    """

    def __init__(
        self,
        load_tokenizer: Callable[[], Tokenizer],
        vocab_size: int,
        check: Callable[[str], None] | None = None,
    ) -> None:
        self._load_tokenizer = load_tokenizer
        self._vocab_size = vocab_size
        self._check = check
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, text: str) -> Grammar | None:
        with self._lock:
            found = self._compiled.get(text)
            if found is not None:
                self._compiled.move_to_end(text)
            return found

    def compile(self, text: str) -> Grammar:
        """A millisecond for most, a second for large ones. One thread at a time. Raises InvalidRequest."""
        if (found := self.find(text)) is not None:
            return found
        if self._check is not None:
            self._check(text)
        grammar = Grammar(text, self.make(text))
        with self._lock:
            self._compiled[text] = grammar
            while len(self._compiled) > 1 and sum(each.size for each in self._compiled.values()) > _KEPT_BYTES:
                self._compiled.popitem(last=False)
        return grammar

    def discard(self, grammar: Grammar) -> None:
        """Its matchers live on; who asks for the text next gets a new one."""
        with self._lock:
            if self._compiled.get(grammar.text) is grammar:
                del self._compiled[grammar.text]

    def load(self) -> None:
        """Have the vocabulary at hand, which takes a moment, and Python's lock for most of it."""
        assert self._vocabulary is not None

    def make(self, text: str) -> Matcher:
        """Compile, whatever it takes, in a thread that has a large stack. Raises InvalidRequest."""
        future: Future[Matcher] = Future()
        usual = threading.stack_size(_STACK)
        threading.Thread(target=_fulfil, args=(future, lambda: self._matcher(text)), daemon=True).start()
        threading.stack_size(usual)
        return future.result()

    def _matcher(self, text: str) -> Matcher:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(  # where a number is spent at a pace, that is about as much in a millisecond
            max_items_in_row=_MOST_ITEMS_IN_ROW,
            initial_lexer_fuel=200_000,  # 50,000; of memory: a kilobyte for eight
            step_lexer_fuel=200_000,  # 14,000
            step_max_items=50_000,  # 20,000
            max_lexer_states=50_000,  # a kilobyte or two each
            max_grammar_size=100_000,
            verbose_errors=False,
        )
        matcher: Matcher = LLMatcher(self._vocabulary, text, limits=limits, log_level=0)
        trial = matcher.deep_copy()
        if not matcher.is_error():
            trial.compute_bitmask()  # some faults show only here, and the first mask is the dearest
        if trial.is_error():
            raise refusal(trial.get_error())
        return matcher

    @cached_property
    def _vocabulary(self) -> Any:
        from llguidance import LLTokenizer

        tokenizer = self._load_tokenizer()
        wrapped = _Vocabulary(tokenizer, self._vocab_size)
        asked: Any = wrapped  # for the names that it has, not for being the library's own class
        wrapped.trie = LLTokenizer(asked, eos_token=wrapped.eos_token_ids)
        return wrapped.trie


def _fulfil(future: Future[Matcher], work: Callable[[], Matcher]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


class _Vocabulary:
    """A model's tokens under the names by which llguidance asks for them. It calls this to cut forced text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(size)]
        self.eos_token_ids = [token_id for token_id in tokenizer.eos_token_ids if token_id < size]
        if not self.eos_token_ids:  # there has to be one: the model cannot say it, but then a matcher says it is done
            self.eos_token_ids = [size]
            self.tokens.append(b"")
        self.eos_token_id = self.eos_token_ids[0]
        #: Tokens that no text of a grammar matches: neither special ones nor those that would end the output.
        self.special_token_ids = [*{*self.eos_token_ids, *(each for each in tokenizer.special_ids if each < size)}]
        self.trie: Any = None

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text as the model would write it, if they are just its bytes; else the longest that fit."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        exact = b"".join(self.tokens[token_id] for token_id in ids if token_id < len(self.tokens)) == text.encode()
        if exact and not self._tokenizer.special_ids.intersection(ids):
            return ids
        greedy: list[int] = self.trie.greedy_tokenize(text)
        return greedy


@dataclass(slots=True)
class _Guided:
    """A request that has a grammar, and where each of its sequences stands in it."""

    grammar: Grammar
    stop_ids: frozenset[int]  # end tokens of the caller's own
    matchers: dict[int, Matcher]


class Guides:
    """The matchers of all live sequences that follow a grammar."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._guided: dict[str, _Guided] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._guided)

    def add(self, request: Request, grammar: Grammar) -> None:
        """Sequences that another core began go on where they were. Raises InvalidRequest."""
        guided = _Guided(grammar, frozenset(request.params.stop_token_ids), {})
        for known in request.resumes or [Continuation(0, [])]:
            matcher = guided.matchers[known.index] = grammar.matcher.deep_copy()
            if known.token_ids and not matcher.consume_tokens(known.token_ids):
                raise self._complaint(guided, matcher)
        self._guided[request.request_id] = guided

    def drop(self, request_id: str, index: int | None = None) -> None:
        guided = self._guided.get(request_id)
        if guided is None:
            return
        if index is not None:
            guided.matchers.pop(index, None)
        if index is None or not guided.matchers:
            del self._guided[request_id]

    def mask(self, plan: StepPlan, whose: Whose) -> None:
        """Say in the plan what may be drawn."""
        for row in plan.rows:
            guided, index = self._find(whose(row.sequence_id))
            if row.draws and guided is not None:
                plan.masks[row.sequence_id] = self._mask(guided, guided.matchers[index])

    def _mask(self, guided: _Guided, matcher: Matcher) -> bytes:
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            return b""
        guided.grammar.masks += 1
        if guided.grammar.masks == _LONGEST_USE:
            self._grammars.discard(guided.grammar)
        return _with_ends(mask, guided.stop_ids, matcher.is_accepting()) if guided.stop_ids else mask

    def advance(self, result: StepResult, whose: Whose) -> StepResult:
        """Follow what was drawn; in the result stands then after which draws nothing may follow."""
        rows = [self._follow(row, *self._find(whose(row.sequence_id))) for row in result.rows]
        return StepResult(result.step, rows)

    def _find(self, sequence: tuple[str, int] | None) -> tuple[_Guided | None, int]:
        """What a sequence has to follow, and which of its request's it is."""
        return (None, 0) if sequence is None else (self._guided.get(sequence[0]), sequence[1])

    def _follow(self, row: RowResult, guided: _Guided | None, index: int) -> RowResult:
        if guided is None:
            return row
        matcher = guided.matchers[index]
        if matcher.is_error():
            return self._failed(row, guided, matcher)
        if row.error is not None or not row.token_ids:
            return row
        for place in range(1, len(row.token_ids)):  # a prompt forks
            guided.matchers[index + place] = matcher.deep_copy()
        complete = []
        for place, token in enumerate(row.token_ids):
            matcher = guided.matchers[index + place]
            if token not in guided.stop_ids and not matcher.consume_token(token):
                return self._failed(row, guided, matcher)
            complete.append(matcher.is_stopped())
        return replace(row, complete=complete)

    def _failed(self, row: RowResult, guided: _Guided, matcher: Matcher) -> RowResult:
        complaint = self._complaint(guided, matcher)
        return RowResult(row.sequence_id, [], error=complaint.message, fault="invalid", param=PARAM)

    def _complaint(self, guided: _Guided, matcher: Matcher) -> InvalidRequest:
        """What the matchers of one grammar share may be spoilt: others are to have their own."""
        self._grammars.discard(guided.grammar)
        return refusal(matcher.get_error())

    def forget(self, outputs: Iterable[Output]) -> None:
        """Those that have ended."""
        for output in outputs:
            if output.finish_reason is not None:
                self.drop(output.request_id, None if output.error is not None else output.index)


def _with_ends(mask: bytes, ids: Iterable[int], accepting: bool) -> bytes:
    """The caller's end tokens end the output, whatever their text: they may come where the grammar may end."""
    changed = bytearray(mask)
    for token_id in ids:
        bit = 1 << token_id % 8
        changed[token_id // 8] = changed[token_id // 8] | bit if accepting else changed[token_id // 8] & ~bit
    return bytes(changed)
