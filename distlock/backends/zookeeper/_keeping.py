"""How locks are kept: one request for all that stand under a session, which proves the session, and their nodes."""

from __future__ import annotations

from collections.abc import Sequence

from kazoo.exceptions import NoNodeError, RolledBackError, RuntimeInconsistency
from kazoo.protocol.serialization import Exists

from .._places import Places
from ..base import BackendError, Grant, LeaseState, Renewal, now, proven_until
from ._client import batches, check
from ._errors import mapped
from ._life import TOLD, Life
from ._places import Place
from ._session import Session

__all__ = ("Keeping",)

LOST = Renewal(LeaseState.LOST)
_NOT_THERE = (NoNodeError, RolledBackError, RuntimeInconsistency)
"""The last two stand before and behind the check that fails."""


class Keeping:
    """Thread-safe."""

    def __init__(self, places: Places[Place]) -> None:
        self._places = places

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        asked_at = now()
        lives: dict[Life, Session] = {}
        for grant in grants:
            place = self.held(grant)
            if place is not None and place.life is not None:
                lives[place.life] = place.session
        failure: BackendError | None = None
        for life, session in lives.items():
            try:
                self._check(session, life, deadline)
            except BackendError as error:
                failure = error
        if failure is not None and len(lives) == 1 and not next(iter(lives)).ended:
            raise failure
        return [self._renewal(grant, asked_at) for grant in grants]

    def _renewal(self, grant: Grant, asked_at: float) -> Renewal:
        place = self.held(grant)
        if place is None or place.life is None:
            return LOST
        until = min(place.life.deadline, proven_until(asked_at, grant.claim.ttl))
        return Renewal(LeaseState.HELD, until) if until > now() else Renewal(LeaseState.UNKNOWN)

    def held(self, grant: Grant) -> Place | None:
        """None: it is lost."""
        place = self._places.find(grant.claim.id)
        if place is None or not place.node or place.czxid != grant.token:
            return None
        return None if place.life is None or place.life.ended else place

    def _check(self, session: Session, life: Life, deadline: float) -> None:
        """One request in a third of the session's length for all that are held under it, whichever of them is due."""
        t = now()
        if t - life.checked_at < TOLD * life.timeout and life.deadline - t > life.timeout / 6:
            return
        if session.alive(deadline, None) is not life:
            return
        held = {
            node: place for place in self._places.all() if place.life is life and place.granted and (node := place.node)
        }
        for batch in batches(held):
            self.check(session, life, [held[node] for node in batch], deadline)
        life.checked_at = t

    def check(self, session: Session, life: Life, batch: list[Place], deadline: float, key: str | None = None) -> None:
        """Whether their nodes are there; it proves the session as well."""
        for _ in range(3):
            (outcomes,) = session.call(life, [check([place.node for place in batch])], deadline, key)
            if isinstance(outcomes, Exception):
                raise mapped(outcomes, session.address, key=key) from outcomes
            for outcome in outcomes:
                if isinstance(outcome, Exception) and not isinstance(outcome, _NOT_THERE):
                    raise mapped(outcome, session.address, key=key) from outcome
            missing = {
                place.claim.id
                for place, outcome in zip(batch, outcomes, strict=False)
                if isinstance(outcome, NoNodeError)
            }
            if not missing:
                return
            # Of a transaction that fails ZooKeeper tells only the first; it may be one that was released meanwhile.
            if any(place.granted for place in batch if place.claim.id in missing):
                self._sort_out(session, life, batch, deadline)
            batch = [place for place in batch if place.granted and place.claim.id not in missing]
            if not batch:
                return

    @staticmethod
    def _sort_out(session: Session, life: Life, places: Sequence[Place], deadline: float) -> None:
        found = session.call(life, [Exists(place.node, None) for place in places], deadline)
        for place, stat in zip(places, found, strict=True):
            if place.granted and (stat is None or isinstance(stat, NoNodeError)):
                place.vanished()
