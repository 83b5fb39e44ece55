"""One model of a repository: its declaration, where its requests go, and the lives of its versions. Pure.

What is asked for may not be there yet. While it is not, the model is in transition: requests go where they went before
(`former`), and what serves them stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from octavo.errors import ConfigError
from octavo.repository.declared import DeclaredModel
from octavo.repository.lifecycle import Life
from octavo.repository.names import Route

_REMEMBERED = 8


class Model:
    """A change returns nothing; `settle` says what is not needed any more."""

    def __init__(self, declared: DeclaredModel, now: float) -> None:
        self.name = declared.name
        self.declared = declared
        self.traffic = declared.traffic  # or what an administrator has said since
        self.route = declared.route()
        self.former: list[Route] = []  # while the route's versions are not all there; the last one last
        self.past: list[tuple[tuple[int, int], ...]] = []  # shares of earlier routes, the last one last
        self.extra: set[int] = set()  # versions that an administrator wants besides
        self.lives: dict[int, Life] = {}  # of the declaration
        self.retired: list[Life] = []  # of earlier ones, still loaded
        self._live_as_declared(now)
        if declared.preload:
            for life in self.targets():
                life.want(now, gentle=True)

    # ------------------------------------------------------------------ what there is

    def all(self) -> Iterator[Life]:
        yield from self.lives.values()
        yield from self.retired

    def targets(self) -> list[Life]:
        """What is to be loaded when the model is in use."""
        return [self.lives[version] for version in self.addressable()]

    def addressable(self) -> list[int]:
        """Versions that a request may ask for."""
        return sorted({*self.route.versions, *self.extra} & self.lives.keys())

    @property
    def awake(self) -> bool:
        """In use: what its route comes to need is loaded at once."""
        return any(life.wanted or life.state in ("loading", "ready") for life in self.all())

    @property
    def main(self) -> Life:
        """The version that most requests of the bare name get now."""
        life = self.choose(self.route.main)
        if life.state == "ready":
            return life
        return self._before(lambda route: route.main) or life

    def pick(self, selector: str | None, key: str) -> Life | None:
        """Who is to answer: ready, or to be waited for. None if there is nothing of that name."""
        version = self.route.pick(selector, key)
        if version is None or not self._may_be_asked(version):
            return None
        life = self.choose(version)
        if life.state == "ready":
            return life
        if (before := self._before(lambda route: route.pick(selector, key))) is not None:
            return before
        if life.state == "failed":
            asleep = self._before(lambda route: route.pick(selector, key), ready=False)
            return (self._other_share() if selector is None else None) or asleep or life
        return life

    def _before(self, choice: Callable[[Route], int | None], ready: bool = True) -> Life | None:
        """Who served before the transition, or in the course of it; or else could again."""
        for route in reversed(self.former):
            version = choice(route)
            life = None if version is None else self._best(version)
            if life is not None and (life.state == "ready" if ready else life.state != "failed" and not life.retired):
                return life
        return None

    def choose(self, version: int) -> Life:
        """The life of a version that serves, else the declared one."""
        life = self._best(version)
        assert life is not None
        return life

    def _best(self, version: int) -> Life | None:
        declared = self.lives.get(version)
        if declared is not None and declared.state == "ready":
            return declared
        older = [life for life in self.retired if life.version == version and life.state == "ready"]
        return older[-1] if older else declared

    def _may_be_asked(self, version: int) -> bool:
        if version in self.addressable():
            return True
        best = self._best(version)
        return best is not None and best.state == "ready"

    def _other_share(self) -> Life | None:
        """One that takes a share of the bare name's requests and can."""
        for version, _ in sorted(self.route.shares, key=lambda share: -share[1]):
            life = self._best(version)
            if life is not None and life.state == "ready":
                return life
        return None

    def expires(self, life: Life) -> float | None:
        """When a life will have been idle for long enough to go."""
        keep_alive = self.declared.keep_alive
        if keep_alive is None or life.state != "ready" or life.used or life.retired or self.must_stay(life):
            return None
        return life.idle_since + keep_alive

    # ------------------------------------------------------------------ what changes it

    def declare(self, declared: DeclaredModel, now: float) -> None:
        """Another declaration takes over. What failed may be tried again."""
        awake = self.awake
        before = set(self.addressable())
        restarted = {version for version, life in self.lives.items() if life.state == "failed" or life.loaded}
        self.declared = declared
        self.traffic = declared.traffic
        changed = self._live_as_declared(now)
        for life in self.lives.values():
            if life.state == "failed":
                life.enter("declared", now)
        self.extra &= self.lives.keys()
        self._go(declared.route(), transition=changed)
        self._want_targets(now, awake, (set(self.addressable()) - before) | restarted)

    def redirect(
        self, now: float, *, traffic: Mapping[int, int] | None = None, labels: Mapping[str, int] | None = None
    ) -> None:
        """Other weights or labels, until the declaration changes. Raises ConfigError."""
        before = set(self.addressable())
        traffic = self.traffic if traffic is None else traffic
        self._go(self.declared.route_with(traffic, self.route.labels if labels is None else labels), transition=False)
        self.traffic = traffic
        self._want_targets(now, self.awake, set(self.addressable()) - before)

    def roll_back(self, now: float) -> None:
        """Requests go where they went before the last change, or to the version before. Raises ConfigError."""
        self.redirect(now, traffic=dict(self._earlier()))

    def _earlier(self) -> tuple[tuple[int, int], ...]:
        for shares in reversed(self.past):
            if shares != self.route.shares and all(version in self.lives for version, _ in shares):
                return shares
        lower = [version for version in self.lives if version < self.route.main]
        if not lower:
            raise ConfigError(f"the model {self.name} has no earlier version to go back to")
        return ((max(lower), 1),)

    def retire(self) -> None:
        """It is declared no more."""
        for life in list(self.lives.values()):
            self._put_away(life)
        self.lives.clear()
        self.former.clear()

    def _want_targets(self, now: float, awake: bool, new: Collection[int]) -> None:
        """A model in use gets what it needs now; one that sleeps only what finds room."""
        for life in self.targets():
            if awake and life.version in new:
                self.try_again(life, now)
                life.want(now)
            elif self.declared.preload and life.state != "failed":
                life.want(now, gentle=True)

    def try_again(self, life: Life, now: float) -> None:
        if life.state == "failed":
            life.enter("declared", now)

    def _go(self, route: Route, *, transition: bool) -> None:
        if route == self.route and not transition:
            return
        if route.shares != self.route.shares:
            self.past = [*self.past, self.route.shares][-_REMEMBERED:]
        self.former = [*self.former, self.route][-_REMEMBERED:]
        self.route = route

    def _live_as_declared(self, now: float) -> bool:
        """A life for each declared version; whether there are other ones than before."""
        changed = False
        for version in [version for version in self.lives if version not in self.declared.versions]:
            self._put_away(self.lives.pop(version))
            changed = True
        for version, config in self.declared.versions.items():
            known = self.lives.get(version)
            if known is None or known.config != config:
                if known is not None:
                    self._put_away(known)
                self.lives[version] = Life(self.name, version, config, now)
                changed = True
        self.lives = dict(sorted(self.lives.items()))
        return changed

    def _put_away(self, life: Life) -> None:
        life.retired = True
        if life.loaded:
            self.retired.append(life)
        else:
            life.wanted = False

    # ------------------------------------------------------------------ what follows

    def settle(self) -> list[Life]:
        """Ends a transition whose versions are all there. Lives that are loaded and not needed any more."""
        if not any(life.state == "failed" or _is_pending(life) for life in self.targets()):
            self.former.clear()
        elif self.former and all(self._serves(version) for version in self.former[-1].versions):
            del self.former[:-1]
        before = {version for route in self.former for version in route.versions}
        idle = [life for life in self.all() if not self._needed(life) and not self._stands_in(life, before)]
        for life in idle:
            life.wanted = life.wanted and life.state != "declared"
        return [life for life in idle if life.state in ("loading", "ready")]

    @property
    def is_changing(self) -> bool:
        """Whether something that it needs is on its way."""
        return any(_is_pending(life) for life in self.targets())

    def must_stay(self, life: Life) -> bool:
        """Whether it stands in for what is not there yet, and could not come back."""
        if not self.former:
            return False
        return life.retired or self.is_changing

    def _needed(self, life: Life) -> bool:
        return not life.retired and life.version in self.addressable()

    def _serves(self, version: int) -> bool:
        life = self._best(version)
        return life is not None and life.state == "ready"

    def _stands_in(self, life: Life, before: Collection[int]) -> bool:
        """Whether it serves, or somebody waits for it to serve, what its successor cannot yet."""
        return life.version in before and (
            bool(life.waiters) if life.state != "ready" else self._best(life.version) is life
        )


def _is_pending(life: Life) -> bool:
    return life.state == "loading" or (life.wanted and life.state != "ready")
