"""Work that is done once: a line as that for a lock, beside which there is the record of what came of it.

::

    /distlock/<namespace>+once/<name>/lock-<claim id>-<sequence>    who is at the work, and who waits for it
    /distlock/<namespace>+once/<name>/result                        its record

A record is written by who is the first in the line, in one transaction with the deletion of its node: it is there
before another is the first. And whoever learns that it is the first looks for the record after that, in the same
session.

ZooKeeper keeps a record until it is deleted. That it is over is for the servers' clock to say: its time counts from
when it was written up to when another node was, both as the leader has noted it. The next one who completes the work
puts the new record in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from kazoo.exceptions import NoNodeError
from kazoo.protocol.serialization import Exists, GetData

from ..base import Busy, Claim, Done, Grant
from ._board import Board
from ._entrance import Entrance
from ._errors import mapped
from ._life import Life
from ._places import Place
from ._session import Session
from ._values import Layout

__all__ = ("RECORD", "Record", "Seat", "WorkEntrance", "seat_of")

RECORD = "result"


class Record(NamedTuple):
    """What is in its node: a version, who did the work, for how many seconds it is kept, and what is to be kept."""

    claim_id: str
    keep: float
    text: bytes

    @property
    def value(self) -> bytes:
        return f"1 {self.claim_id} {self.keep!r} ".encode() + self.text

    @classmethod
    def read(cls, value: bytes) -> Record:
        """One of another format is kept for ever, and is for who has asked to make sense of."""
        try:
            version, claim_id, keep, text = value.split(b" ", 3)
            if version == b"1":
                return cls(claim_id.decode(), float(keep), text)
        except ValueError:
            pass
        return cls("", math.inf, value)

    def left(self, written: int, time: int) -> float:
        """Seconds for which it is kept from ``time`` on; both in milliseconds, by the servers' clock."""
        return self.keep - max(0, time - written) / 1000

    @staticmethod
    def lasts(left: float) -> float | None:
        """That, as it is told to others."""
        return None if left == math.inf else left


class Seat(Place):
    """The place of a claim on work."""

    __slots__ = ("board", "made_at", "over", "told")

    def __init__(self, claim: Claim, layout: Layout, session: Session, board: Board) -> None:
        super().__init__(claim, layout, session)
        self.board = board
        self.made_at = 0
        """When its node was made, in milliseconds by the servers' clock."""
        self.over: Any = None
        """The stat of a record that is there, but over."""
        self.told: Any = None
        """The record and its stat, as read when the watch on it had called."""

    @property
    def record(self) -> str:
        return f"{self.parent}/{RECORD}"

    def stands(self, node: str, stat: Any) -> None:
        super().stands(node, stat)
        self.made_at = stat.ctime

    def leave_session(self) -> None:
        super().leave_session()
        self.board.leave(self, self.record)

    def vanished(self) -> None:
        super().vanished()
        self.over = self.told = None


class WorkEntrance(Entrance):
    """Whoever is the first in the line, and then finds no record, is at the work."""

    def after_fork(self) -> None:
        super().after_fork()
        self.board = Board(self.watches)

    def _ahead_of_line(self, place: Place) -> Sequence[Any]:
        return (self._container(place.parent),)  # most names are new

    def _beside_line(self, place: Place) -> Sequence[Any]:
        return (GetData(seat_of(place).record, None),)

    def _beside_watch(self, place: Place) -> Sequence[Any]:
        seat = seat_of(place)
        return (Exists(seat.record, self.board.aim(seat, seat.record)),)

    def _look(self, place: Place, life: Life, claim: Claim, deadline: float) -> Grant | Busy | Done | None:
        seat = seat_of(place)
        seat.beside = []  # of an earlier look at the line
        told, seat.told = seat.told, None
        done = None if told is None else self._done(seat, claim, told)
        if done is None and seat.second and seat.gone and not seat.granted:
            done = self._done(seat, claim, self._read(seat, life, deadline))
        return done or super()._look(seat, life, claim, deadline)

    def _decide(
        self, place: Place, life: Life, claim: Claim, children: list[str], deadline: float
    ) -> Grant | Busy | Done | None:
        seat = seat_of(place)
        found, seat.beside = seat.beside, []
        if not found and RECORD in children:  # the line and the record, as they were at the same moment
            found = [self._read(seat, life, deadline)]
        done = self._done(seat, claim, found[0]) if found else None
        return done or super()._decide(seat, life, claim, children, deadline)

    def _queued(self, place: Place, life: Life, claim: Claim, first: str, before: str, deadline: float) -> Busy | None:
        busy = super()._queued(place, life, claim, first, before, deadline)
        seat = seat_of(place)
        (stat,), seat.beside = seat.beside, []
        if stat is not None and (seat.over is None or stat.mzxid != seat.over.mzxid):
            return None  # it has come in the meantime
        return busy

    @staticmethod
    def _read(seat: Seat, life: Life, deadline: float) -> Any:
        (found,) = seat.session.call(life, [GetData(seat.record, None)], deadline, seat.claim.key)
        return found

    @staticmethod
    def _done(seat: Seat, claim: Claim, found: Any) -> Done | None:
        """By the record, if one was found that is not over."""
        seat.over = None
        if isinstance(found, NoNodeError):
            return None
        if isinstance(found, Exception):
            raise mapped(found, seat.session.address, key=claim.key) from found
        record, stat = Record.read(found[0]), found[1]
        left = record.left(stat.mtime, seat.made_at)
        if left <= 0:
            seat.over = stat
            return None
        return Done(claim, record.text, record.lasts(left))


def seat_of(place: Place) -> Seat:
    return cast("Seat", place)
