"""What the checker must catch: the memory backend, broken in one place each, and the party by which a run takes it.

A plan names one as ``options={"backend": "Forgetful"}``; ``Sound`` is the correct one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import distlock
from distlock.backends.base import BackendError, Busy, Claim, Done, Grant, LeaseState, Renewal, now, proven_until
from distlock.backends.memory import MemoryBackend, _Lock
from distlock.testing.torture import Held, Plan
from distlock.testing.torture._party import Distlock

__all__ = ("Broken", "NoLock", "left_in")


class Broken(Distlock):
    """Locks of the backend in ``options["backend"]``. What it keeps at the end is written to ``options["left"]``."""

    def __init__(self, plan: Plan, colour: str) -> None:
        super().__init__(replace(plan, url="memory://", options={}), colour)
        self._backend: MemoryBackend = globals()[plan.options["backend"]]()
        self._left = plan.options.get("left")
        self._locks = distlock.connect(self._backend, op_timeout=plan.op_timeout or 5.0)

    async def close(self) -> None:
        await super().close()
        self._tell_what_is_left()

    def _tell_what_is_left(self) -> None:
        if self._left:
            with open(self._left, "a") as out:
                out.writelines(f"{key}\n" for key in self._backend._locks)


_numbers = itertools.count()


class NoLock(Broken):
    """Everyone has it at once, and nobody has a token."""

    async def acquire(self, key: str, timeout: float | None, *, renew: bool) -> Held | None:
        held = await super().acquire(f"{key} of {next(_numbers)}", timeout, renew=renew)
        return held and _Untold(held)


class _Untold:
    """A holding without its token."""

    token = None

    def __init__(self, held: Held) -> None:
        self._held = held
        self.sure, self.on_lost, self.release = held.sure, held.on_lost, held.release

    @property
    def until(self) -> float:
        return self._held.until


class Sound(MemoryBackend):
    """Nothing is wrong with it."""


class NoOwnerCheck(MemoryBackend):
    """Whoever gives up takes the lock from whoever holds it."""

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        with self._mutex:
            lock = self._locks.get(claim.key)
            if lock is not None:
                lock.queue.pop(claim.id, None)
                self._hand_over(lock)


class CountsFromReply(MemoryBackend):
    """Every second grant is answered late, and counts from then."""

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        outcome = super().acquire(claim, deadline)
        if not isinstance(outcome, Grant) or outcome.token % 2 == 0:
            return outcome
        time.sleep(0.8 * claim.ttl)
        return outcome._replace(deadline=proven_until(now(), claim.ttl))


class CountsTooMuch(MemoryBackend):
    """The holder believes to have it for three times as long."""

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        outcome = super().acquire(claim, deadline)
        return (
            outcome if not isinstance(outcome, Grant) else outcome._replace(deadline=outcome.deadline + 2 * claim.ttl)
        )


class ForgetsRenewals(MemoryBackend):
    """Says that a lock was renewed, and lets it expire."""

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        with self._mutex:
            return Renewal(LeaseState.HELD, proven_until(now(), ttl))


class ExpiresByTheGrant(MemoryBackend):
    """Ends a lock a ttl after it was given, however often it was renewed since."""

    def _expire(self, lock: _Lock) -> None:
        if lock.claims and now() >= min(lock.expires, lock.since + lock.claims[0].ttl):
            self._hand_over(lock)


class RepeatsTokens(MemoryBackend):
    """Two grants each have the same."""

    def after_fork(self) -> None:
        super().after_fork()
        self._tokens: Any = (n // 2 for n in itertools.count(2))


class FallingTokens(MemoryBackend):
    """Counts anew when a name has been idle, and lower."""

    def after_fork(self) -> None:
        super().after_fork()
        self._tokens: Any = itertools.count(1_000_000, -1)


class WakesLate(MemoryBackend):
    """Hands over at once, and says so 1.2 s later; meanwhile the lock is kept for whom it is for."""

    def _hand_over(self, lock: _Lock) -> None:
        wakes, self._wakes = self._wakes, {}
        try:
            super()._hand_over(lock)
        finally:
            self._wakes = wakes
        if lock.claims and (wake := wakes.get(lock.claims[0].id)):
            lock.expires = now() + 60
            threading.Timer(1.2, wake).start()


class NeverHandsOver(MemoryBackend):
    """A release forgets who waits, who have to ask again by themselves."""

    def _hand_over(self, lock: _Lock) -> None:
        lock.claims = []


class NeverWithdraws(MemoryBackend):
    """Who gave up waiting keeps its place, and is given the lock at its turn."""

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        pass


class NeverReleases(MemoryBackend):
    """A lock that was given is kept for a minute, whatever its holder says."""

    def release(self, grant: Grant, deadline: float) -> bool:
        with self._mutex:
            self._locks[grant.claim.key].expires = now() + 60
        return True


class Revives(MemoryBackend):
    """A renewal takes its time, and takes the lock even if it was given up meanwhile."""

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        asked_at = now()
        time.sleep(ttl / 3)
        with self._mutex:
            lock = self._locks.setdefault(grant.claim.key, _Lock())
            if not lock.held_by(grant.claim.id):
                lock.give(grant.claim, grant.token, 5 * ttl)
            lock.expires = max(lock.expires, asked_at + ttl)
            return Renewal(LeaseState.HELD, proven_until(asked_at, ttl))


class LastComeFirstServed(MemoryBackend):
    """The queue is a stack."""

    def _hand_over(self, lock: _Lock) -> None:
        if lock.queue:
            lock.queue.move_to_end(next(reversed(lock.queue)), last=False)
        super()._hand_over(lock)


class Forgetful(MemoryBackend):
    """Keeps a record of each name it has ever heard."""

    def _leave(self, lock: _Lock, claim: Claim) -> bool:
        try:
            return super()._leave(lock, claim)
        finally:
            self._locks.setdefault(claim.key, lock)


class Dawdles(MemoryBackend):
    """Says "busy" when two seconds are over."""

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        outcome = super().acquire(claim, deadline)
        if isinstance(outcome, Busy):
            time.sleep(2.0)
        return outcome


class Hangs(MemoryBackend):
    """The twentieth answer never comes."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: Iterator[int] = itertools.count(1)

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        if next(self._answers) == 20:
            threading.Event().wait()
        return super().acquire(claim, deadline)


class Fails(MemoryBackend):
    """Every tenth answer is an error."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: Iterator[int] = itertools.count(1)

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        if next(self._answers) % 10 == 0:
            raise BackendError("out of order", key=claim.key, backend=self.address)
        return super().acquire(claim, deadline)


def left_in(path: Path) -> Sequence[str]:
    """What all of them have kept."""
    return sorted(set(path.read_text().split("\n")) - {""}) if path.exists() else []
