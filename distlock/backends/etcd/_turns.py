"""Of several threads that want the same thing, one asks for it, and the others wait."""

from __future__ import annotations

import threading
import weakref

from ..base import now

__all__ = ("Turn", "Turns")


class Turn:
    """That of the call which has it in a variable of its own.

    Ctrl-C may come between any two steps, so that no ``finally`` is sure to give back what was taken. But the variables
    of a call that was broken off are gone, and its turn with them.
    """

    __slots__ = ("__weakref__",)


class Turns:
    """By what they are for. Thread-safe."""

    def __init__(self) -> None:
        self._mutex = threading.RLock()  # see `Clerk`
        self._changed = threading.Condition(self._mutex)
        self._taken: dict[object, weakref.ref[Turn]] = {}

    def take(self, what: object, turn: Turn, deadline: float) -> bool:
        """False: it was not its turn in time."""
        with self._mutex:
            while (taken := self._taken.get(what)) is not None and taken() is not None:
                left = deadline - now()
                if left <= 0:
                    return False
                self._changed.wait(left)
            self._taken[what] = weakref.ref(turn, self._gone)
            return True

    def leave(self, what: object, turn: Turn) -> None:
        """It is the next one's."""
        with self._mutex:
            taken = self._taken.get(what)
            if taken is not None and taken() is turn:
                del self._taken[what]
                self._changed.notify_all()

    def settle(self, deadline: float) -> None:
        """Until nobody has a turn."""
        with self._mutex:
            while any(taken() is not None for taken in self._taken.values()) and (left := deadline - now()) > 0:
                self._changed.wait(left)

    def _gone(self, _: object) -> None:
        with self._mutex:
            self._changed.notify_all()
