"""Which model a request means: the names that clients may use, and the engine behind each."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import ModelNotFound
from octavo.face import Engine


@dataclass(frozen=True, slots=True)
class Served:
    """A model as a request meets it."""

    name: str  # to answer with
    engine: Engine


def served_names(engine: Engine) -> tuple[str, ...]:
    return engine.config.model.served_model_name or (engine.checkpoint.name,)


def serve_as(engine: Engine, name: str | None) -> Served:
    """The engine under the name that was asked for; None asks for the only model there is. Raises ModelNotFound."""
    names = served_names(engine)
    if name is None:
        return Served(names[0], engine)
    if name not in names:
        raise _not_found(name, names)
    return Served(name, engine)


def _not_found(name: str, names: tuple[str, ...]) -> ModelNotFound:
    shown = name if len(name) <= 64 else name[:64] + "…"
    return ModelNotFound(f"The model {shown!r} does not exist; this server has {', '.join(names)}.", param="model")
