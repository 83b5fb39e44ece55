"""From a scenario that fails to a small one that fails in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from msgspec import NODEFAULT
from msgspec.structs import asdict, fields, replace

from octavo.errors import InvalidRequest
from simulation.books import Violation
from simulation.run import run
from simulation.scenario import Ask, Op, Scenario, Setup

Record = TypeVar("Record", Ask, Setup)


def broken(scenario: Scenario) -> Violation | None:
    try:
        run(scenario)
    except Violation as violation:
        return violation
    except InvalidRequest:  # leaving something out made a request that nobody can ask
        return None
    return None


def shrink(scenario: Scenario) -> Scenario:
    """Leave out operations, then say the rest in fewer words, as long as the same invariant breaks."""
    violation = broken(scenario)
    assert violation is not None
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(scenario):
            failure = broken(candidate)
            if failure is not None and failure.invariant == violation.invariant:
                scenario, smaller = candidate, True
                break
    return replace(scenario, note=str(broken(scenario)))


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    ops = scenario.ops
    length = len(ops)
    while length:
        for start in range(0, len(ops), length):
            yield replace(scenario, ops=[*ops[:start], *ops[start + length :]])
        length //= 2
    for place, op in enumerate(ops):
        for simpler in _simpler(op):
            yield replace(scenario, ops=[*ops[:place], simpler, *ops[place + 1 :]])
    for setup in _plainer(scenario.setup):
        yield replace(scenario, setup=setup)


def _simpler(op: Op) -> Iterator[Op]:
    if isinstance(op, Ask):
        yield from _plainer(op)
        for length in {len(op.prompt) // 2, len(op.prompt) - 1} - {len(op.prompt), 0, -1}:
            yield replace(op, prompt=op.prompt[:length])


def _plainer(record: Record) -> Iterator[Record]:
    """With one field at its default."""
    values = asdict(record)
    for field in fields(record):
        if not field.required:
            default = field.default if field.default is not NODEFAULT else field.default_factory()
            if values[field.name] != default:
                yield replace(record, **{field.name: default})
