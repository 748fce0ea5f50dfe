"""Locks in ZooKeeper: an ephemeral node for each claim, in the order of their sequence, of which the first is the
holder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from kazoo.exceptions import NoNodeError
from kazoo.protocol.serialization import Delete, GetChildren, GetData, Sync

from .._placed import PlacedBackend
from .._places import Places
from ..base import (
    PROVISIONAL,
    BackendUnavailable,
    Busy,
    Claim,
    DistLockError,
    Done,
    Fault,
    Grant,
    Guarantees,
    Inspection,
    LeaseState,
    Renewal,
    Subscription,
    Unsupported,
    Wake,
    now,
    proven_until,
)
from ._client import ANY_VERSION, acl_of
from ._entrance import Entrance
from ._errors import mapped
from ._keeping import LOST, Keeping
from ._life import Life
from ._places import Place as ClaimPlace
from ._session import Errand, Session, Sessions
from ._url import Place
from ._values import Guard, Layout, inspection
from ._watches import Watches

__all__ = ("ZooKeeperBackend",)

GUARANTEES = Guarantees(
    backend="zookeeper",
    scope="network",
    fenced=True,
    fair=True,
    dead_holder="session",
    owner_reentrant=False,
    extend=False,
    excepted=frozenset({Fault.DELETED, Fault.EMPTY_RESTART}),
)
PAGE = 200
"""Names that are looked at together."""


class ZooKeeperBackend(PlacedBackend[ClaimPlace]):
    """Thread-safe. Connects when it is first asked.

    The locks of a manager share its sessions: one for all ttls from the place's ``session_timeout`` on, and one
    for each of a few shorter lengths.
    """

    guarantees: Guarantees = GUARANTEES

    def __init__(self, place: Place, namespace: str, op_timeout: float) -> None:
        super().__init__("zookeeper", place.address, op_timeout)
        self._layout = Layout(namespace, place.layout, place.chroot, place.path)
        self._watches = Watches(self._called)
        self._sessions = Sessions(place, self._clerk, self._changed, self._watches)
        self._places = Places(lambda claim: ClaimPlace(claim, self._layout, self._sessions.get(claim.ttl)))
        self._entrance = Entrance(
            self._layout, acl_of(place), self._tidier, self._sessions, self._watches, self._places
        )
        self._keeping = Keeping(self._places)

    def _ask(self, place: ClaimPlace, claim: Claim, deadline: float) -> Grant | Busy:
        return self._entrance.ask(place, claim, deadline)

    def _answered(self, place: ClaimPlace, claim: Claim, outcome: Grant | Busy | Done) -> None:
        if isinstance(outcome, Busy) and not claim.wait:
            self._places.forget(place)

    def _called(self, place: ClaimPlace) -> None:
        self._entrance.called(place)

    def _failed(self, place: ClaimPlace, claim: Claim, error: BaseException) -> None:
        if not isinstance(error, DistLockError) or getattr(error, "sent", False):
            place.unknown = place.unknown or place.life is not None
        elif not place.node and not place.unknown:  # ZooKeeper has heard nothing of it
            self._places.forget(place)

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        place = self._places.find(busy.claim.id)
        if place is None:
            wake()
            return _Subscription(None)
        place.wake = wake
        if not place.node or place.granted or place.gone or not place.ahead:  # in the meantime
            wake()
        return _Subscription(place)

    def release(self, grant: Grant, deadline: float) -> bool:
        place = self._places.find(grant.claim.id)
        if place is None:
            return False
        ours = self._keeping.held(grant) is place
        place.granted = False  # it is not to be looked for any more
        try:
            ours = self._leave(place, deadline) and ours
        except BaseException:
            place.doomed = True  # not before: who tidies up might be first, and the lock would seem to have been lost
            raise
        self._places.forget(place)
        return ours

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        if in_flight:
            self._places.refuse(claim.id)
        place = self._places.find(claim.id)
        if place is None:
            return
        place.granted, place.doomed = False, True
        self._watches.leave(place)
        t = now()
        self._places.settle(place, t + (deadline - t) / 2)
        if self._closed:  # its session was ended, or ends by itself
            return
        if self._places.find(claim.id) is not place:
            return
        self._leave(place, deadline)
        if place.pending:  # it may make a node yet: whoever gives it up comes again, until it has come back
            why = f"a request for the claim is under way [{self.address}]"
            raise BackendUnavailable(why, key=claim.key, backend=self.address, sent=True)
        self._places.forget(place)

    def _leave(self, place: ClaimPlace, deadline: float) -> bool:
        """Deletes its node, and what may have become one. False: it was not there any more."""
        key, session = place.claim.key, place.session
        if place.life is None or (place.life.ended and not place.unsure):
            return False
        life = session.alive(deadline, key)
        return session.carry_out(life, self._leaving(place, life), deadline, key)

    def _leaving(self, place: ClaimPlace, life: Life) -> Errand[bool]:
        paths = [place.node] if place.node and life is place.life else []
        if place.unsure:
            paths += [f"{place.parent}/{name}" for name in (yield from self._entrance.own(place))]
        ours = False
        for path in dict.fromkeys(paths):
            try:
                (outcome,) = yield [Delete(path, ANY_VERSION)]
            except BaseException:
                place.unknown = True
                raise
            if isinstance(outcome, Exception) and not isinstance(outcome, NoNodeError):
                raise mapped(outcome, self.address, key=place.claim.key) from outcome
            ours = ours or (path == place.node and outcome is True)
        return ours

    def _changed(self, session: Session, gone: bool) -> None:
        """A session was connected anew, or replaced: who waited under it asks again, and what was to be deleted is."""
        if self._closed:
            return
        for place in self._places.all():
            if place.session is not session:
                continue
            if place.doomed:
                self._tidy(place)
            elif place.claim.id in session.waiters:
                self._watches.wake(place)
        if gone:
            self.on_loss()

    def _tidy(self, place: ClaimPlace) -> None:
        """kazoo#732: what was given up while the connection was lost is still there when it is back."""
        life = place.session.life
        if life is not None and not life.ended and self._places.find(place.claim.id) is place:
            place.session.start(life, self._tidying(place, life))

    def _tidying(self, place: ClaimPlace, life: Life) -> Errand[None]:
        yield from self._leaving(place, life)  # if it fails, then when there is a connection again
        if place.pending:  # it may make a node yet
            self._tidier.at(now() + PROVISIONAL, partial(self._tidy, place))
        else:
            self._places.forget(place)

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        return self._keeping.renew(grants, deadline)

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        place = self._keeping.held(grant)
        if place is None:
            return LOST
        if ttl != place.claim.ttl:
            raise Unsupported(
                f"the length of a session in ZooKeeper cannot be changed [{self.address}]",
                key=grant.claim.key,
                backend=self.address,
            )
        asked_at = now()
        assert place.life is not None
        self._keeping.check(place.session, place.life, [place], deadline, grant.claim.key)
        if self._keeping.held(grant) is None:
            return LOST
        return Renewal(LeaseState.HELD, min(place.life.deadline, proven_until(asked_at, ttl)))

    def revoke(self, key: str, token: int, deadline: float) -> bool:
        line = self._line(key, deadline)
        if not line or line[0][2] != token:
            return False
        session = self._sessions.any()
        path = f"{self._layout.parent(key)}/{line[0][0]}"
        (outcome,) = session.call(session.alive(deadline, key), [Delete(path, ANY_VERSION)], deadline, key)
        if isinstance(outcome, Exception) and not isinstance(outcome, NoNodeError):
            raise mapped(outcome, self.address, key=key) from outcome
        return outcome is True

    def inspect(self, key: str, deadline: float) -> Inspection:
        return inspection(key, self._line(key, deadline))

    def _line(self, key: str, deadline: float) -> list[tuple[str, bytes, int]]:
        """Names, contents and czxids, in order."""
        session, parent = self._sessions.any(), self._layout.parent(key)
        life = session.alive(deadline, key)
        names = self._layout.line(self._children(session, parent, deadline, key))
        if not names:
            return []
        found = session.call(life, [GetData(f"{parent}/{name}", None) for name in names], deadline, key)
        return [
            (name, each[0], each[1].czxid)
            for name, each in zip(names, found, strict=True)
            if not isinstance(each, Exception)
        ]

    def _children(self, session: Session, path: str, deadline: float, key: str | None = None) -> list[str]:
        life = session.alive(deadline, key)
        _, children = session.call(life, [Sync(path), GetChildren(path, None)], deadline, key)
        if isinstance(children, NoNodeError):
            return []
        if isinstance(children, Exception):
            raise mapped(children, self.address, key=key) from children
        return list(children)

    def list(self, prefix: str, deadline: float) -> Iterator[Inspection]:
        session = self._sessions.any()
        names = self._children(session, self._layout.root, deadline)
        keys = [*self._layout.keys(names, prefix)]
        for start in range(0, len(keys), PAGE):
            page = keys[start : start + PAGE]
            limit = now() + self._op_timeout
            requests = [GetChildren(self._layout.parent(key), None) for key in page]
            found = session.call(session.alive(limit, None), requests, limit)
            for key, children in zip(page, found, strict=True):
                if not isinstance(children, Exception) and self._layout.line(children):
                    seen = self.inspect(key, now() + self._op_timeout)
                    if seen.holder is not None:
                        yield seen

    def guard(self, grant: Grant) -> Guard:
        place = self._keeping.held(grant)
        if place is None:
            raise self._error("the lease is not one of this manager's any more", grant.claim)
        return Guard(self._layout.from_chroot(place.node), 0)

    def _disconnect(self, deadline: float) -> None:
        self._sessions.close(deadline)
        for place in self._places.all():
            self._watches.wake(place)

    def _others(self) -> tuple[Watches, Sessions, Entrance]:
        return self._watches, self._sessions, self._entrance


class _Subscription:
    def __init__(self, place: ClaimPlace | None) -> None:
        self._place = place

    def close(self) -> None:
        """No ``wake`` afterwards. Its place in the line stays, and the watch with it."""
        place, self._place = self._place, None
        if place is not None:
            place.wake = None
