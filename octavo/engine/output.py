"""From the core's token ids to what a caller sees: text, logprobs, stop strings, times.

One `OutputProcessor` per face, one `RequestState` per request in flight. Never waits and never talks to the core: it
says which sequences should be aborted, the face does it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from msgspec import structs

from octavo.engine.core import StepOutputs
from octavo.engine.detokenizer import Detokenizer
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import InvalidRequest, OctavoError, Overloaded, RequestFailed
from octavo.metrics import Metrics
from octavo.request import (
    CompletionOutput,
    Continuation,
    Fault,
    FinishReason,
    Logprob,
    Logprobs,
    Output,
    Request,
    RequestMetrics,
    RequestOutput,
)
from octavo.snapshot import MOST_REQUESTS, RequestView

logger = logging.getLogger(__name__)

OutputKind = Literal["delta", "cumulative", "final"]
_ERRORS: dict[Fault, type[OctavoError]] = {
    "failed": RequestFailed,
    "invalid": InvalidRequest,
    "overloaded": Overloaded,
}


class RequestState:
    """One request in flight, as its caller sees it.

    kind: what each RequestOutput carries: only what is new (delta), everything so far (cumulative), or everything once,
    at the end (final).
    """

    def __init__(self, request: Request, prompt: str | None, kind: OutputKind, tokenizer: Tokenizer) -> None:
        self.request = request
        self.times = RequestMetrics(arrival_time=request.arrival)
        self._prompt = prompt
        self._kind = kind
        self._tokenizer = tokenizer
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self.cached_tokens = 0
        self._pooled: bytes | None = None
        self.width = request.beam.beam_width if request.beam else request.params.n
        self._sequences: list[SequenceState | None] = [None] * self.width
        self._unfinished = self.width
        self.last_token_time = request.arrival

    @property
    def finished(self) -> bool:
        return self._unfinished == 0

    @property
    def output_tokens(self) -> int:
        return sum(len(sequence.total.token_ids) for sequence in self._sequences if sequence)

    @property
    def longest_output(self) -> int:
        return max((len(sequence.total.token_ids) for sequence in self._sequences if sequence), default=0)

    @property
    def finish_reason(self) -> FinishReason:
        reasons = [sequence.total.finish_reason for sequence in self._sequences if sequence]
        return "stop" if "stop" in reasons else (reasons[0] or "abort") if reasons else "abort"

    def look(self, now: float) -> RequestView:
        times, tokens = self.times, self.output_tokens
        first, started = times.first_token_time, times.first_scheduled_time is not None
        seconds = 0.0 if first is None else self.last_token_time - first
        return RequestView(
            id=self.request.request_id,
            state="running" if started else "waiting",
            prompt_tokens=len(self.request.prompt_token_ids),
            cached_tokens=self.cached_tokens,
            output_tokens=tokens,
            tokens_per_second=(tokens - self.width) / seconds if seconds > 0 and tokens > self.width else None,
            first_token_seconds=None if first is None else first - times.arrival_time,
            age_seconds=now - times.arrival_time,
        )

    def resumed(self) -> Request:
        """The request as another core goes on with it: without what has been delivered."""
        said = [
            Continuation(sequence.total.index, list(sequence.total.token_ids))
            for sequence in self._sequences
            if sequence and not sequence.total.finished
        ]
        params = self.request.params
        if said and params.prompt_logprobs is not None:
            params = structs.replace(params, prompt_logprobs=None)
        return structs.replace(self.request, params=params, resumes=said)

    def take(self, output: Output) -> tuple[CompletionOutput | None, bool]:
        """The new part of one sequence, and whether the core should stop computing it (a stop string came up)."""
        if output.prompt_logprobs is not None:
            positions = [self._named(entry) for entry in output.prompt_logprobs]
            self._prompt_logprobs = [None, *positions]
        if self.times.first_token_time is None:  # after a crash, another core has found another number
            self.cached_tokens = output.cached_tokens
        self._pooled = output.pooled
        sequence = self._sequences[output.index]
        if sequence is None:
            sequence = self._sequences[output.index] = SequenceState(output.index, self.request, self._tokenizer)
        if sequence.total.finished:
            return None, False  # tokens computed before the abort arrived
        logprobs = [self._named(entry) for entry in output.logprobs] if output.logprobs else None
        part, stopped = sequence.take(output, logprobs)
        if part.finished:
            self._unfinished -= 1
        return part, stopped and output.finish_reason is None

    def report(self, parts: list[CompletionOutput], first: bool) -> RequestOutput | None:
        """What the caller gets for these new parts, or None if it is not time yet."""
        if self._kind == "final" and not self.finished:
            return None
        outputs = parts
        if self._kind != "delta":
            outputs = [sequence.snapshot() for sequence in self._sequences if sequence]
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self._prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=outputs,
            finished=self.finished,
            prompt_logprobs=self._prompt_logprobs if first or self._kind != "delta" else None,
            num_cached_tokens=self.cached_tokens,
            metrics=self.times,
            pooled=self._pooled,
        )

    def _named(self, entry: Logprobs) -> dict[int, Logprob]:
        found: dict[int, Logprob] = {}
        for token_id, value, rank in zip(entry.token_ids, entry.logprobs, entry.ranks, strict=True):
            found.setdefault(token_id, Logprob(value, rank, self._tokenizer.token(token_id)))
        return found


class SequenceState:
    """One continuation: its text so far and how it ends."""

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer) -> None:
        wants_logprobs = request.params.logprobs is not None
        self.total = CompletionOutput(
            index=index,
            text="",
            token_ids=[],
            cumulative_logprob=0.0 if wants_logprobs else None,
            logprobs=[] if wants_logprobs else None,
        )
        self._stop_token_ids = request.params.stop_token_ids
        self._shows_stop = request.params.include_stop_str_in_output
        self._detokenizer = (
            Detokenizer(tokenizer, request.prompt_token_ids, request.params) if request.params.detokenize else None
        )

    def take(self, output: Output, logprobs: list[dict[int, Logprob]] | None) -> tuple[CompletionOutput, bool]:
        total = self.total
        reason = output.finish_reason
        asked = output.stop_token_id in self._stop_token_ids  # else it is the model's own end token
        stop_reason: int | str | None = output.stop_token_id if asked else None
        text = self._text(output)
        stopped = self._detokenizer is not None and self._detokenizer.stop_string is not None
        if stopped:
            assert self._detokenizer is not None
            reason, stop_reason = "stop", self._detokenizer.stop_string
        total.text += text
        total.token_ids += output.token_ids
        total.finish_reason, total.stop_reason = reason, stop_reason
        if total.logprobs is not None and logprobs is not None:
            total.logprobs += logprobs
            drawn = zip(output.token_ids, logprobs, strict=True)
            total.cumulative_logprob = (total.cumulative_logprob or 0.0) + sum(e[token].logprob for token, e in drawn)
        if output.cumulative_logprob is not None:
            total.cumulative_logprob = output.cumulative_logprob
        part = CompletionOutput(
            index=total.index,
            text=text,
            token_ids=list(output.token_ids),
            cumulative_logprob=total.cumulative_logprob,
            logprobs=logprobs,
            finish_reason=reason,
            stop_reason=stop_reason,
        )
        return part, stopped

    def snapshot(self) -> CompletionOutput:
        total = self.total
        return CompletionOutput(
            index=total.index,
            text=total.text,
            token_ids=list(total.token_ids),
            cumulative_logprob=total.cumulative_logprob,
            logprobs=list(total.logprobs) if total.logprobs is not None else None,
            finish_reason=total.finish_reason,
            stop_reason=total.stop_reason,
        )

    def _text(self, output: Output) -> str:
        """The text these tokens release; an end token is part of it only if it was asked for."""
        if self._detokenizer is None:
            return ""
        hidden = output.stop_token_id is not None and not (
            self._shows_stop and output.stop_token_id in self._stop_token_ids
        )
        visible = output.token_ids[:-1] if hidden else output.token_ids
        text = self._detokenizer.append(visible)
        if output.finish_reason is not None:
            text += self._detokenizer.finish()
        return text


def _failure(output: Output) -> OctavoError:
    assert output.error is not None
    code = "invalid_value" if output.param is not None else None
    return _ERRORS[output.fault](output.error, param=output.param, code=code)


@dataclass(slots=True)
class News:
    """What a step brought for callers, and what the core should stop computing."""

    reports: list[RequestOutput] = field(default_factory=list)
    failures: dict[str, OctavoError] = field(default_factory=dict)
    aborts: list[tuple[str, int | None]] = field(default_factory=list)  # requests, or sequences of requests


class OutputProcessor:
    """Every request in flight of one face, in order of arrival, and their metrics."""

    def __init__(self, tokenizer: Tokenizer, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._clock = clock
        self._states: dict[str, RequestState] = {}

    @property
    def unfinished(self) -> int:
        return len(self._states)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._states

    def __getitem__(self, request_id: str) -> RequestState:
        return self._states[request_id]

    def look(self) -> tuple[list[RequestView], int]:
        """Requests in flight, running ones first, and how many more there are."""
        started = [state for state in self._states.values() if state.times.first_scheduled_time is not None]
        waiting = (state for state in self._states.values() if state.times.first_scheduled_time is None)
        shown = [*started[:MOST_REQUESTS], *islice(waiting, max(0, MOST_REQUESTS - len(started)))]
        now = self._clock()
        return [state.look(now) for state in shown], len(self._states) - len(shown)

    def add(self, request: Request, prompt: str | None, kind: OutputKind) -> None:
        self._states[request.request_id] = RequestState(request, prompt, kind, self._tokenizer)
        self._metrics.accept()

    def drop(self, request_id: str, reason: FinishReason = "abort") -> None:
        """The caller gave the request up, or it failed."""
        state = self._states.pop(request_id, None)
        if state is not None:
            state.times.finished_time = self._clock()
            self._metrics.finish(reason, state.times, state.output_tokens, state.longest_output)

    def take(self, step: StepOutputs) -> News:
        """What goes wrong while one request's outputs are made ends that request only."""
        now = self._clock()
        news = News()
        self._metrics.observe(step.stats)
        for request_id, moment in step.started.items():
            self._start(request_id, moment)
        for request_id in step.preempted:
            if request_id in self._states:
                self._states[request_id].times.preemptions += 1
        self._metrics.spend(step.seconds, step.joules)
        for request_id, share in step.shares.items():
            self._charge(request_id, step, share / step.work)
        grouped: dict[str, list[Output]] = {}
        for output in step.outputs:
            if output.error is not None:
                news.failures[output.request_id] = _failure(output)
                grouped.pop(output.request_id, None)
                self.drop(output.request_id, "error")
            elif output.request_id in self._states:
                grouped.setdefault(output.request_id, []).append(output)
        for request_id, outputs in grouped.items():
            try:
                self._advance(self._states[request_id], outputs, now, news)
            except Exception:
                logger.exception(
                    "the output of request %s could not be made", request_id, extra={"request_id": request_id}
                )
                news.failures[request_id] = RequestFailed("the output could not be made; see the server's log")
                news.aborts.append((request_id, None))
                self.drop(request_id, "error")
        return news

    def _start(self, request_id: str, moment: float) -> None:
        state = self._states.get(request_id)
        if state is not None and state.times.first_scheduled_time is None:  # a resumed request starts once
            state.times.first_scheduled_time = moment
            self._metrics.begin(len(state.request.prompt_token_ids), state.request.max_tokens, state.width)

    def _charge(self, request_id: str, step: StepOutputs, share: float) -> None:
        """What a request cost in a step, of which it was this share."""
        if (state := self._states.get(request_id)) is None:
            return
        state.times.compute_seconds += step.seconds * share
        if step.joules is not None:
            state.times.energy_joules = (state.times.energy_joules or 0.0) + step.joules * share

    def _advance(self, state: RequestState, outputs: Sequence[Output], now: float, news: News) -> None:
        first = state.times.first_token_time is None
        parts: list[CompletionOutput] = []
        for output in outputs:
            part, stop = state.take(output)
            if part is not None:
                parts.append(part)
                self._metrics.generation_tokens.inc(len(part.token_ids))
            if stop:
                news.aborts.append((output.request_id, output.index))
        if first:
            state.times.first_token_time = now
            self._metrics.prefill(len(state.request.prompt_token_ids), state.cached_tokens)
            self._metrics.ttft.observe(now - state.times.arrival_time)
        elif parts:
            self._metrics.itl.observe(now - state.last_token_time)
        state.last_token_time = now
        report = state.report(parts, first) if parts else None
        if report is not None:
            news.reports.append(report)
        if state.finished:
            state.times.finished_time = now
            self._metrics.finish(state.finish_reason, state.times, state.output_tokens, state.longest_output)
            del self._states[state.request.request_id]
