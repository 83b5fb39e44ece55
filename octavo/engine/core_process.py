"""The core process: an `EngineCore` driven by messages. Run as a program by `supervisor.py`.

Between steps it takes in whatever arrived; with nothing to compute it sleeps until something does.
"""

from __future__ import annotations

import logging
import sys
import threading
from queue import Empty, SimpleQueue

import msgspec

from octavo.engine.channel import Abort, Add, Stepped, ToCore
from octavo.engine.core import EngineCore, StepOutputs
from octavo.errors import InvalidRequest, OctavoError, Overloaded
from octavo.execution.executor import make_executor
from octavo.frames import FrameSocket
from octavo.processes import Failed, Ready, Setup, configure_logging, enter_child
from octavo.request import Fault, Output, Request

logger = logging.getLogger(__name__)

Inbox = SimpleQueue[ToCore | None]  # None: the API process is gone


def main(descriptor: int) -> None:
    link: FrameSocket[ToCore] = FrameSocket(enter_child(descriptor), ToCore)
    try:
        setup = link.receive()
    except EOFError:
        return
    assert isinstance(setup, Setup)
    configure_logging(setup.log_level)
    try:
        executor = make_executor(setup.config, setup.checkpoint)
    except OctavoError as error:
        link.send(Failed.of(error))
        return
    core = EngineCore(setup.config, executor)
    try:
        link.send(Ready(executor.capacity))
        run(core, link)
    except ConnectionError:
        pass  # the API process went away while we answered
    finally:
        core.close()


def run(core: EngineCore, link: FrameSocket[ToCore]) -> None:
    """Serve until the other side hangs up."""
    inbox: Inbox = SimpleQueue()
    threading.Thread(target=_listen, args=(link, inbox), daemon=True).start()
    while True:
        refused: list[Output] = []
        news = False
        for message in _arrived(inbox, wait=not core.has_work):
            news = True
            match message:
                case None:
                    return
                case Add(request):
                    refused += _add(core, request)
                case Abort(request_id, index):
                    core.abort(request_id, index)
        if refused or (news and not core.has_work):
            link.send(Stepped(StepOutputs(refused, stats=core.stats())))
        if core.has_work:
            link.send(Stepped(core.step()))


def _listen(link: FrameSocket[ToCore], inbox: Inbox) -> None:
    try:
        while True:
            inbox.put(link.receive())
    except (EOFError, ConnectionError, ValueError):  # ValueError: our side closed the file
        inbox.put(None)
    except msgspec.MsgspecError:
        logger.exception("the API process sent what is no message; ending")
        inbox.put(None)


def _arrived(inbox: Inbox, wait: bool) -> list[ToCore | None]:
    messages = [inbox.get()] if wait else []
    try:
        while True:
            messages.append(inbox.get_nowait())
    except Empty:
        return messages


def _add(core: EngineCore, request: Request) -> list[Output]:
    try:
        core.add(request)
    except (InvalidRequest, Overloaded) as error:
        fault: Fault = "overloaded" if isinstance(error, Overloaded) else "invalid"
        return [Output(request.request_id, finish_reason="error", error=error.message, fault=fault)]
    return []


if __name__ == "__main__":
    main(int(sys.argv[1]))
