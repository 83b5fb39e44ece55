"""What clients and operators are told of a repository's models. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from octavo.checkpoint import name_of
from octavo.face import Known, ModelStatus, VersionCard, VersionStatus
from octavo.repository.lifecycle import Life
from octavo.repository.model import Model


def known(model: Model, name: str, life: Life) -> Known:
    """A name, whose requests this life gets."""
    return Known(
        name=name,
        model=model.name,
        state=life.state,
        version=life.version,
        versions=[
            VersionCard(version=version, state=model.choose(version).state, labels=_labels(model, version))
            for version in model.addressable()
        ],
        root=life.engine.checkpoint.name if life.engine is not None else name_of(life.config.model),
        max_model_len=life.max_model_len,
    )


def status(model: Model, now: float, wall: float) -> ModelStatus:
    """now: on the lives' clock, which is `wall` in UNIX seconds."""
    main = model.main
    return ModelStatus(
        name=model.name,
        aliases=list(model.declared.aliases),
        state=main.state,
        version=main.version,
        changing=bool(model.former),
        preload=model.declared.preload,
        keep_alive=model.declared.keep_alive,
        versions=[_version(model, life, wall - now) for life in _in_order(model)],
    )


def _in_order(model: Model) -> Iterator[Life]:
    yield from sorted(model.all(), key=lambda life: (life.version, not life.retired))


def _version(model: Model, life: Life, offset: float) -> VersionStatus:
    expires = model.expires(life)
    return VersionStatus(
        version=life.version,
        state=life.state,
        asleep=life.engine is not None and life.engine.is_sleeping,
        since=round(life.since + offset, 3),
        reason=life.reason,
        source=life.config.model.model,
        labels=[] if life.retired else _labels(model, life.version),
        share=0.0 if life.retired else model.route.share(life.version),
        retired=life.retired,
        memory=life.needs,
        requests=life.leases,
        waiting=life.waiters,
        last_used=None if life.used_at is None else round(life.used_at + offset, 3),
        expires_at=None if expires is None else round(expires + offset, 3),
    )


def _labels(model: Model, version: int) -> list[str]:
    return [label for label, target in model.route.labels.items() if target == version]
