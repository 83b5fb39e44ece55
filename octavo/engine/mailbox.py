"""A request's outputs on their way to its caller: never more than one waits, however slowly the caller reads.

What is unread becomes part of what follows, so a caller who pauses costs its answer's length and no more. Knows neither
the core nor the caller.
"""

from __future__ import annotations

import asyncio

from octavo.engine.output import OutputKind
from octavo.errors import OctavoError
from octavo.request import CompletionOutput, RequestOutput


class Mailbox:
    """One request's. kind: what each output carries; of deltas none may be lost, of others the newest says it all."""

    def __init__(self, kind: OutputKind) -> None:
        self._kind = kind
        self._unread: RequestOutput | None = None
        self._failure: OctavoError | None = None
        self._filled = asyncio.Event()

    def put(self, output: RequestOutput) -> None:
        """The output is the mailbox's from now on: later ones may be added to it."""
        if self._unread is None or self._kind != "delta":
            self._unread = output
        else:
            _add(self._unread, output)
        self._filled.set()

    def fail(self, reason: OctavoError) -> None:
        """Nothing follows. The first reason counts."""
        self._failure = self._failure or reason
        self._filled.set()

    async def take(self) -> RequestOutput:
        """What is new, once there is something; when all is read, raises what the request failed for."""
        await self._filled.wait()
        if self._unread is None:
            assert self._failure is not None
            raise self._failure
        output, self._unread = self._unread, None
        if self._failure is None:
            self._filled.clear()
        return output


def _add(output: RequestOutput, later: RequestOutput) -> None:
    parts = {part.index: part for part in output.outputs}
    for new in later.outputs:
        if (part := parts.get(new.index)) is None:
            output.outputs.append(new)
        else:
            _continue(part, new)
    output.finished = later.finished


def _continue(part: CompletionOutput, new: CompletionOutput) -> None:
    part.text += new.text
    part.token_ids += new.token_ids
    if part.logprobs is not None and new.logprobs is not None:
        part.logprobs += new.logprobs
    part.cumulative_logprob = new.cumulative_logprob
    part.finish_reason, part.stop_reason = new.finish_reason, new.stop_reason
