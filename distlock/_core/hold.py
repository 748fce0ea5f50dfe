"""One grant, from the moment it is given until it ends: the state that leases show and the watchdog keeps."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import ClassVar

from .._clock import now
from .._types import LeaseState
from ..backends.base import Grant, proven_until

__all__ = ("GONE", "Hold")

log = logging.getLogger("distlock")

UNCONFIRMED = 0.5
"""Seconds after which the watchdog renews what was entered before its confirmation was answered, if it still is not."""

HERE = 0.05
"""Seconds to wait for an answer that should be here: what is proven without it is over."""

GONE = "the store does not have it any more"

LossCallback = Callable[[], object]


class Hold:
    """Thread-safe. ``deadline`` is the truth; flags only ever make it end sooner."""

    __slots__ = (
        "_callbacks",
        "acquired_at",
        "actor",
        "confirmation",
        "count",
        "deadline",
        "doubtful",
        "ended",
        "ends_at",
        "giving_up",
        "grant",
        "lapses",
        "reason",
        "renew",
        "renew_at",
        "saving",
    )

    # One for all, as it is held for a few steps and each would weigh on its hold. Taken by a lease's finalizer too,
    # which may run in the very thread that holds it.
    _lock: ClassVar[threading.RLock] = threading.RLock()

    @classmethod
    def after_fork(cls) -> None:
        """In a forked child: another thread may have held the lock."""
        cls._lock = threading.RLock()

    def __init__(self, grant: Grant, *, renew: bool, max_hold: float | None, actor: object) -> None:
        self.confirmation = grant.confirmation
        self.grant: Grant = grant if grant.confirmation is None else grant._replace(confirmation=None)
        self.lapses: bool = not renew
        """It ends with its ttl."""
        kept = grant.until is not None and not renew
        self.renew: bool = renew or kept
        self.actor: object = actor
        self.acquired_at: float = now()
        self.ends_at: float = math.inf if max_hold is None else self.acquired_at + max_hold
        if kept and grant.until is not None and grant.until < self.ends_at:
            self.ends_at = grant.until
        self.deadline: float = grant.deadline if grant.deadline < self.ends_at else self.ends_at
        # A third of the ttl after the request was sent, however long its reply took.
        renewed = self.renew and grant.deadline < self.ends_at
        self.renew_at: float = grant.deadline - grant.claim.ttl * 2 / 3 if renewed else math.inf
        if self.confirmation is not None:
            self.renew_at = self.acquired_at + UNCONFIRMED
        elif self.renew_at < self.acquired_at:  # less is proven than was asked for: a third of that
            self.renew_at = self.acquired_at + (grant.deadline - self.acquired_at) / 3
        self.count: int = 1
        """Leases on it. 0: nobody enters it any more."""
        self.doubtful: bool = False
        self.giving_up: bool = False
        self.saving: bool = False
        """Its work is being completed, which ends it: until that is known it is kept alive."""
        self.reason: str = ""
        self.ended: LeaseState | None = None
        """Known to be over, whatever the clock says."""
        self._callbacks: tuple[LossCallback, ...] = ()

    @property
    def state(self) -> LeaseState:
        """By the clock: a stopped or starved process sees LOST here before any thread tells it."""
        if self.ended is not None:
            return self.ended
        if now() >= self.deadline and not self.settle(HERE):
            if self.giving_up:  # its release got no answer, and now its time is up
                return LeaseState.RELEASED
            self.expire()
            return self.ended or LeaseState.LOST
        return LeaseState.UNKNOWN if self.doubtful or self.giving_up else LeaseState.HELD

    def remaining(self, wanted: float = math.inf) -> float:
        """Seconds for which holding is proven.

        If they are not more than ``wanted``, and a confirmation is on its way, it waits for what that brings: as long
        as holding is proven without it, which is a second at most.
        """
        if self.ended is not None or self.giving_up:
            return 0.0
        left = self.deadline - now()
        if left <= wanted and self.confirmation is not None:
            left = self.deadline - now() if self.settle(max(left, HERE)) else 0.0
        return left if left > 0.0 else 0.0

    def settle(self, patience: float) -> bool:
        """Sees what has come of the confirmation, for so many seconds; True if holding is proven now."""
        confirmation = self.confirmation
        if confirmation is None or self.ended is not None:
            return self.ended is None and now() < self.deadline
        renewal = confirmation.outcome(patience)
        with self._lock:
            if self.confirmation is confirmation and (renewal is not None or now() >= self.deadline):
                self.confirmation = None  # without an answer too: who was told that it is over is not told otherwise
                if renewal is not None and renewal.state is LeaseState.HELD:
                    self._confirmed(renewal.deadline)
        if renewal is not None and renewal.state is LeaseState.LOST:
            self.vanished()
        return self.ended is None and now() < self.deadline

    def _confirmed(self, deadline: float) -> None:
        # Holding is proven without a gap, though nobody may have looked before the first proof was over.
        if self.ended is None and not self.giving_up and deadline > self.deadline:
            self.deadline, self.doubtful = min(deadline, self.ends_at), False
            last = not self.renew or deadline >= self.ends_at
            self.renew_at = math.inf if last else deadline - self.grant.claim.ttl * 2 / 3

    def on_lost(self, callback: LossCallback) -> None:
        """Calls it once when the hold is lost: at once if it is."""
        with self._lock:
            if self.ended is None:
                self._callbacks = (*self._callbacks, callback)
                return
        if self.ended is LeaseState.LOST:
            callback()

    def off_lost(self, callback: LossCallback) -> None:
        """Forgets a callback that was not called yet."""
        with self._lock:
            self._callbacks = tuple(each for each in self._callbacks if each != callback)

    def renewed(self, grant: Grant, asked_at: float, deadline: float) -> None:
        """The watchdog's renewal of ``grant``, asked for at ``asked_at``, proves holding until ``deadline``."""
        with self._lock:
            # What has ended is never revived; a renewal that crossed an `extend` proves an older wish.
            if grant is self.grant and self._prove(deadline):
                last = not self.renew or deadline >= self.ends_at
                self.renew_at = math.inf if last else _third(grant, asked_at, deadline)

    def shorten(self, grant: Grant, asked_at: float, deadline: float) -> Callable[[], None]:
        """The wish for a shorter length is about to be sent. If no answer comes the store may have granted it.

        Gives a function that takes it back, for a wish that was certainly not granted.
        """
        self.settle(HERE)
        with self._lock:
            self.confirmation = None  # of the length before
            before = self.grant, self.deadline, self.renew_at
            if self.ended is None and deadline < self.deadline:
                self.grant, self.deadline = grant, deadline
                self.renew_at = asked_at + grant.claim.ttl / 3 if self.renew else math.inf

        def undo() -> None:
            with self._lock:
                if self.ended is None and self.grant is grant and self.deadline == deadline:
                    self.grant, self.deadline, self.renew_at = before

        return undo

    def extended(self, grant: Grant, asked_at: float, deadline: float) -> None:
        """The owner's wish for another length: ``grant`` has the new ttl."""
        with self._lock:
            if self.lapses and self.renew:
                self.ends_at = max(self.ends_at, asked_at + grant.claim.ttl)
            if self._prove(deadline):
                self.grant = grant
                self.renew_at = _third(grant, asked_at, deadline) if self.renew else math.inf

    def in_doubt(self, deadline: float, retry_at: float) -> None:
        """A renewal got no answer, which was asked for when holding was proven until ``deadline``."""
        with self._lock:
            if self.deadline == deadline:
                self.doubtful, self.renew_at = True, retry_at

    def _prove(self, deadline: float) -> bool:
        if self.ended is not None or self.giving_up or now() >= self.deadline:
            return False
        self.confirmation = None
        self.deadline = deadline if deadline < self.ends_at else self.ends_at
        self.doubtful = False
        return True

    def lose(self, reason: str) -> bool:
        """The hold is lost. True for the one call that made it so; that one runs the callbacks."""
        if not self._end(LeaseState.LOST, reason):
            return False
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("telling of the loss of %r failed", self.grant.claim.key)
        return True

    def expire(self) -> None:
        """The proven time is over."""
        ttl = self.grant.claim.ttl
        over = self.deadline >= proven_until(self.ends_at - ttl, ttl)  # the last renewal is short of it by the margin
        if not self.renew or (over and self.lapses):
            self.lose("its ttl is over, and it was not to be renewed")
        elif over:
            self.lose("its max_hold is over")
        else:
            self.lose("it was not renewed in time")

    def enter_again(self) -> bool:
        """One more lease on this hold; False if there is nothing left to enter."""
        over = not self.remaining(0.0)
        with self._lock:
            if over or self.ended is not None or self.giving_up or not self.count:
                return False
            self.count += 1
            return True

    def leave(self) -> bool:
        """One lease less; True if it was the last, after which nobody enters any more."""
        with self._lock:
            if self.count > 1:
                self.count -= 1
                return False
            self.count = 0
            return True

    def let_lapse(self) -> None:
        """Nobody is left who could release it: no renewal any more, and the end at the end of the proven time."""
        with self._lock:
            self.renew, self.renew_at = False, math.inf

    def vanished(self) -> None:
        """The store does not have it. If we are just giving it up, that is why."""
        if not self.giving_up:
            self.lose(GONE)

    def completed(self, ours: bool) -> None:
        """The outcome of completing its work is known."""
        if ours:
            self.finish()
        else:
            self.lose(GONE)

    def finish(self) -> None:
        """The hold was given up by its owner."""
        self._end(LeaseState.RELEASED, "it was released")

    def disown(self) -> None:
        """In a forked child: the parent holds it. No callback runs here."""
        self._callbacks = ()
        self._end(LeaseState.LOST, "this process was forked while its parent held it")

    def _end(self, state: LeaseState, reason: str) -> bool:
        with self._lock:
            if self.ended is not None:
                return False
            self.ended, self.reason = state, reason
            return True


def _third(grant: Grant, asked_at: float, deadline: float) -> float:
    """When to renew: a third of the ttl after it was asked for, or of what is proven, if that is less."""
    ttl, proven = grant.claim.ttl, deadline - asked_at
    return asked_at + (ttl if proven > 0.9 * ttl else proven) / 3
