"""One grant, from the moment it is given until it ends: the state that leases show and the watchdog keeps."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

from .._clock import now
from .._types import LeaseState
from ..backends.base import Grant, proven_until

__all__ = ("GONE", "Hold")

log = logging.getLogger("distlock")

GONE = "the store does not have it any more"

LossCallback = Callable[[], object]


class Hold:
    """Thread-safe. ``deadline`` is the truth; flags only ever make it end sooner."""

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_ended",
        "_lock",
        "acquired_at",
        "actor",
        "count",
        "deadline",
        "doubtful",
        "ends_at",
        "giving_up",
        "grant",
        "left",
        "reason",
        "renew",
        "renew_at",
    )

    def __init__(self, grant: Grant, *, renew: bool, max_hold: float | None, actor: object) -> None:
        self.grant: Grant = grant
        self.renew: bool = renew
        self.actor: object = actor
        self.acquired_at: float = now()
        self.ends_at: float = math.inf if max_hold is None else self.acquired_at + max_hold
        self.deadline: float = min(grant.deadline, self.ends_at)
        # A third of the ttl after the request was sent, however long its reply took.
        due = grant.deadline - grant.claim.ttl * 2 / 3
        self.renew_at: float = due if renew and grant.deadline < self.ends_at else math.inf
        self.count: int = 1
        self.doubtful: bool = False
        self.left: bool = False
        self.giving_up: bool = False
        self.reason: str = ""
        self._ended: LeaseState | None = None
        # Taken by a lease's finalizer too, which may run in the very thread that holds it.
        self._lock: threading.RLock = threading.RLock()
        self._callbacks: list[LossCallback] = []

    @property
    def state(self) -> LeaseState:
        """By the clock: a stopped or starved process sees LOST here before any thread tells it."""
        if self._ended is not None:
            return self._ended
        if now() >= self.deadline:
            if self.giving_up:  # its release got no answer, and now its time is up
                return LeaseState.RELEASED
            self.expire()
            return self._ended or LeaseState.LOST
        return LeaseState.UNKNOWN if self.doubtful or self.giving_up else LeaseState.HELD

    def remaining(self) -> float:
        """Seconds for which holding is proven."""
        if self._ended is not None or self.giving_up:
            return 0.0
        return max(0.0, self.deadline - now())

    @property
    def ended(self) -> bool:
        """Known to be over, whatever the clock says."""
        return self._ended is not None

    def on_lost(self, callback: LossCallback) -> None:
        """Calls it once when the hold is lost: at once if it is."""
        with self._lock:
            if self._ended is None:
                self._callbacks.append(callback)
                return
        if self._ended is LeaseState.LOST:
            callback()

    def off_lost(self, callback: LossCallback) -> None:
        """Forgets a callback that was not called yet."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def renewed(self, grant: Grant, asked_at: float, deadline: float) -> None:
        """The watchdog's renewal of ``grant``, asked for at ``asked_at``, proves holding until ``deadline``."""
        with self._lock:
            # What has ended is never revived; a renewal that crossed an `extend` proves an older wish.
            if grant is self.grant and self._prove(deadline):
                last = not self.renew or deadline >= self.ends_at
                self.renew_at = math.inf if last else asked_at + grant.claim.ttl / 3

    def shorten(self, grant: Grant, asked_at: float, deadline: float) -> Callable[[], None]:
        """The wish for a shorter length is about to be sent. If no answer comes the store may have granted it.

        Gives a function that takes it back, for a wish that was certainly not granted.
        """
        with self._lock:
            before = self.grant, self.deadline, self.renew_at
            if self._ended is None and deadline < self.deadline:
                self.grant, self.deadline = grant, deadline
                self.renew_at = asked_at + grant.claim.ttl / 3 if self.renew else math.inf

        def undo() -> None:
            with self._lock:
                if self._ended is None and self.grant is grant and self.deadline == deadline:
                    self.grant, self.deadline, self.renew_at = before

        return undo

    def extended(self, grant: Grant, asked_at: float, deadline: float) -> None:
        """The owner's wish for another length: ``grant`` has the new ttl."""
        with self._lock:
            if self._prove(deadline):
                self.grant = grant
                self.renew_at = asked_at + grant.claim.ttl / 3 if self.renew else math.inf

    def in_doubt(self, retry_at: float) -> None:
        """A renewal got no answer."""
        with self._lock:
            self.doubtful, self.renew_at = True, retry_at

    def _prove(self, deadline: float) -> bool:
        if self._ended is not None or self.giving_up or now() >= self.deadline:
            return False
        self.deadline, self.doubtful = min(deadline, self.ends_at), False
        return True

    def lose(self, reason: str) -> bool:
        """The hold is lost. True for the one call that made it so; that one runs the callbacks."""
        if not self._end(LeaseState.LOST, reason):
            return False
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("telling of the loss of %r failed", self.grant.claim.key)
        return True

    def expire(self) -> None:
        """The proven time is over."""
        ttl = self.grant.claim.ttl
        if not self.renew:
            self.lose("its ttl is over, and it was not to be renewed")
        elif self.deadline >= proven_until(self.ends_at - ttl, ttl):  # the last renewal is short of it by the margin
            self.lose("its max_hold is over")
        else:
            self.lose("it was not renewed in time")

    def enter_again(self) -> bool:
        """One more lease on this hold; False if there is nothing left to enter."""
        with self._lock:
            if self._ended is not None or self.giving_up or self.left or now() >= self.deadline:
                return False
            self.count += 1
            return True

    def leave(self) -> bool:
        """One lease less; True if it was the last, after which nobody enters any more."""
        with self._lock:
            if self.count > 1:
                self.count -= 1
                return False
            self.left = True
            return True

    def let_lapse(self) -> None:
        """Nobody is left who could release it: no renewal any more, and the end at the end of the proven time."""
        with self._lock:
            self.renew, self.renew_at = False, math.inf

    def vanished(self) -> None:
        """The store does not have it. If we are just giving it up, that is why."""
        if not self.giving_up:
            self.lose(GONE)

    def finish(self) -> None:
        """The hold was given up by its owner."""
        self._end(LeaseState.RELEASED, "it was released")

    def disown(self) -> None:
        """In a forked child: the parent holds it. No callback runs here."""
        self._lock = threading.RLock()  # the inherited one may be locked for ever
        self._callbacks = []
        self._end(LeaseState.LOST, "this process was forked while its parent held it")

    def _end(self, state: LeaseState, reason: str) -> bool:
        with self._lock:
            if self._ended is not None:
                return False
            self._ended, self.reason = state, reason
            return True
