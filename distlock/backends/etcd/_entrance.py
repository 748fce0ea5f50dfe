"""How a claim gets its key, its place in the line and, when it is the first there, its grant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .._clerk import Clerk
from .._places import Places
from ..base import PROVISIONAL, BackendError, BackendUnavailable, Busy, Claim, DistLockError, Done, Grant, now
from ._client import Answer, Client
from ._errors import LeaseNotFound
from ._looking import looked_up
from ._places import Place
from ._requests import attach, confirm, enter, leave, pass_over
from ._rpc import TXN, pb
from ._session import Session, Sessions
from ._values import Layout, found, waiting_ttl, whole_seconds
from ._watches import Watches

__all__ = ("TRIES", "Entrance")

TRIES = 5
"""Leases that may end one after the other before that is taken for an outage."""


class Entrance:
    """Thread-safe."""

    def __init__(
        self, client: Client, layout: Layout, tidier: Clerk, sessions: Sessions, watches: Watches, places: Places[Place]
    ) -> None:
        self._client = client
        self._layout = layout
        self._tidier = tidier
        self._sessions = sessions
        self._watches = watches
        self._places = places
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: nobody waits in it."""
        self._called: dict[str, float] = {}
        self._looking = False

    def ask(self, place: Place, claim: Claim, deadline: float) -> Grant | Busy | Done:
        """One attempt."""
        if self._called:
            self._called.pop(claim.id, None)
        for _ in range(TRIES):
            if self._places.is_refused(claim.id):
                raise self._withdrawn(claim)
            try:
                step = self._confirm if place.revision else self._enter
                outcome = step(place, claim, deadline)
            except LeaseNotFound as error:
                place.unknown = place.unknown or error.sent
                self._look_after(place, deadline)
                continue
            if outcome is not None:
                return outcome
        address = self._client.address
        raise BackendUnavailable(
            f"the leases of its sessions end as soon as they are granted [{address}]",
            key=claim.key,
            backend=address,
            sent=True,
        )

    def _look_after(self, place: Place, deadline: float) -> None:
        """One of its leases is gone; which one, the answers to their keep-alives say."""
        for session in place.leases:
            self._sessions.prove(session, now(), deadline)

    def _withdrawn(self, claim: Claim) -> BackendError:
        return BackendError(
            f"the claim was withdrawn [{self._client.address}]", key=claim.key, backend=self._client.address
        )

    def _transact(
        self, place: Place, claim: Claim, request: pb.TxnRequest, deadline: float
    ) -> Answer[pb.TxnResponse] | Done:
        """What `enter` or `confirm` has brought."""
        return self._client.call(TXN, request, deadline, key=claim.key)

    # Not in the line yet, or not known to be.

    def _enter(self, place: Place, claim: Claim, deadline: float) -> Grant | Busy | Done | None:
        hold = self._holding(place, claim, deadline)
        wait = self._sessions.peek(waiting_ttl(claim.ttl)) if claim.wait else None
        asked_at = now()
        if asked_at - hold.sent_at > hold.stale_after(claim.ttl):
            self._sessions.ask(hold, asked_at)
        place.key = place.key or self._layout.own(claim, hold.id)
        place.may_stand_under(hold, wait)
        if self._places.is_refused(claim.id):  # in the meantime: who did so looks at these leases, or we look here
            raise self._withdrawn(claim)
        request = enter(place.prefix, place.key, place.value, place.late, hold.id, 0 if wait is None else wait.id)
        answer = self._transact(place, claim, request, deadline)
        if isinstance(answer, Done):
            return answer
        if answer.again:
            place.unknown = True
        txn, revision = answer.value, answer.value.header.revision
        if txn.succeeded:
            place.settle_in(hold, revision, revision)
            return self._granted(place, claim, asked_at, deadline)
        if wait is not None:
            txn = txn.responses[0].response_txn
            if txn.succeeded:
                place.settle_in(wait, revision, revision)
                last, first = (response.response_range.kvs for response in txn.responses[:2])
                return self._queued(place, claim, last[0].key, revision, first)
        return self._found(place, claim, txn, wait, asked_at, deadline)

    def _found(
        self, place: Place, claim: Claim, txn: pb.TxnResponse, wait: Session | None, asked_at: float, deadline: float
    ) -> Grant | Busy | None:
        """Own key was there already, or there was no waiting lease to queue under, or it is not wanted any more."""
        own, first = (response.response_range.kvs for response in txn.responses)
        if own:
            session = next((each for each in place.leases if each.id == own[0].lease), None)
            if session is None:  # it would be proven by nothing
                address = self._client.address
                raise BackendError(
                    f"the key of the claim stands under a foreign lease [{address}]",
                    key=claim.key,
                    backend=address,
                    sent=True,
                )
            place.settle_in(session, own[0].create_revision, own[0].mod_revision)
            if first[0].key == place.key:
                return self._granted(place, claim, asked_at, deadline)
            return None  # it waits: whom for, is asked as always
        if not first or wait is not None:  # nothing else was in its way
            raise self._withdrawn(claim)
        if claim.wait:
            self._sessions.get(waiting_ttl(claim.ttl), deadline, exact=False)
            return None
        return Busy(claim, found(first), in_flight=place.unknown)

    def _holding(self, place: Place, claim: Claim, deadline: float) -> Session:
        """The lease for its key, should the lock be free."""
        ttl = whole_seconds(claim.ttl)
        if claim.renewed:
            return self._sessions.get(ttl, deadline)
        if place.own is None or not place.own.alive(now()):
            self._give_back_own(place)
            place.own = self._sessions.make_exact(ttl, deadline)
        return place.own

    def _give_back_own(self, place: Place) -> None:
        own, place.own = place.own, None
        if own is not None and own is not place.session:
            self._sessions.forget(own)

    # In the line.

    def _confirm(self, place: Place, claim: Claim, deadline: float) -> Grant | Busy | Done | None:
        session = place.session
        if session is None or session.ended:  # its keys are gone with it: etcd#9921
            place.vanished()
            return None
        if place.passed_over:  # its key is gone, or a request on its way may delete it when it is the first
            self._client.call(TXN, leave(place.key, place.revision, ()), deadline, key=claim.key)
            place.vanished()
            return None
        asked_at = now()
        if asked_at - session.sent_at > session.stale_after(claim.ttl):
            self._sessions.ask(session, asked_at)
        answer = self._transact(place, claim, confirm(place.prefix, place.key, place.revision), deadline)
        if isinstance(answer, Done):
            return answer
        txn = answer.value
        if txn.succeeded:
            return self._granted(place, claim, asked_at, deadline)
        own, before, first = (response.response_range.kvs for response in txn.responses)
        if not own or own[0].create_revision != place.revision:
            place.vanished()
            return None
        return self._queued(place, claim, before[0].key, txn.header.revision, first)

    def _queued(self, place: Place, claim: Claim, before: bytes, revision: int, first: Any) -> Busy | None:
        assert place.session is not None
        place.session.waiters.add(claim.id)
        if place.session.ended:  # who told of it may have looked before
            place.vanished()
            return None
        self._sessions.tend(place.session)
        if place.own is not None and place.own is not place.session:
            self._give_back_own(place)
        place.ahead = before, revision + 1, first[0].key == before
        self._watches.aim(claim.id, *place.ahead)
        return Busy(claim, found(first), math.inf, in_flight=place.unknown)

    # The first.

    def _granted(self, place: Place, claim: Claim, asked_at: float, deadline: float) -> Grant | None:
        session = place.session
        assert session is not None
        if not claim.renewed and session is not place.own:
            return self._granted_own(place, claim, deadline)
        # A lease that is not renewed is to be as long as asked for, which nobody does later.
        least = min(claim.ttl, session.ttl) * (0.5 if claim.renewed else 0.8)
        short = session.proves(asked_at, claim.ttl) - now() < least
        if short and not self._sessions.prove(session, asked_at, deadline):
            place.vanished()
            return None
        place.leave_session()
        place.granted = True
        return Grant(claim, place.revision, session.proves(asked_at, claim.ttl), place.unknown)

    def _granted_own(self, place: Place, claim: Claim, deadline: float) -> Grant | None:
        """It has waited under a shared lease, and moves to one of its own."""
        own = self._holding(place, claim, deadline)
        asked_at = now()
        request = attach(place.key, place.value, place.revision, place.mod_revision, own.id)
        txn = self._client.call(TXN, request, deadline, key=claim.key).value
        mod_revision = txn.header.revision
        if not txn.succeeded:
            kvs = txn.responses[0].response_range.kvs
            if not kvs or kvs[0].create_revision != place.revision:
                place.vanished()
                return None
            mod_revision = kvs[0].mod_revision
            if kvs[0].lease != own.id:  # an earlier move that was not answered
                place.mod_revision = mod_revision
                return None
        place.settle_in(own, place.revision, mod_revision)
        return self._granted(place, claim, asked_at, deadline)

    # Who was not told.

    def look(self, claim_ids: Sequence[str], patience: float) -> None:
        """A push may get lost: what was not told is found here, within a third of the session."""
        deadline = now() + patience
        aims = self._watches.aims(claim_ids)
        there = looked_up(self._client, (aim.key for aim in aims), deadline, keys_only=True)
        with suppress(DistLockError):  # then the next time
            for aim, kv in zip(aims, there, strict=True):
                if kv is None or kv.create_revision >= aim.revision:
                    self._watches.missed(aim)

    # Who does not come when it is its turn.

    def called(self, claim_id: str) -> None:
        """The key before it is gone. It has to come, or the next one is let in."""
        self._called[claim_id] = now()
        if not self._looking:
            self._looking = True
            self._tidier.at(now() + PROVISIONAL, self._look)

    def _look(self) -> None:
        self._looking = False
        t = now()
        for claim_id, since in list(self._called.items()):
            if t - since >= PROVISIONAL:
                self._called.pop(claim_id, None)
                self._pass_over(claim_id, t + PROVISIONAL)
        if self._called and not self._looking:
            self._looking = True
            self._tidier.at(min(list(self._called.values()), default=t) + PROVISIONAL, self._look)

    def _pass_over(self, claim_id: str, deadline: float) -> None:
        place = self._places.find(claim_id)
        if place is None or place.pending or place.granted or not place.revision:
            return
        unsure = place.passed_over  # an earlier request may be on its way
        place.passed_over = True  # read before it is confirmed: either it comes now, or it comes later
        if place.pending or place.granted:
            place.passed_over = unsure
            return
        try:
            answer = self._client.call(TXN, pass_over(place.prefix, place.key, place.revision), deadline)
            if not (answer.value.succeeded or answer.again or unsure):
                place.passed_over = False  # it is not the first
        except DistLockError:
            self.called(claim_id)
