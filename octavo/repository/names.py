"""Which version a name means: NAME, NAME:LABEL, NAME:VERSION, NAME@VERSION, NAME:latest, and the same of aliases.

Pure: knows nothing of what is loaded. NAME alone is shared out among versions by weight; equal keys get equal versions,
and a version whose weight grows keeps the keys that it had.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LATEST = "latest"

_SHOWN_NAMES = 20
_SHOWN_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of one model go."""

    shares: tuple[tuple[int, int], ...]  # (version, weight), at least one of them more than 0
    labels: Mapping[str, int]
    policy: tuple[int, ...] = ()  # versions that are to be there besides

    @property
    def versions(self) -> tuple[int, ...]:
        """All that may be asked for."""
        shared = (version for version, weight in self.shares if weight)
        return tuple(sorted({*shared, *self.labels.values(), *self.policy}))

    @property
    def main(self) -> int:
        """The version that most requests get."""
        return max(self.shares, key=lambda share: (share[1], share[0]))[0]

    def share(self, version: int) -> float:
        """Of the requests of the bare name."""
        return dict(self.shares).get(version, 0) / sum(weight for _, weight in self.shares)

    def pick(self, selector: str | None, key: str) -> int | None:
        """The version for a request; None if nothing is called so."""
        if selector is None:
            return self._share(key)
        if selector == LATEST:
            return self.versions[-1]
        if selector in self.labels:
            return self.labels[selector]
        return int(selector) if re.fullmatch("[1-9][0-9]{0,11}", selector) else None

    def _share(self, key: str) -> int:
        """Later versions take their shares from the top, so that a canary's users stay its users while it grows."""
        if len(self.shares) == 1:
            return self.shares[0][0]
        total = sum(weight for _, weight in self.shares)
        place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) * total >> 64
        for version, weight in self.shares:
            if place < weight:
                return version
            place -= weight
        raise AssertionError("the weights add up")


def split(name: str, known: Mapping[str, str]) -> tuple[str, str | None] | None:
    """A model and what is asked of it, by a map from names and aliases to models; None if there is no such name."""
    if name in known:
        return known[name], None
    for mark in (":", "@"):
        base, found, selector = name.rpartition(mark)
        if found and base in known:
            return known[base], selector
    return None


def shown(name: str) -> str:
    """A name out of a request, for an error."""
    return repr(name if len(name) <= _SHOWN_LENGTH else name[:_SHOWN_LENGTH] + "…")


def listed(names: Iterable[str]) -> str:
    """Names for an error that says which there are."""
    every = list(names)
    more = f" and {len(every) - _SHOWN_NAMES} more" if len(every) > _SHOWN_NAMES else ""
    return ", ".join(every[:_SHOWN_NAMES]) + more
