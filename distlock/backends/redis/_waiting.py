"""One claim that waits, as the inbox of its process sees it."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..base import PROVISIONAL, Busy, Claim, Grant, Subscription, Wake, now, proven_until

__all__ = ("DRIFT", "SLACK", "Inboxes", "Kept", "Waiting", "Watch", "WatchHere")


SLACK = 0.002
"""Seconds after which the end of something has surely come, by the server's clock."""
DRIFT = 0.99e-6
"""Seconds that have passed here at least, when a microsecond has for the server: by the allowance of `proven_until`."""


def epoch(asked_at: float, held_us: int, value: bytes) -> float | None:
    """`Waiting.epoch`, by what was said to who asked then: how long the holder has had the lock, and its value."""
    version, _, rest = value.partition(b" ")
    token = rest.split(b" ", 2)[1:2]  # the time when it got it, by the server's clock
    return asked_at - DRIFT * (int(token[0]) + held_us) if version == b"1" and token and token[0].isdigit() else None


@dataclass(slots=True)
class Waiting:
    """Guarded by the inbox's mutex."""

    claim: Claim
    slot: int
    wake: Wake | None = None
    turn: threading.Lock | None = None
    """Released when its thread, which attends to it, is to look: it is woken, or nobody else listens."""
    queued: bool = False
    free_at: float = math.inf
    stand_by: float = math.inf
    """When to see what has come of a hand-over to another process. The server relies on it."""
    woken: bool = False
    epoch: float | None = None
    """What to add to 0.99 × a time of the server's, to get a moment here that is not too late.

    That is so for all times since the claim was queued; and that was after it was asked for.
    """
    given: tuple[int, float] | None = None
    """The lock was handed to it: the token, and until when that proves holding, if it is not confirmed."""

    def hear(self, news: str) -> None:
        """The lock was handed to it: with this token, at this time of the server's (in µs)."""
        heard_at = now()
        self.stand_by = heard_at + PROVISIONAL + SLACK
        token, _, us = news.partition(" ")
        if us and self.epoch is not None:
            # A clock that was set forward can say much, but not that it was later than now.
            given_at = min(self.epoch + DRIFT * int(us), heard_at)
            self.given = int(token), proven_until(given_at, min(PROVISIONAL, self.claim.ttl))

    @property
    def look_at(self) -> float:
        """When the lock may be free without anyone saying so."""
        return min(self.free_at, self.stand_by)

    def stir(self) -> None:
        """Its thread looks."""
        if self.turn is not None:
            with suppress(RuntimeError):  # it is to look anyhow
                self.turn.release()


class Kept(NamedTuple):
    """What came of a refresh."""

    locks: Mapping[str, tuple[int, Sequence[str]]]
    """By key: the ms until the lock ends, and the claims to wake."""
    heard: bool = True
    """False: the server knows that nobody listens to the channel there."""


class Inboxes(Protocol):
    """Where claims wait: one inbox, or those of a cluster. Thread-safe."""

    @property
    def connected(self) -> bool: ...
    def expect(self, claim: Claim) -> bytes: ...
    def forget(self, claim_id: str) -> object: ...
    def forget_unwatched(self, claim_id: str) -> object: ...
    def watch(self, busy: Busy, wake: Wake, deadline: float, *, here: bool = False) -> Subscription: ...
    def ends_in(self, busy: Busy, epoch: float | None = None) -> None: ...
    def close(self) -> None: ...
    def after_fork(self) -> None: ...


class _Inbox(Protocol):
    def attend(self, claim_id: str, deadline: float) -> bool: ...
    def granted(self, claim_id: str) -> Grant | None: ...
    def forget(self, claim_id: str) -> Wake | None: ...


class Watch:
    """The subscription of one claim."""

    __slots__ = ("_claim_id", "_inbox")

    def __init__(self, inbox: _Inbox, claim_id: str) -> None:
        self._inbox = inbox
        self._claim_id = claim_id

    def close(self) -> None:
        """Ends it."""
        self._inbox.forget(self._claim_id)


class WatchHere(Watch):
    """That of a thread which waits itself."""

    __slots__ = ()

    def attend(self, deadline: float) -> bool:
        """See `SyncBackend.watch_here`."""
        return self._inbox.attend(self._claim_id, deadline)

    def granted(self) -> Grant | None:
        """See `SyncBackend.watch_here`."""
        return self._inbox.granted(self._claim_id)
