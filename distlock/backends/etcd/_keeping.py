"""How leases are renewed and made longer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .._places import Places
from ..base import BackendError, Grant, LeaseState, Renewal, now
from ._client import Client
from ._errors import LeaseNotFound
from ._looking import looked_up
from ._places import Place
from ._requests import attach
from ._rpc import TXN
from ._session import Session, Sessions
from ._values import whole_seconds

__all__ = ("Keeping",)

LOST = Renewal(LeaseState.LOST)
UNKNOWN = Renewal(LeaseState.UNKNOWN)


class Keeping:
    """Thread-safe."""

    def __init__(self, client: Client, sessions: Sessions, places: Places[Place]) -> None:
        self._client = client
        self._sessions = sessions
        self._places = places

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        """One keep-alive for each lease, and one look at the keys that stand under it."""
        results = [LOST] * len(grants)
        groups: dict[Session, list[tuple[int, Grant, Place]]] = {}
        errors: list[BackendError] = []
        for number, grant in enumerate(grants):
            place = self._granted(grant)
            if place is None:
                continue
            try:
                session = self._long_enough(place, grant, deadline)
            except BackendError as error:
                errors.append(error)
                results[number] = UNKNOWN
                continue
            if session is not None:
                groups.setdefault(session, []).append((number, grant, place))
        self._ask(groups)
        for session, members in groups.items():
            try:
                for (number, _, _), renewal in zip(members, self._renewed(session, members, deadline), strict=True):
                    results[number] = renewal
            except BackendError as error:
                errors.append(error)
                for number, _, _ in members:
                    results[number] = UNKNOWN
        if errors and all(renewal is UNKNOWN for renewal in results):
            raise errors[0]
        return results

    def _granted(self, grant: Grant) -> Place | None:
        place = self._places.find(grant.claim.id)
        return place if place is not None and place.granted and place.revision == grant.token else None

    def _ask(self, groups: dict[Session, list[tuple[int, Grant, Place]]]) -> None:
        t = now()
        for session, members in groups.items():
            self._sessions.ask(session, t - session.stale_after(_shortest(members)))

    def _renewed(
        self, session: Session, members: Sequence[tuple[int, Grant, Place]], deadline: float
    ) -> Sequence[Renewal]:
        t, ttl = now(), _shortest(members)
        gone: set[str] = set()
        if session.checked_at < t - ttl / 6 and not session.ended:
            gone = self._gone(session, [place for _, _, place in members], deadline)
        if not self._sessions.prove(session, t - session.stale_after(ttl), deadline):
            return [LOST] * len(members)
        return [
            LOST if place.claim_id in gone else _held(place, session, t, grant.claim.ttl) for _, grant, place in members
        ]

    def _gone(self, session: Session, places: Sequence[Place], deadline: float) -> set[str]:
        """The claims whose keys are not there any more, though their lease may be: someone has deleted them, or the
        lease was revoked by a leader that was none any more, which etcd before 3.5 lets happen."""
        t = now()
        try:
            keys = self._sessions.keys(session, t + (deadline - t) / 2)
            missing = [place for place in places if place.key not in keys]
            # A member that is behind has not seen the latest: what is not there is looked for by the whole cluster.
            gone = self._not_there(missing, deadline) if missing else set()
        except BackendError:
            return set()  # the keep-alive's answer counts; they are looked at next time
        session.checked_at = t
        return gone

    def _not_there(self, places: Sequence[Place], deadline: float) -> set[str]:
        gone: set[str] = set()
        there = looked_up(self._client, (place.key for place in places), deadline)
        for place, kv in zip(places, there, strict=True):
            if kv is None or kv.create_revision != place.revision:
                gone.add(place.claim_id)
            elif place.session is not None and kv.lease != place.session.id:
                place.mod_revision = 0  # it was moved without our knowing: it is moved again next time
        return gone

    # Longer ones.

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        """Under another lease, if its own is not long enough."""
        place = self._granted(grant)
        if place is None:
            return LOST
        asked_at = now()
        wanted = grant._replace(claim=grant.claim._replace(ttl=ttl))
        session = self._long_enough(place, wanted, deadline)
        if session is None or self._gone(session, [place], deadline):
            return LOST
        if not self._sessions.prove(session, asked_at, deadline):
            return LOST
        return _held(place, session, asked_at, ttl)

    def _long_enough(self, place: Place, grant: Grant, deadline: float) -> Session | None:
        """The lease under which the key stands, after it was moved if need be. None: the lock is lost."""
        session, ttl = place.session, whole_seconds(grant.claim.ttl)
        if session is None or session.ended:
            return None
        if session.ttl >= ttl and place.mod_revision:
            return session
        if grant.claim.renewed:
            target = self._sessions.get(max(ttl, session.ttl), deadline)
        else:
            target = self._sessions.make_exact(max(ttl, session.ttl), deadline)
            place.strays.append(target)  # until it is known to stand under it
        try:
            return self._moved(place, target, deadline)
        except LeaseNotFound:
            self._sessions.prove(target, now(), deadline)
            return session

    def _moved(self, place: Place, target: Session, deadline: float) -> Session | None:
        session = place.session
        # Until the answer is there nobody knows under which it stands: what is proven has to hold for both.
        if session is None or not self._sessions.prove(target, session.sent_at, deadline):
            return session
        for _ in range(3):
            before, place.mod_revision = place.mod_revision, 0  # unknown, until the answer is there
            request = attach(place.key, place.value, place.revision, before, target.id)
            try:
                txn = self._client.call(TXN, request, deadline).value
            except LeaseNotFound:  # nothing was done
                place.mod_revision = before
                raise
            if txn.succeeded:
                return self._settled(place, target, txn.header.revision)
            kvs = txn.responses[0].response_range.kvs
            if not kvs or kvs[0].create_revision != place.revision:
                place.vanished()
                return None
            if kvs[0].lease == target.id:
                return self._settled(place, target, kvs[0].mod_revision)
            place.mod_revision = kvs[0].mod_revision
        return session

    def _settled(self, place: Place, target: Session, mod_revision: int) -> Session:
        place.settle_in(target, place.revision, mod_revision)
        old, place.own = place.own, None
        if old is not None and old is not target:
            self._sessions.forget(old)
        if target in place.strays:
            place.strays.remove(target)
            place.own = target
        return target


def _held(place: Place, session: Session, asked_at: float, ttl: float) -> Renewal:
    """While nobody knows under which lease its key stands, that lease proves nothing new."""
    return Renewal(LeaseState.HELD, session.proves(asked_at, ttl)) if place.mod_revision else UNKNOWN


def _shortest(members: Iterable[tuple[int, Grant, Place]]) -> float:
    return min(grant.claim.ttl for _, grant, _ in members)
