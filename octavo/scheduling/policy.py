"""Policies: the order in which requests are served, as a sort key. The last in order is preempted first.

A preempted sequence keeps its key, so it comes back before everything that arrived later.
"""

from __future__ import annotations

from collections.abc import Callable

from octavo.config import SchedulingPolicy
from octavo.request import BACKGROUND, Request

Key = tuple[float, ...]
Policy = Callable[[Request, int], Key]  # (request, ordinal of its arrival) -> key


def fcfs(request: Request, ordinal: int) -> Key:
    return (request.priority >= BACKGROUND, ordinal)


def priority(request: Request, ordinal: int) -> Key:
    return (request.priority, request.arrival, ordinal)


POLICIES: dict[SchedulingPolicy, Policy] = {"fcfs": fcfs, "priority": priority}
