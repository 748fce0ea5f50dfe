"""Locks in etcd: a key for each claim, in the order of their create revisions, of which the first is the holder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import ClassVar

from .._placed import PlacedBackend
from .._places import Places
from ..base import (
    PROVISIONAL,
    BackendError,
    Busy,
    Claim,
    DistLockError,
    Done,
    Fault,
    Grant,
    Guarantees,
    Inspection,
    Renewal,
    Subscription,
    SyncBackend,
    Wake,
    now,
)
from ._client import Client
from ._entrance import Entrance
from ._errors import LeaseNotFound
from ._keeping import Keeping
from ._places import Place
from ._requests import first_of, leave, line_of
from ._rpc import LEASE_TIME_TO_LIVE, RANGE, TXN, pb
from ._session import Session, Sessions
from ._values import Guard, Layout, inspection
from ._watches import Watches

__all__ = ("EtcdBackend",)

GUARANTEES = Guarantees(
    backend="etcd",
    scope="network",
    fenced=True,
    fair=True,
    dead_holder="session",
    owner_reentrant=False,
    extend=True,
    excepted=frozenset({Fault.DELETED, Fault.EMPTY_RESTART, Fault.STALE_LEADER}),
)

PAGE = 500
"""Keys that are listed at a time."""


class EtcdBackend(PlacedBackend[Place]):
    """Thread-safe. Connects when it is first asked.

    The leases of a manager are shared by its locks: one for each ttl in whole seconds, rounded up, and one of at most
    10 s for those who wait. A lock that is not to be renewed for ever has a lease of its own.
    """

    guarantees: Guarantees = GUARANTEES
    _entering: ClassVar[type[Entrance]] = Entrance

    def __init__(self, connect: Callable[[], Client], namespace: str, op_timeout: float, *, raw: bool = False) -> None:
        client = connect()
        super().__init__("etcd", client.address, op_timeout)
        self._connect = connect
        self._namespace = namespace
        self._client = client
        self._layout = Layout(namespace, raw=raw)
        self._places = Places(lambda claim: Place(claim, self._layout))
        self._watches = Watches(client, self._clerk, self._called, lambda: self._tidier.soon(self._look_at_doubtful))
        self._sessions = Sessions(
            client, self._clerk, self._tidier, self._ended, self._watches.restart, self._look_again
        )
        self._entrance = self._entering(client, self._layout, self._tidier, self._sessions, self._watches, self._places)
        self._keeping = Keeping(client, self._sessions, self._places)

    def results(self) -> SyncBackend:
        from ._results import EtcdResults  # which is one of these

        return EtcdResults(self._connect, f"{self._namespace}+once", self._op_timeout)  # no namespace has a + in it

    def _ask(self, place: Place, claim: Claim, deadline: float) -> Grant | Busy | Done:
        return self._entrance.ask(place, claim, deadline)

    def _failed(self, place: Place, claim: Claim, error: BaseException) -> None:
        if isinstance(error, DistLockError):
            error.key = error.key or claim.key  # it was about a lease, which many share
        if not isinstance(error, BackendError) or error.sent:
            place.unknown = place.unknown or bool(place.leases)
        elif not place.revision and not place.unknown:  # etcd has heard nothing of it
            self._drop(place)

    def _answered(self, place: Place, claim: Claim, outcome: Grant | Busy | Done) -> None:
        if not isinstance(outcome, Busy):
            self._watches.forget(claim.id)
        if isinstance(outcome, Done) or (isinstance(outcome, Busy) and not claim.wait):  # nobody withdraws it
            self._turned_away(place, claim)

    def _turned_away(self, place: Place, claim: Claim) -> None:
        if not place.unknown:
            self._drop(place)
            return
        self._tidier.soon(lambda: self._tidy(claim))

    def _tidy(self, claim: Claim) -> None:
        with suppress(DistLockError):  # the core has it on its list, too
            self.withdraw(claim, now() + self._op_timeout, in_flight=True)

    def _drop(self, place: Place) -> None:
        """Nothing of it is left, but perhaps its lease."""
        self._places.forget(place)
        for session in (place.own, *place.strays):
            if session is not None:
                self._sessions.forget(session)

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        place = self._places.find(busy.claim.id)
        if place is None or place.granted or not place.revision:
            wake()
            return _Nothing()
        subscription = self._watches.watch(busy.claim.id, *place.ahead, wake)
        ended = place.session is None or place.session.ended
        if not place.revision or place.passed_over or ended:  # in the meantime
            wake()
        return subscription

    def _called(self, claim_id: str) -> None:
        self._entrance.called(claim_id)

    def _look_again(self, session: Session) -> None:
        if not session.looking:  # else one would queue up behind the other in an outage
            session.looking = True
            self._tidier.soon(lambda: self._look(session))

    def _look(self, session: Session) -> None:
        session.looking = False
        self._entrance.look(list(session.waiters), max(session.ttl / 6, PROVISIONAL))

    def _look_at_doubtful(self) -> None:
        self._entrance.look(self._watches.doubtful(), PROVISIONAL)

    def _ended(self, session: Session) -> None:
        """etcd does not know the lease any more, nor the keys that stood under it: whoever waited asks again."""
        self._watches.wake(list(session.waiters))
        self.on_loss()

    def release(self, grant: Grant, deadline: float) -> bool:
        place = self._places.find(grant.claim.id)
        if place is None:
            return False
        ours = place.revision == grant.token
        if ours or place.unsure:
            ours = self._leave(place, grant.token, deadline, grant.claim.key) and ours
        self._drop(place)
        return ours

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        if in_flight:
            self._places.refuse(claim.id)
        self._watches.forget(claim.id)
        place = self._places.find(claim.id)
        if place is None:
            return
        t = now()
        self._places.settle(place, t + (deadline - t) / 2)
        if self._closed:  # the leases were revoked, or end by themselves
            return
        if place.leases and self._places.find(claim.id) is place:
            self._leave(place, 0, deadline, claim.key)
        self._drop(place)

    def _leave(self, place: Place, revision: int, deadline: float, key: str) -> bool:
        """Deletes its key; what is on its way comes to nothing. False: it was not there any more."""
        while True:
            late = [session for session in place.leases if not session.ended] if place.unsure else []
            if place.own in late:
                late.remove(place.own)
                self._sessions.revoke(place.own, deadline)
            tombs = [(place.late + b"%x" % session.id, session.id) for session in late]
            try:
                answer = self._client.call(TXN, leave(place.key, revision, tombs), deadline, key=key)
            except LeaseNotFound:
                for session in late:
                    self._sessions.prove(session, now(), deadline)
                continue
            for session in late:  # what withdraws a claim is there for as long as its lease
                self._sessions.retire(session)
            return answer.value.succeeded or answer.again

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        return self._keeping.renew(grants, deadline)

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        return self._keeping.extend(grant, ttl, deadline)

    def revoke(self, key: str, token: int, deadline: float) -> bool:
        kvs = self._client.call(RANGE, first_of(self._layout.prefix(key)), deadline, key=key).value.kvs
        if not kvs or kvs[0].create_revision != token:
            return False
        answer = self._client.call(TXN, leave(kvs[0].key, token, ()), deadline, key=key)
        return answer.value.succeeded or answer.again

    def inspect(self, key: str, deadline: float) -> Inspection:
        kvs = self._client.call(RANGE, line_of(self._layout.prefix(key)), deadline, key=key).value.kvs
        return inspection(key, kvs, lambda lease: self._left(lease, deadline))

    def _left(self, lease: int, deadline: float) -> float | None:
        """Seconds until it would end. etcd leaves the fraction out."""
        ttl = self._client.call(LEASE_TIME_TO_LIVE, pb.LeaseTimeToLiveRequest(id=lease), deadline).value.ttl
        return ttl + 1.0 if ttl >= 0 else None

    def list(self, prefix: str, deadline: float) -> Iterator[Inspection]:
        lines: dict[str, list[pb.KeyValue]] = {}
        for kv in self._listed(*self._layout.span(prefix)):
            lines.setdefault(self._layout.name_of(kv.key), []).append(kv)
        leases: dict[int, float | None] = {}

        def left(lease: int) -> float | None:
            if lease not in leases:
                leases[lease] = self._left(lease, now() + self._op_timeout)
            return leases[lease]

        for name, kvs in lines.items():
            yield inspection(name, sorted(kvs, key=lambda kv: kv.create_revision), left)

    def _listed(self, start: bytes, end: bytes, *, keys_only: bool = False) -> Iterator[pb.KeyValue]:
        """In pages, all of the same moment."""
        revision = 0
        while True:
            request = pb.RangeRequest(key=start, range_end=end, limit=PAGE, revision=revision, keys_only=keys_only)
            page = self._client.call(RANGE, request, now() + self._op_timeout).value
            yield from page.kvs
            if not page.more:
                return
            start, revision = page.kvs[-1].key + b"\0", page.header.revision

    def guard(self, grant: Grant) -> Guard:
        place = self._places.find(grant.claim.id)
        if place is None or place.revision != grant.token:
            raise self._error("the lease is not one of this manager's any more", grant.claim)
        return Guard(place.key, grant.token)

    def _disconnect(self, deadline: float) -> None:
        self._watches.close()
        self._sessions.close(deadline)
        self._client.close()

    def _others(self) -> tuple[Client, Watches, Sessions, Entrance]:
        return self._client, self._watches, self._sessions, self._entrance


class _Nothing:
    """Of a claim that is to ask at once."""

    def close(self) -> None:
        """Does nothing."""
