"""GET /api/tags, /api/ps and /api/version, POST /api/show: what is served, as Ollama's clients list it.

What the files of a model say is read anew for each request, off the event loop: headers only, a few milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from octavo import __version__
from octavo.api.desk import Call
from octavo.api.ollama.answer import rfc3339
from octavo.api.ollama.request import model_name
from octavo.api.ollama.types import (
    Details,
    ListedModel,
    OllamaModelList,
    RunningModel,
    RunningModels,
    ShownModel,
    ShowRequest,
    VersionAnswer,
)
from octavo.api.operation import Operation
from octavo.api.wire import json_response, missing
from octavo.checkpoint import Checkpoint, store
from octavo.checkpoint.description import Description, describe
from octavo.errors import CheckpointError, NotFound
from octavo.face import Engine, Known, VersionStatus

_FOR_EVER = "9999-12-31T23:59:59Z"
_SCALES = ((1e9, "B"), (1e6, "M"), (1e3, "K"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A model that is served, and what its files say; nothing, if they cannot be read any more."""

    known: Known
    engine: Engine | None  # None: not loaded
    status: VersionStatus | None  # of the version that serves
    about: Description | None
    digest: str

    @property
    def size(self) -> int:
        return self.about.size if self.about else 0

    @property
    def modified(self) -> str:
        return rfc3339(max((path.stat().st_mtime for path, _ in self.about.files), default=0) if self.about else 0)

    @property
    def details(self) -> Details:
        about = self.about
        if about is None:
            return Details()
        return Details(
            format=about.format,
            family=about.family,
            families=[about.family],
            parameter_size=_amount(about.parameters),
            quantization_level=about.quantization,
        )


async def tags(call: Call) -> Response:
    """The models that are served, as Ollama's."""
    cards = await _cards(call, call.desk.known())
    return json_response(
        OllamaModelList(
            models=[
                ListedModel(
                    name=card.known.name,
                    model=card.known.name,
                    modified_at=card.modified,
                    size=card.size,
                    digest=card.digest,
                    details=card.details,
                )
                for card in cards
            ]
        )
    )


async def running(call: Call) -> Response:
    """The models that are loaded, as Ollama's."""
    cards = await _cards(call, [known for known in call.desk.known() if known.state == "ready"])
    return json_response(RunningModels(models=[_running(card) for card in cards]))


def _running(card: Card) -> RunningModel:
    on_gpu = card.engine is not None and card.engine.config.execution.device.startswith("cuda")
    size = (card.status and card.status.memory) or card.size
    expires = card.status.expires_at if card.status else None
    return RunningModel(
        name=card.known.name,
        model=card.known.name,
        size=size,
        digest=card.digest,
        details=card.details,
        expires_at=_FOR_EVER if expires is None else rfc3339(expires),
        size_vram=size if on_gpu else 0,
        context_length=card.known.max_model_len or 0,
    )


async def show(call: Call) -> Response:
    """What is known of one model, as Ollama's."""
    request = await call.read(ShowRequest)
    asked = request.model or request.name
    if asked is None:
        raise missing("model")
    (card,) = await _cards(call, [call.desk.models.find(model_name(asked))])
    return json_response(_shown(card))


def _shown(card: Card) -> ShownModel:
    about = card.about
    return ShownModel(
        license=(about and about.license) or "",
        modelfile=f"FROM {card.known.root}\n",
        parameters="\n".join(f"{name} {value}" for name, value in about.sampling.items()) if about else "",
        template=(about and about.template) or "",
        details=card.details,
        model_info=_facts(about) if about else {},
        capabilities=_capabilities(card),
        modified_at=card.modified,
    )


def _facts(about: Description) -> dict[str, Any]:
    """Under the names that they have in a GGUF file."""
    facts = {
        "general.architecture": about.family,
        "general.parameter_count": about.parameters,
        f"{about.family}.context_length": about.context,
        f"{about.family}.embedding_length": about.width,
        f"{about.family}.block_count": about.layers,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _capabilities(card: Card) -> list[str]:
    template = (card.about and card.about.template) or ""
    tasks = card.engine.ability.tasks if card.engine else ("generate",)
    able = {
        "completion": "generate" in tasks,
        "embedding": "embed" in tasks,
        "tools": "tools" in template,
        "thinking": "think" in template,
    }
    return [name for name, can in able.items() if can]


async def _cards(call: Call, known: Sequence[Known]) -> list[Card]:
    models = call.desk.models
    engines = {engine.checkpoint.name: engine for engine in models.engines()}
    versions = {(model.name, each.version): each for model in models.status() for each in model.versions}
    return await asyncio.to_thread(
        lambda: [_card(each, engines.get(each.root), versions.get((each.model, each.version))) for each in known]
    )


def _card(known: Known, engine: Engine | None, status: VersionStatus | None) -> Card:
    about, digest = None, ""
    try:
        source = (status and status.source) or known.root
        checkpoint = store.open_here(source) if engine is None else engine.checkpoint
        about = describe(checkpoint) if isinstance(checkpoint, Checkpoint) else None
        stored = store.find(source)
        digest = stored.digest if stored else ""
    except (CheckpointError, NotFound):
        pass  # it is listed with what is known without its files
    return Card(known=known, engine=engine, status=status, about=about, digest=digest)


def _amount(count: int) -> str:
    """A number of parameters: 134.5M."""
    for scale, letter in _SCALES:
        if count >= scale:
            return f"{count / scale:.1f}{letter}"
    return str(count)


async def version(_: Call) -> Response:
    """Which octavo this is, as Ollama's clients ask."""
    return json_response(VersionAnswer(version=__version__))


OPERATIONS = (
    Operation(method="GET", path="/api/tags", handler=tags, gives=OllamaModelList),
    Operation(method="GET", path="/api/ps", handler=running, gives=RunningModels),
    Operation(method="POST", path="/api/show", handler=show, takes=ShowRequest, gives=ShownModel, any_media=True),
    Operation(method="GET", path="/api/version", handler=version, gives=VersionAnswer),
)
