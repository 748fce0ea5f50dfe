"""How those who wait for work to be done learn that it is: all at once, by a watch on its record.

One watch, and one look at the record when that has called, serve all who wait for it under one session. Work may never
be done: the watch is taken back when nobody waits under it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from kazoo.protocol.serialization import GetData
from kazoo.protocol.states import EventType

from ._client import Handle, Watcher
from ._places import Place
from ._session import Session
from ._watches import Watches

__all__ = ("Board",)


class _Notice(Watcher):
    """On one record, by one session."""

    def __init__(self, board: Board, session: Session, path: str) -> None:
        self.places: dict[str, Place] = {}
        self.at = session, path
        self._board = board

    def __call__(self, event: Any) -> None:
        self._board.fired(self, event.type)


class Board:
    """Thread-safe."""

    def __init__(self, watches: Watches) -> None:
        self._watches = watches
        self._mutex = threading.RLock()  # see `Clerk`
        self._notices: dict[tuple[Session, str], _Notice] = {}

    def aim(self, place: Place, path: str) -> Watcher:
        """What the request for the record is to be sent with."""
        with self._mutex:
            at = place.session, path
            notice = self._notices.get(at)
            if notice is None:
                notice = self._notices[at] = _Notice(self, *at)
            notice.places[place.claim_id] = place
            return notice

    def leave(self, place: Place, path: str) -> None:
        """It does not wait for the record any more."""
        with self._mutex:
            notice = self._notices.get((place.session, path))
            if notice is None or notice.places.pop(place.claim_id, None) is None or notice.places:
                return
            del self._notices[notice.at]
            if place.life is not None:  # sent before the mutex is free: whoever comes next sets another one behind it
                place.session.unwatch(place.life, path, notice)

    def fired(self, notice: _Notice, kind: str) -> None:
        """Called in the thread of the connection."""
        with self._mutex:
            if self._notices.get(notice.at) is notice:
                del self._notices[notice.at]
            places = list(notice.places.values())
            notice.places.clear()
        life = next((place.life for place in places), None)
        if kind == EventType.NONE or life is None:  # the connection is lost: they are woken when there is another
            return
        session, path = notice.at
        look = session.ask(life, GetData(path, None))
        look.result.rawlink(lambda _: self._tell(places, look))

    def _tell(self, places: Sequence[Any], look: Handle) -> None:
        found = look.result.value if look.result.successful() else None
        for place in places:
            place.told = found
            self._watches.leave(place)  # as the others go, each before the next, it need not look where it stands
        for place in places:
            self._watches.wake(place)
