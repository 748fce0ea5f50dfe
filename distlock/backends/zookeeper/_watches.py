"""How a waiter is woken: by a watch on the node before its own, and no other.

The watch is set by the request that reads that node: if the node is gone, none is left behind. One watch serves all
that wait for the same node.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from kazoo.protocol.serialization import GetChildren
from kazoo.protocol.states import EventType

from ._client import Watcher
from ._places import Place
from ._session import Session

__all__ = ("Watches",)


class _Watch(Watcher):
    """On one node, by one session."""

    def __init__(self, watches: Watches, session: Session, path: str) -> None:
        self.places: dict[str, Place] = {}
        self._watches = watches
        self._at = session, path

    def __call__(self, event: Any) -> None:
        self._watches.fired(self._at, self, event.type)


class Watches:
    """Thread-safe. ``on_call`` is told of a claim before it is woken, because it may be its turn."""

    def __init__(self, on_call: Callable[[Place], None]) -> None:
        self._on_call = on_call
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: nobody waits in it."""
        self._mutex = threading.RLock()
        self._watches: dict[tuple[Session, str], _Watch] = {}

    def aim(self, place: Place, path: str) -> _Watch:
        """What the request for the node is to be sent with."""
        with self._mutex:
            self.leave(place)
            at = place.session, path
            watch = self._watches.get(at)
            if watch is None:
                watch = self._watches[at] = _Watch(self, *at)
            place.ahead, place.gone = path, False
            watch.places[place.claim.id] = place
            return watch

    def leave(self, place: Place) -> None:
        """It does not wait for that node any more. The watch stays for others, and ends with the node."""
        with self._mutex:
            watch = self._watches.get((place.session, place.ahead))
            if watch is not None:
                watch.places.pop(place.claim.id, None)
            place.ahead = ""

    def missed(self, place: Place) -> None:
        """The node was not there: no watch was set."""
        with self._mutex:
            at = place.session, place.ahead
            self.leave(place)
            watch = self._watches.get(at)
            if watch is not None and not watch.places:
                del self._watches[at]

    def fired(self, at: tuple[Session, str], watch: _Watch, kind: str) -> None:
        """Called in the thread of the connection."""
        with self._mutex:
            if self._watches.get(at) is watch:
                del self._watches[at]
            places = [place for place in watch.places.values() if place.ahead == at[1]]
            watch.places.clear()
            for place in places:
                place.ahead = ""
                place.gone = kind == EventType.DELETED
        if kind == EventType.NONE:  # the connection is lost: they are woken when there is another
            return
        for place in places:
            if place.second or place.life is None:
                self.wake(place)
            else:  # it will ask where it stands now: its thread is woken when the answer is there
                place.look = look = at[0].ask(place.life, GetChildren(place.parent, None))
                look.result.rawlink(partial(self._looked, place))

    def _looked(self, place: Place, _: object) -> None:
        self.wake(place)

    def paths(self, session: Session) -> list[str]:
        with self._mutex:
            return [path for (each, path), watch in self._watches.items() if each is session and watch.places]

    def gone(self, session: Session, path: str) -> None:
        """It was found out by asking: the push was lost."""
        with self._mutex:
            watch = self._watches.get((session, path))
        if watch is not None:
            self.fired((session, path), watch, EventType.DELETED)

    def leads(self, session: Session, path: str) -> None:
        """That node is the first of its line: who waits for it is the second, and enters when it is gone."""
        watch = self._watches.get((session, path))
        if watch is None:
            return
        with self._mutex:
            for place in watch.places.values():
                place.second = place.second or place.ahead == path

    def wake(self, place: Place) -> None:
        """It is to ask again."""
        self._on_call(place)
        wake = place.wake
        if wake is not None:
            wake()
