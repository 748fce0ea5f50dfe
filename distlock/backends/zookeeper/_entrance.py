"""How a claim gets into the line, and how it learns that it is the first.

Of a name's nodes the one with the lowest sequence holds the lock. Sequences rise, so nobody is ever put before
a node that is there: who was second when it looked is first when the node before it is gone, without another look.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kazoo.exceptions import NodeExistsError, NoNodeError
from kazoo.protocol.serialization import Create2, Delete, GetChildren, GetData, Sync

from .._clerk import Clerk
from .._places import Places
from ..base import (
    PROVISIONAL,
    BackendError,
    BackendUnavailable,
    Busy,
    Claim,
    DistLockError,
    Done,
    Grant,
    Holder,
    now,
    proven_until,
)
from ._client import ANY_VERSION, CreateContainer
from ._errors import mapped
from ._life import Life
from ._places import Place
from ._session import Errand, Sessions
from ._values import Layout, holder, parents_of
from ._watches import Watches

__all__ = ("Entrance",)

TRIES = 8
CURIOUS = 0.05
"""Seconds of waiting after which it is asked who holds the lock."""
EPHEMERAL_SEQUENTIAL = 3
CONTAINER = 4


class Entrance:
    """Thread-safe."""

    def __init__(
        self,
        layout: Layout,
        acl: Sequence[Any],
        tidier: Clerk,
        sessions: Sessions,
        watches: Watches,
        places: Places[Place],
    ) -> None:
        self._layout = layout
        self._acl = acl
        self._tidier = tidier
        self._sessions = sessions
        self._places = places
        self.watches = watches
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: they are the parent's."""
        self._mutex = threading.RLock()  # see `Clerk`
        self._called: dict[str, float] = {}
        self._looking = False
        self._curious: dict[str, Place] = {}
        self._asking = False

    def ask(self, place: Place, claim: Claim, deadline: float) -> Grant | Busy | Done:
        """One attempt."""
        self._called.pop(claim.id, None)
        session = place.session
        for _ in range(TRIES):
            if self._places.is_refused(claim.id):
                raise self._withdrawn(place)
            life = session.alive(deadline, claim.key)
            if self._places.is_refused(claim.id):  # while there was no connection
                raise self._withdrawn(place)
            self._sessions.check(session, life, claim.ttl, claim.key)
            if place.life is not life:
                place.vanished()  # what stood under another session has gone with it, and will not come any more
                place.life, place.unknown = life, False
            if place.unknown:
                self._find(place, life, deadline)
            outcome = (self._look if place.node else self._enter)(place, life, claim, deadline)
            if outcome is not None:
                return outcome
        raise self._unavailable("the session or the nodes vanish as soon as they are made", place)

    # Not in the line yet.

    def _enter(self, place: Place, life: Life, claim: Claim, deadline: float) -> Grant | Busy | Done | None:
        create = Create2(place.stem, place.value, self._acl, EPHEMERAL_SEQUENTIAL)
        ahead, beside = self._ahead_of_line(place), self._beside_line(place)
        requests = [*ahead, create, GetChildren(place.parent, None), *beside]
        made, children, *place.beside = place.session.call(life, requests, deadline, claim.key)[len(ahead) :]
        if isinstance(made, NoNodeError):
            self._make_parents(place, life, deadline)
            return None
        if isinstance(made, Exception):
            raise mapped(made, place.session.address, key=claim.key) from made
        place.stands(*made)
        place.look = None
        if isinstance(children, Exception):
            return None
        return self._decide(place, life, claim, children, deadline)

    def _make_parents(self, place: Place, life: Life, deadline: float) -> None:
        """Those that are there already do no harm."""
        root = len(parents_of(self._layout.chroot)) if self._layout.chroot else 0
        requests = [
            Create2(path, b"", self._acl, 0) if number < root else self._container(path)
            for number, path in enumerate(parents_of(place.parent))
        ]
        for outcome in place.session.call(life, requests, deadline, place.claim.key)[-1:]:
            if isinstance(outcome, Exception) and not isinstance(outcome, (NodeExistsError, NoNodeError)):
                raise mapped(outcome, place.session.address, key=place.claim.key) from outcome

    def _container(self, path: str) -> CreateContainer:
        return CreateContainer(path, b"", self._acl, CONTAINER)

    def _find(self, place: Place, life: Life, deadline: float) -> None:
        """A creation was not answered. What has come of it is certain behind a `Sync` in the same session."""
        names = place.session.carry_out(life, self.own(place), deadline, place.claim.key)
        place.unknown = False
        for name in names:
            path = f"{place.parent}/{name}"
            (found,) = place.session.call(life, [GetData(path, None)], deadline, place.claim.key)
            if isinstance(found, Exception):
                continue
            if place.node and path != place.node:
                place.unknown = True  # until it is gone
                place.session.call(life, [Delete(path, ANY_VERSION)], deadline, place.claim.key)
                place.unknown = False
            elif found[1].ephemeralOwner == life.id:
                place.stands(path, found[1])
        if place.node and place.name not in names:
            place.vanished()

    def own(self, place: Place) -> Errand[list[str]]:
        """The nodes of a claim, the first one first."""
        _, children = yield [Sync(place.parent), GetChildren(place.parent, None)]
        if isinstance(children, NoNodeError):
            return []
        if isinstance(children, Exception):
            raise mapped(children, place.session.address, key=place.claim.key) from children
        return [name for name in self._layout.line(children) if self._layout.is_of(name, place.stem)]

    # In the line.

    def _look(self, place: Place, life: Life, claim: Claim, deadline: float) -> Grant | Busy | Done | None:
        if place.passed_over:  # its node is gone, or about to go
            place.session.call(life, [Delete(place.node, ANY_VERSION)], deadline, claim.key)
            place.vanished()
            return None
        if place.granted or (place.second and place.gone):
            return self._granted(place, life, claim, deadline)
        look, place.look = place.look or place.session.ask(life, GetChildren(place.parent, None)), None
        (children,) = place.session.answers(life, [look], deadline, claim.key)
        if isinstance(children, NoNodeError):
            children = []
        if isinstance(children, Exception):
            raise mapped(children, place.session.address, key=claim.key) from children
        return self._decide(place, life, claim, children, deadline)

    def _decide(
        self, place: Place, life: Life, claim: Claim, children: list[str], deadline: float
    ) -> Grant | Busy | Done | None:
        line = self._layout.line(children, place.name)
        if place.name not in line:
            place.unknown = True  # until it was looked for
            return None
        number = line.index(place.name)
        if number == 0:
            return self._granted(place, life, claim, deadline)
        self.watches.leads(place.session, f"{place.parent}/{line[0]}")
        if claim.wait:
            return self._queued(place, life, claim, line[0], line[number - 1], deadline)
        path = f"{place.parent}/{line[0]}"
        gone, first = place.session.call(
            life, [Delete(place.node, ANY_VERSION), GetData(path, None)], deadline, claim.key
        )
        if isinstance(gone, Exception) and not isinstance(gone, NoNodeError):
            raise mapped(gone, place.session.address, key=claim.key) from gone
        place.vanished()
        return Busy(claim, _holder(line[0], first))

    def _queued(self, place: Place, life: Life, claim: Claim, first: str, before: str, deadline: float) -> Busy | None:
        place.second = first == before
        place.session.waiters.add(claim.id)
        place.session.tend()
        path = f"{place.parent}/{before}"
        watch = self.watches.aim(place, path)
        try:
            requests = [GetData(path, watch), *self._beside_watch(place)]
            found, *place.beside = place.session.call(life, requests, deadline, claim.key)
        except BaseException:
            self.watches.missed(place)
            raise
        if isinstance(found, Exception):
            self.watches.missed(place)
            return None
        if place.second:
            return Busy(claim, _holder(first, found), math.inf)
        self._ask_who(place, first)
        return Busy(claim, partial(_asked, place), math.inf)

    def _ask_who(self, place: Place, first: str) -> None:
        """Who holds the lock, in a moment: most of those who queue in a crowd are in before anyone wants to know."""
        place.first = first, None
        self._curious[place.claim.id] = place
        if not self._asking:
            self._asking = True
            self._tidier.at(now() + CURIOUS, self._ask_all)

    def _ask_all(self) -> None:
        self._asking = False
        curious, self._curious = self._curious, {}
        lines: dict[tuple[Life | None, str], list[Place]] = {}
        for place in curious.values():
            if place.ahead and place.first is not None:
                lines.setdefault((place.life, place.parent), []).append(place)
        for (life, parent), places in lines.items():
            last = places[-1]  # who has looked last knows best, for all of them
            if life is not None and last.first is not None:
                name = last.first[0]
                asked = name, last.session.ask(life, GetData(f"{parent}/{name}", None))
                for place in places:
                    place.first = asked

    # The first.

    def _granted(self, place: Place, life: Life, claim: Claim, deadline: float) -> Grant | None:
        asked_at = now()
        if life.deadline - asked_at < min(life.timeout / 4, claim.ttl / 2):
            place.session.prove(life, deadline, claim.key)
        with self._mutex:
            if place.passed_over or not place.node or life.ended:
                if life.ended:
                    place.vanished()
                return None
            place.granted = True
        self.watches.leads(place.session, place.node)
        place.session.waiters.discard(claim.id)
        until = min(life.deadline, proven_until(asked_at, claim.ttl))
        if until <= now():
            raise self._unavailable("the session is not proven to be there", place)
        return Grant(claim, place.czxid, until, until=asked_at + claim.ttl)

    # For a store in which the line alone does not decide: what is asked in the same round trip, and its answers.

    def _ahead_of_line(self, place: Place) -> Sequence[Any]:
        return ()

    def _beside_line(self, place: Place) -> Sequence[Any]:
        return ()

    def _beside_watch(self, place: Place) -> Sequence[Any]:
        return ()

    # Who does not come when it is its turn.

    def called(self, place: Place) -> None:
        """The node before it is gone. It has to come, or the next one is let in."""
        self._called[place.claim.id] = now()
        if not self._looking:
            self._looking = True
            self._tidier.at(now() + PROVISIONAL, self._look_round)

    def _look_round(self) -> None:
        self._looking = False
        t = now()
        for claim_id, since in list(self._called.items()):
            if t - since >= PROVISIONAL:
                self._called.pop(claim_id, None)
                place = self._places.find(claim_id)
                if place is not None and place.life is not None:
                    place.session.start(place.life, self._pass_over(place, place.life))
        if self._called and not self._looking:
            self._looking = True
            self._tidier.at(min(list(self._called.values()), default=t) + PROVISIONAL, self._look_round)

    def _pass_over(self, place: Place, life: Life) -> Errand[None]:
        if self._has_come(place) or life.ended:
            return
        try:
            if not (place.second and place.gone):  # who was before it may have waited, too, and given up
                (children,) = yield [GetChildren(place.parent, None)]
                if isinstance(children, Exception) or self._layout.line(children, place.name)[:1] != [place.name]:
                    self.called(place)  # it has not asked who is before it now: nobody else tells when it is its turn
                    return
            with self._mutex:
                if self._has_come(place):
                    return
                place.passed_over = True
            yield [Delete(place.node, ANY_VERSION)]
        except DistLockError:
            self.called(place)

    @staticmethod
    def _has_come(place: Place) -> bool:
        return place.granted or place.pending > 0 or not place.node

    def _withdrawn(self, place: Place) -> BackendError:
        address = place.session.address
        return BackendError(f"the claim was withdrawn [{address}]", key=place.claim.key, backend=address)

    def _unavailable(self, why: str, place: Place) -> BackendUnavailable:
        address = place.session.address
        return BackendUnavailable(f"{why} [{address}]", key=place.claim.key, backend=address, sent=True)


def _holder(name: str, found: Any) -> Callable[[], Holder] | None:
    """Who holds a lock, for who wants to know."""
    if isinstance(found, Exception):
        return None
    return partial(holder, found[0], name, found[1].czxid)


def _asked(place: Place) -> Holder | None:
    """The same, if it was answered meanwhile."""
    if place.first is None:
        return None
    name, handle = place.first
    if handle is None or not handle.result.successful():
        return None
    found: Any = handle.result.value
    value, stat = found
    return holder(value, name, stat.czxid)
