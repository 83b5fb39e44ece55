"""The core process: an `EngineCore` driven by messages. Run as a program by `supervisor.py`.

Between steps it takes in whatever arrived; with nothing to compute it sleeps until something does.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from octavo.energy import find_meter
from octavo.engine.channel import (
    UNANNOUNCED_WORK,
    Abort,
    Add,
    Began,
    FromCore,
    Look,
    Rested,
    Seen,
    Sleep,
    Stepped,
    ToCore,
    Wake,
)
from octavo.engine.compiling import Compiled, Compiling
from octavo.engine.core import EngineCore, StepOutputs
from octavo.engine.grammar_trial import Trial
from octavo.engine.guidance import Grammar, Grammars
from octavo.errors import EngineDead, InvalidRequest, OctavoError, Overloaded
from octavo.execution.executor import make_executor
from octavo.frames import FrameSocket, NoMessage
from octavo.processes import Failed, Ready, Setup, enter_child, settle
from octavo.request import Fault, Output, Request

if TYPE_CHECKING:
    from octavo.engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Message = ToCore | Compiled
Inbox = SimpleQueue[Message | None]  # None: the API process is gone
_SIGN_OF_LIFE = 0.1  # seconds; whoever watches takes a core that is silent for long for one that hangs


def main(descriptor: int) -> None:
    link: FrameSocket[ToCore] = FrameSocket(enter_child(descriptor), ToCore)
    try:
        setup = link.receive()
    except EOFError:
        return
    assert isinstance(setup, Setup)
    settle(setup)
    try:
        executor = make_executor(setup.config, setup.checkpoint)
    except OctavoError as error:
        link.send(Failed.of(error))
        return
    grammars = _grammars(setup, executor.capacity.vocab_size)
    core = EngineCore(setup.config, executor, grammars=grammars, meter=find_meter(executor.capacity.gpus))
    try:
        link.send(Ready(executor.capacity, os.getpid()))
        run(core, link)
    except ConnectionError:
        pass  # the API process went away while we answered
    except EngineDead as error:  # a worker is gone
        logger.error("%s", error.message)
        sys.exit(1)
    finally:
        core.close()


def run(core: EngineCore, link: FrameSocket[ToCore]) -> None:
    """Serve until the other side hangs up."""
    inbox: Inbox = SimpleQueue()
    threading.Thread(target=_listen, args=(link, inbox), daemon=True).start()
    compiling = Compiling(core.grammars, inbox.put) if core.grammars is not None else None
    while (messages := _arrived(inbox, _wait(core, compiling))) is not None:
        turn(core, messages, link.send, compiling)


def _wait(core: EngineCore, compiling: Compiling | None) -> float | None:
    """Seconds to sleep unless something arrives. Who only waits for a grammar still says that it is alive."""
    if core.has_work:
        return 0.0
    return _SIGN_OF_LIFE if compiling is not None and compiling.busy else None


def turn(
    core: EngineCore,
    messages: Sequence[Message],
    send: Callable[[FromCore], None],
    compiling: Compiling | None = None,
) -> None:
    """One turn of the loop: take in what arrived, then compute a step if there is work. Every turn says something.

    compiling: for requests that have a grammar.
    """
    refused: list[Output] = []
    released: list[str] = []
    for message in messages:
        match message:
            case Add(request):
                refused += _add(core, request, compiling)
            case Compiled(request):
                assert compiling is not None
                if compiling.end(request):
                    refused += _add_compiled(core, message)
            case Abort(request_id, index):
                if compiling is not None:
                    compiling.drop(request_id)
                core.abort(request_id, index)
                if index is None:
                    released.append(request_id)
            case Look():
                send(Seen(core.look()))
            case Sleep() | Wake():
                _rest(core, message, send)
    if refused or released or not core.has_work:
        send(Stepped(StepOutputs(refused, stats=core.stats(), released=released)))
    if core.has_work:
        send(Stepped(core.step(lambda work: send(Began(work)) if work > UNANNOUNCED_WORK else None)))


def _rest(core: EngineCore, message: Sleep | Wake, send: Callable[[FromCore], None]) -> None:
    while core.has_work:  # a step that was under way when what it was for ended
        send(Stepped(core.step()))
    try:
        if isinstance(message, Sleep):
            core.sleep(message.level)
        else:
            core.wake()
    except OctavoError as error:
        send(Rested(Failed.of(error)))
        return
    send(Rested())


def _listen(link: FrameSocket[ToCore], inbox: Inbox) -> None:
    try:
        while True:
            inbox.put(link.receive())
    except NoMessage as error:
        logger.error("%s; ending", error)
    except (EOFError, ConnectionError, ValueError):  # ValueError: our side closed the file
        pass
    finally:
        inbox.put(None)


def _arrived(inbox: Inbox, wait: float | None) -> list[Message] | None:
    """All that is there, waiting for the first so many seconds, or for ever; None once the API process is gone."""
    messages: list[Message] = []
    try:
        while (message := inbox.get(timeout=0.0 if messages else wait)) is not None:
            messages.append(message)
    except Empty:
        return messages
    return None


def _add(core: EngineCore, request: Request, compiling: Compiling | None) -> list[Output]:
    """Nothing if the request was taken, or is as soon as its grammar is compiled; else its end."""
    if request.grammar is None:
        return _admit(core, request)
    assert core.grammars is not None
    assert compiling is not None
    if (grammar := core.grammars.find(request.grammar)) is not None:
        return _admit(core, request, grammar)
    compiling.begin(request)
    return []


def _add_compiled(core: EngineCore, compiled: Compiled) -> list[Output]:
    if compiled.grammar is not None:
        return _admit(core, compiled.request, compiled.grammar)
    return [_refusal(compiled.request, compiled.error)]


def _admit(core: EngineCore, request: Request, grammar: Grammar | None = None) -> list[Output]:
    """Nothing if the request was taken, else its end. Whatever goes wrong with it ends no other."""
    try:
        core.add(request, grammar)
        return []
    except (InvalidRequest, Overloaded) as error:
        return [_refusal(request, error)]
    except Exception:
        logger.exception(
            "request %s could not be admitted", request.request_id, extra={"request_id": request.request_id}
        )
        return [_refusal(request)]


def _refusal(request: Request, error: InvalidRequest | Overloaded | None = None) -> Output:
    if error is None:
        message = "the request could not be admitted; see the server's log"
        return Output(request.request_id, finish_reason="error", error=message, fault="failed")
    fault: Fault = "overloaded" if isinstance(error, Overloaded) else "invalid"
    return Output(request.request_id, finish_reason="error", error=error.message, fault=fault, param=error.param)


def _grammars(setup: Setup, vocab_size: int) -> Grammars:
    def load_tokenizer() -> Tokenizer:
        from octavo.engine.tokenizer import Tokenizer

        return Tokenizer.from_checkpoint(setup.checkpoint, setup.config.model.tokenizer)

    trial = Trial(setup.config, setup.checkpoint, vocab_size)
    return Grammars(load_tokenizer, vocab_size, trial.check)


if __name__ == "__main__":
    main(int(sys.argv[1]))
