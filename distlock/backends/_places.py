"""What a process knows of its claims, where each has a place of its own in the store."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from ._records import record
from .base import Claim, now

__all__ = ("Placed", "Places")

REMEMBERED = 4096
"""Claims that were withdrawn while a thread may have been about to ask for them."""


class Placed:
    """A claim that has, or may have, a place of its own: from before it is asked for until that is known to be gone."""

    __slots__ = ("claim_id", "granted", "passed_over", "pending", "unknown", "value")

    def __init__(self, claim: Claim) -> None:
        self.claim_id = claim.id
        self.value = record(claim)
        """What is to stand there."""
        self.granted = False
        self.pending = 0
        """Requests for it that have not returned."""
        self.unknown = False
        """One of them was not answered, or sent twice: what it asks for may be there, or may yet come."""
        self.passed_over = False
        """It did not come when it was its turn."""

    @property
    def unsure(self) -> bool:
        """More of it may be there than is known."""
        return self.unknown or self.pending > 0

    def leave_session(self) -> None:
        """It does not wait under it any more."""
        raise NotImplementedError


P = TypeVar("P", bound=Placed)


class Places(Generic[P]):
    """By claim. Thread-safe. ``make`` makes the place of one that has none yet."""

    def __init__(self, make: Callable[[Claim], P]) -> None:
        self._make = make
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: they are the parent's."""
        self._places: dict[str, P] = {}
        self._withdrawn: OrderedDict[str, None] = OrderedDict()
        self._mutex = threading.RLock()
        self._settled = threading.Condition(self._mutex)
        self._expected = 0

    def all(self) -> list[P]:
        """As they are at this moment."""
        return list(self._places.values())

    def find(self, claim_id: str) -> P | None:
        """None: nothing of it is in the store, nor on its way there."""
        return self._places.get(claim_id)

    def enter(self, claim: Claim) -> P:
        """Before it is asked for; `returned` comes after it."""
        place = self._places.get(claim.id)
        if place is None:
            place = self._places[claim.id] = self._make(claim)
        place.pending += 1
        return place

    def is_refused(self, claim_id: str) -> bool:
        """It was withdrawn. To be asked after `enter`: either this sees it, or who withdraws sees what is pending."""
        return claim_id in self._withdrawn

    def returned(self, place: P) -> None:
        """A request for it came back, one way or the other."""
        place.pending -= 1
        if self._expected:
            with self._mutex:
                self._settled.notify_all()

    def settle(self, place: P, deadline: float) -> None:
        """Waits for what is on its way: that of a task which was cancelled is answered in a moment, most often."""
        if not place.pending:
            return
        with self._mutex:
            self._expected += 1
            try:
                while place.pending and (left := deadline - now()) > 0:
                    self._settled.wait(left)
            finally:
                self._expected -= 1

    def forget(self, place: P) -> None:
        """Nothing of it is there, and nothing is on its way that could bring it back."""
        place.leave_session()
        self._places.pop(place.claim_id, None)

    def refuse(self, claim_id: str) -> None:
        """It is not to be asked for from now on: a thread that was left behind may be about to."""
        self._withdrawn[claim_id] = None
        while len(self._withdrawn) > REMEMBERED:
            self._withdrawn.popitem(last=False)
