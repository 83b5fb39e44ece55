"""POST /api/pull and DELETE /api/delete: models fetched to this machine and removed from it, by administrators.

What is fetched is not served by that alone, and what is served cannot be removed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path

from starlette.responses import Response
from starlette.types import ASGIApp

from octavo.api.desk import Call
from octavo.api.ollama.errors import OllamaError, ollama_error
from octavo.api.ollama.request import model_name
from octavo.api.ollama.types import DeleteRequest, PullProgress, PullRequest
from octavo.api.operation import Operation
from octavo.api.stream import LINES, EventStream
from octavo.api.wire import json_response, missing
from octavo.checkpoint import Checkpoint, store
from octavo.checkpoint.progress import Progress
from octavo.errors import CheckpointError, InvalidRequest, OctavoError

_HUBS = ("hf.co/", "huggingface.co/")  # how Ollama's users name what is there
_TOLD_SECONDS = 0.25


class _GivenUp(Exception):
    """Said to the threads of a download that nobody waits for any more."""


class _Pull:
    """A download in a thread of its own."""

    def __init__(self, name: str, cache: Path | None) -> None:
        self.name = name
        self.progress = Progress(0, 0)
        self._cache = cache
        self._given_up = threading.Event()

    async def told(self) -> AsyncGenerator[PullProgress, None]:
        """What happens, until it is done. Raises InvalidRequest, ModelNotFound; closing it ends the download."""
        yield PullProgress(status="pulling manifest")
        thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-pull")  # the loop's own threads have others' work
        task = asyncio.get_running_loop().run_in_executor(thread, self._run)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=_TOLD_SECONDS)
                if self.progress.total:
                    done, total = self.progress
                    yield PullProgress(status=f"pulling {self.name}", digest=self.name, total=total, completed=done)
            await task
        finally:
            self._given_up.set()
            thread.shutdown(wait=False)
            task.cancel()
            with suppress(asyncio.CancelledError, CheckpointError, InvalidRequest):
                await task
        yield PullProgress(status="success")

    def _run(self) -> None:
        try:
            store.pull(self.name, cache=self._cache, report=self._report)
        except CheckpointError as error:
            raise InvalidRequest(f"Cannot pull {self.name[:128]!r}: {error.message}", param="model") from None

    def _report(self, progress: Progress) -> None:
        if self._given_up.is_set():
            raise _GivenUp
        self.progress = progress


async def pull(call: Call) -> ASGIApp:
    """Fetch a model to this machine, as Ollama's; it is not served by that alone."""
    request = await call.read(PullRequest)
    name = model_name(_named(request.model or request.name))
    for hub in _HUBS:
        name = name.removeprefix(hub)
    pulling = _Pull(name, _cache(call))
    if request.stream is False:
        last = [told async for told in pulling.told()][-1]
        return json_response(last)
    return await EventStream.open(_with_failure(pulling.told()), LINES)


async def _with_failure(told: AsyncGenerator[PullProgress, None]) -> AsyncGenerator[PullProgress | OllamaError, None]:
    """A download that fails is a stream that ends with an error, as Ollama's: nothing that was told is wrong."""
    async with aclosing(told):
        try:
            async for each in told:
                yield each
        except OctavoError as error:
            yield ollama_error(error)


async def delete(call: Call) -> Response:
    """Remove a model from this machine, as Ollama's."""
    request = await call.read(DeleteRequest)
    name = model_name(_named(request.model or request.name))
    await asyncio.to_thread(_remove, call, name)
    return Response()


def _remove(call: Call, name: str) -> None:
    cache = _cache(call)
    model = store.get(name, cache)
    served = (engine.checkpoint for engine in call.desk.models.engines())
    if any(isinstance(each, Checkpoint) and each.path.resolve() == model.path.resolve() for each in served):
        raise InvalidRequest(f"The model {name[:128]!r} is being served; it cannot be removed.", param="model")
    try:
        store.remove(model, cache)
    except CheckpointError as error:
        raise InvalidRequest(error.message, param="model") from None


def _named(name: str | None) -> str:
    if not name:
        raise missing("model")
    return name


def _cache(call: Call) -> Path | None:
    """Where this server's models are kept."""
    folders = (engine.config.model.download_dir for engine in call.desk.models.engines())
    return next((Path(folder) for folder in folders if folder), None)


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/pull",
        handler=pull,
        takes=PullRequest,
        gives=PullProgress,
        events=PullProgress,
        for_admins=True,
        any_media=True,
        without_effect={"insecure": "The hub is asked over TLS."},
    ),
    Operation(
        method="DELETE", path="/api/delete", handler=delete, takes=DeleteRequest, for_admins=True, any_media=True
    ),
)
