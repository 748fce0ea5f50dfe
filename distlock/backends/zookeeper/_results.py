"""The store of what came of work that is done once: completing, looking, and deleting what is over.

Who is at the work, and when it is over, is told in `_work`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

from kazoo.exceptions import BadVersionError, NodeExistsError, NoNodeError, RolledBackError
from kazoo.protocol.serialization import Create, Delete, Exists, GetData, SetData, Sync, Transaction

from .._dice import DICE
from ..base import BackendError, Busy, Claim, Done, Grant, SyncBackend, TooLarge, now
from ._backend import ZooKeeperBackend
from ._client import ANY_VERSION, acl_of
from ._entrance import TRIES, Entrance
from ._errors import mapped
from ._places import Place
from ._url import Place as Address
from ._work import RECORD, Record, Seat, WorkEntrance, seat_of

__all__ = ("ZooKeeperResults",)

LARGEST = 1_000_000
"""Bytes: a server takes no request above a megabyte (jute.maxbuffer), and some of it are names."""
PAGE = 20
"""Records that are read together: each may be large."""
SWEPT = 1_000
"""Records that are looked at in one go, to delete what is over."""
SWEEP_AFTER = 250
"""Completions: with the above, what is over is no more than a third of what is not."""
SWEEP_EVERY = 600.0
"""Seconds, with fewer completions."""
SWEEP_TIMEOUT = 1.0
"""Seconds for a request of who sweeps, in a thread that has more to do."""
_SWEEPER = "distlock, which deletes a result that is over"
_CHANGED = (NodeExistsError, NoNodeError, BadVersionError)


class _Found(NamedTuple):
    key: str
    record: Record
    left: float
    """Seconds for which it is kept; 0 or less: it is over."""


class ZooKeeperResults(ZooKeeperBackend):
    """Thread-safe. A store of `SyncBackend.results`, with sessions of its own."""

    def __init__(self, place: Address, namespace: str, op_timeout: float) -> None:
        own = replace(place, layout="distlock", path=place.path and f"{place.path}+once")
        super().__init__(own, f"{namespace}+once", op_timeout)  # no user's has a plus
        self._acl = acl_of(own)
        self._until_sweep = 0
        """Completions."""
        self._sweep_at = 0.0
        self._swept = itertools.count()

    def _enter_by(self, *args: Any) -> Entrance:
        return WorkEntrance(*args)

    def _place_of(self, claim: Claim) -> Place:
        return Seat(claim, self._layout, self._sessions.get(claim.ttl), cast("WorkEntrance", self._entrance).board)

    def _answered(self, place: Place, claim: Claim, outcome: Grant | Busy | Done) -> None:
        if isinstance(outcome, Done):  # its node is deleted behind the caller's back
            place.doomed = True
            self._watches.leave(place)
            self._tidy(place)
        else:
            super()._answered(place, claim, outcome)

    def results(self) -> SyncBackend:
        raise self._no_results()

    # Completing.

    def complete(self, grant: Grant, record: bytes, keep: float, deadline: float) -> bool:
        claim = grant.claim
        value = Record(claim.id, keep, record).value
        if len(value) > LARGEST:
            raise TooLarge(
                f"a record of {len(value)} bytes is too large: at most {LARGEST} are kept [{self.address}]",
                key=claim.key,
                backend=self.address,
            )
        place = self._keeping.held(grant)
        kept = place is not None and self._leave_behind(seat_of(place), value, deadline)
        kept = kept or self._is_ours(claim, deadline)
        place = self._places.find(claim.id)
        if place is not None:
            self._places.forget(place)
        if kept:
            self._completed(claim)
        return kept

    def _leave_behind(self, seat: Seat, value: bytes | None, deadline: float) -> bool:
        """Ends the claim and puts ``value`` in the place of the record, in one step. None: deletes one that is over.

        False: its node, or that record, is not there any more.
        """
        session, key = seat.session, seat.claim.key
        for _ in range(TRIES):
            life = session.alive(deadline, key)
            if life is not seat.life or not seat.node:
                return False
            swap = Transaction([Delete(seat.node, ANY_VERSION), self._swap(seat, value)])
            (outcomes,) = session.call(life, [swap], deadline, key)
            error = _first_error(outcomes)
            if error is None:
                return True
            if isinstance(outcomes, Exception) or not isinstance(error, _CHANGED):
                raise mapped(error, self.address, key=key) from error
            if value is None or isinstance(outcomes[0], NoNodeError):
                return False
            # Nobody else writes while its node is there: the record was deleted, or is an old one that was not seen.
            (seat.over,) = session.call(life, [Exists(seat.record, None)], deadline, key)
        raise self._error("the record changes all the time", seat.claim)

    def _swap(self, seat: Seat, value: bytes | None) -> Any:
        if value is None:
            return Delete(seat.record, seat.over.version)
        if seat.over is None:
            return Create(seat.record, value, self._acl, 0)
        return SetData(seat.record, value, seat.over.version)

    def _is_ours(self, claim: Claim, deadline: float) -> bool:
        """Whether it was completed, by a request that was not answered.

        Behind a `Sync`, in that session or after its end, nothing of it can be on its way.
        """
        place = self._places.find(claim.id)
        session, path = self._sessions.any() if place is None else place.session, self._path(claim.key)
        life = session.alive(deadline, claim.key)
        _, found = session.call(life, [Sync(path), GetData(path, None)], deadline, claim.key)
        return self._is_there(found, claim.key) and Record.read(found[0]).claim_id == claim.id

    # Looking.

    def recorded(self, key: str, deadline: float) -> tuple[bytes, float | None] | None:
        for found in self._survey([key], deadline):
            if found.left > 0:
                return found.record.text, found.record.lasts(found.left)
        return None

    def forget(self, key: str, deadline: float) -> bool:
        if self.recorded(key, deadline) is None:
            return False
        session = self._sessions.any()
        (outcome,) = session.call(session.alive(deadline, key), [Delete(self._path(key), ANY_VERSION)], deadline, key)
        return self._is_there(outcome, key)

    def records(self, prefix: str, deadline: float) -> Iterator[str]:
        names = self._children(self._sessions.any(), self._layout.root, deadline)
        keys = [*self._layout.keys(names, prefix)]
        for start in range(0, len(keys), PAGE):
            for found in self._survey(keys[start : start + PAGE], now() + self._op_timeout):
                if found.left > 0:
                    yield found.key

    def _survey(self, keys: Sequence[str], deadline: float) -> Iterator[_Found]:
        """Their records, those that are over as well. What time it is a write says."""
        session = self._sessions.any()
        requests = [SetData(self._layout.root, b"", ANY_VERSION), *(GetData(self._path(key), None) for key in keys)]
        written, *found = session.call(session.alive(deadline, None), requests, deadline)
        if self._is_there(written):  # else nothing is
            for key, each in zip(keys, found, strict=True):
                if self._is_there(each, key):
                    record = Record.read(each[0])
                    yield _Found(key, record, record.left(each[1].mtime, written.mtime))

    def _is_there(self, outcome: Any, key: str | None = None) -> bool:
        if isinstance(outcome, Exception) and not isinstance(outcome, NoNodeError):
            raise mapped(outcome, self.address, key=key) from outcome
        return not isinstance(outcome, NoNodeError)

    def _path(self, key: str) -> str:
        return f"{self._layout.parent(key)}/{RECORD}"

    # Sweeping.

    def _completed(self, claim: Claim) -> None:
        self._until_sweep -= 1
        if self._until_sweep < 0 or now() >= self._sweep_at:
            self._until_sweep, self._sweep_at = SWEEP_AFTER, now() + SWEEP_EVERY
            self._tidier.soon(partial(self._sweep, claim))

    def _sweep(self, claim: Claim, keys: Sequence[str] | None = None) -> None:
        """A page of what is to be looked at; then the tidier has a moment for others. What fails is left for later."""
        deadline = now() + SWEEP_TIMEOUT
        with suppress(BackendError):
            if keys is None:
                keys = self._some_keys(deadline)
            for found in self._survey(keys[:PAGE], deadline):
                if found.left <= 0:
                    self._sweep_away(claim, found.key)
            if keys[PAGE:]:
                self._tidier.soon(partial(self._sweep, claim, keys[PAGE:]))

    def _some_keys(self, deadline: float) -> Sequence[str]:
        """From a random one on."""
        names = self._children(self._sessions.any(), self._layout.root, deadline)
        keys = sorted(self._layout.keys(names, ""))
        start = DICE.randrange(len(keys)) if keys else 0
        return [*keys[start:], *keys[:start]][:SWEPT]

    def _sweep_away(self, claim: Claim, key: str) -> None:
        """As the first in the line: nobody else puts a record there, so it is the one that is over, if there is one.

        A version would not tell. One that another sweeper has deleted, and that was written anew, has the same.
        """
        own = claim._replace(id=f"{claim.id}s{next(self._swept)}", key=key, wait=False, owner=_SWEEPER, about="{}")
        deadline = now() + SWEEP_TIMEOUT
        try:
            granted, place = isinstance(self.acquire(own, deadline), Grant), self._places.find(own.id)
            if place is not None and granted and seat_of(place).over is not None:
                self._leave_behind(seat_of(place), None, deadline)
        finally:
            place = self._places.find(own.id)
            if place is not None and not place.doomed:
                self.withdraw(own, now() + SWEEP_TIMEOUT, in_flight=True)


def _first_error(outcomes: Any) -> Exception | None:
    """Of a transaction: why it was not carried out."""
    if isinstance(outcomes, Exception):
        return outcomes
    errors = (each for each in outcomes if isinstance(each, Exception) and not isinstance(each, RolledBackError))
    return next(errors, None)
