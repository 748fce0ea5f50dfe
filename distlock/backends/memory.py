"""Locks of one process: for tests, for threads and tasks, and as the reference of what a backend does."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from .base import (
    PROVISIONAL,
    Busy,
    Claim,
    ConfigurationError,
    Done,
    Grant,
    Guarantees,
    Holder,
    Inspection,
    LeaseState,
    Renewal,
    Subscription,
    SyncBackend,
    Waiter,
    Wake,
    now,
    proven_until,
)

__all__ = ("MemoryBackend", "open_url")


@dataclass(slots=True)
class _Lock:
    """One name: who has it, until when, and who is next."""

    claims: list[Claim] = field(default_factory=list)  # more than one when an owner has re-entered
    token: int = 0
    since: float = 0.0
    expires: float = 0.0
    queue: OrderedDict[str, Claim] = field(default_factory=OrderedDict)

    def held_by(self, claim_id: str) -> bool:
        return any(claim.id == claim_id for claim in self.claims)

    def give(self, claim: Claim, token: int, ttl: float) -> None:
        t = now()
        self.claims, self.token, self.since, self.expires = [claim], token, t, t + ttl


class MemoryBackend(SyncBackend):
    """First come, first served; a lease that is not renewed ends after its ttl. Thread-safe."""

    never_blocks: ClassVar[bool] = True
    guarantees: Guarantees = Guarantees(
        backend="memory",
        scope="process",
        fenced=True,
        fair=True,
        dead_holder="ttl",
        owner_reentrant=True,
        extend=True,
    )

    def __init__(self, namespace: str = "default") -> None:
        self.address: str = f"memory://{namespace}"
        self._results: _Results | None = None
        self.after_fork()

    def results(self) -> SyncBackend:
        with self._mutex:  # those who share this one share that one
            self._results = self._results or _Results(self.address.partition("://")[2])
            return self._results

    def after_fork(self) -> None:
        self._mutex = threading.Lock()
        self._locks: dict[str, _Lock] = {}
        self._wakes: dict[str, Wake] = {}
        self._tokens = itertools.count(1)

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        with self._mutex:
            return self._acquire(claim)

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        claim = busy.claim
        with self._mutex:
            self._wakes[claim.id] = wake
            lock = self._locks.get(claim.key)
            if lock is None or lock.held_by(claim.id):
                wake()
        return _Watch(self._wakes, claim.id)

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        with self._mutex:
            lock = self._locks.get(claim.key)
            if lock is not None:
                lock.queue.pop(claim.id, None)
                self._leave(lock, claim)

    def release(self, grant: Grant, deadline: float) -> bool:
        with self._mutex:
            lock = self._locks.get(grant.claim.key)
            return lock is not None and self._leave(lock, grant.claim)

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        return [self.extend(grant, grant.claim.ttl, deadline) for grant in grants]

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        with self._mutex:
            asked_at = now()
            lock = self._locks.get(grant.claim.key)
            if lock is None or asked_at >= lock.expires or not lock.held_by(grant.claim.id):
                return Renewal(LeaseState.LOST)
            lock.expires = max(lock.expires, asked_at + ttl)
            return Renewal(LeaseState.HELD, proven_until(asked_at, ttl))

    def revoke(self, key: str, token: int, deadline: float) -> bool:
        with self._mutex:
            lock = self._locks.get(key)
            return lock is not None and lock.token == token and self._end(key, lock)

    def inspect(self, key: str, deadline: float) -> Inspection:
        with self._mutex:
            lock = self._locks.get(key)
            if lock is None:
                return Inspection(key, None)
            waiters = tuple(Waiter.read(claim.owner or claim.id, claim.about) for claim in lock.queue.values())
            return Inspection(key, self._holder(lock), waiters)

    def list(self, prefix: str, deadline: float) -> Iterator[Inspection]:
        with self._mutex:
            for key, lock in [*self._locks.items()]:
                self._expire(lock)
                if not lock.claims and not lock.queue:
                    del self._locks[key]
            keys = [key for key in self._locks if key.startswith(prefix)]
        return (self.inspect(key, deadline) for key in keys)

    def close(self) -> None:
        pass

    # Below, the mutex is held.

    def _acquire(self, claim: Claim) -> Grant | Busy:
        asked_at = now()
        lock = self._locks.setdefault(claim.key, _Lock())
        self._expire(lock)
        if not lock.claims and not lock.queue:
            lock.give(claim, next(self._tokens), claim.ttl)
        elif self._may_re_enter(lock, claim):
            lock.claims.append(claim)
        elif not lock.held_by(claim.id):
            if claim.wait:
                lock.queue.setdefault(claim.id, claim)
            return Busy(claim, self._holder(lock), max(0.0, lock.expires - asked_at))
        lock.expires = max(lock.expires, asked_at + claim.ttl)
        return Grant(claim, lock.token, proven_until(asked_at, claim.ttl))

    def _expire(self, lock: _Lock) -> None:
        if lock.claims and now() >= lock.expires:
            self._hand_over(lock)

    def _leave(self, lock: _Lock, claim: Claim) -> bool:
        """The claim is no holder any more. False: it was none."""
        ours = lock.held_by(claim.id) and now() < lock.expires
        if ours:
            lock.claims = [other for other in lock.claims if other.id != claim.id]
        if not lock.claims or now() >= lock.expires:
            self._hand_over(lock)
        if not lock.claims:
            self._locks.pop(claim.key, None)
        return ours

    def _end(self, key: str, lock: _Lock) -> bool:
        """Nobody who holds it does any more. False: nobody did."""
        ours = bool(lock.claims) and now() < lock.expires
        self._hand_over(lock)
        if not lock.claims:
            self._locks.pop(key, None)
        return ours

    def _hand_over(self, lock: _Lock) -> None:
        lock.claims = []
        if lock.queue:
            _, claim = lock.queue.popitem(last=False)
            lock.give(claim, next(self._tokens), min(PROVISIONAL, claim.ttl))
            # The next one too: it has to learn that this one may be stopped and let its chance lapse.
            for claim_id in [claim.id, *itertools.islice(lock.queue, 1)]:
                if wake := self._wakes.get(claim_id):
                    wake()

    @staticmethod
    def _may_re_enter(lock: _Lock, claim: Claim) -> bool:
        if not claim.reentrant or not lock.claims or lock.held_by(claim.id):
            return False
        return lock.claims[0].reentrant and lock.claims[0].owner == claim.owner

    @staticmethod
    def _holder(lock: _Lock) -> Holder | None:
        t = now()
        if not lock.claims or t >= lock.expires:
            return None
        claim = lock.claims[0]
        return Holder.found(
            claim.owner or claim.id,
            claim.about,
            token=lock.token,
            held_for=t - lock.since,
            ttl=lock.expires - t,
        )


@dataclass(slots=True)
class _Record:
    claim_id: str
    text: bytes
    expires: float


class _Results(MemoryBackend):
    """Locks whose work can be completed."""

    def after_fork(self) -> None:
        super().after_fork()
        self._records: dict[str, _Record] = {}
        self._ends: list[tuple[float, str]] = []
        """A heap: when to look whether a record is over."""

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        with self._mutex:
            record = self._record(claim.key)
            if record is not None:
                return Done(claim, record.text, record.expires - now())
            return self._acquire(claim)

    def complete(self, grant: Grant, record: bytes, keep: float, deadline: float) -> bool:
        claim = grant.claim
        with self._mutex:
            kept = self._record(claim.key)
            if kept is not None:
                return kept.claim_id == claim.id
            lock = self._locks.get(claim.key)
            if lock is None or not lock.held_by(claim.id) or now() >= lock.expires:
                return False
            self._keep(claim.key, _Record(claim.id, record, now() + keep))
            del self._locks[claim.key]
            for waiter in lock.queue:
                if wake := self._wakes.get(waiter):
                    wake()
            return True

    def recorded(self, key: str, deadline: float) -> tuple[bytes, float | None] | None:
        with self._mutex:
            record = self._record(key)
            return None if record is None else (record.text, record.expires - now())

    def forget(self, key: str, deadline: float) -> bool:
        with self._mutex:
            return self._record(key) is not None and self._records.pop(key, None) is not None

    def records(self, prefix: str, deadline: float) -> Iterator[str]:
        with self._mutex:
            return iter([key for key in [*self._records] if self._record(key) and key.startswith(prefix)])

    def _keep(self, key: str, record: _Record) -> None:
        self._records[key] = record
        heapq.heappush(self._ends, (record.expires, key))
        while self._ends and self._ends[0][0] <= now():
            self._record(heapq.heappop(self._ends)[1])

    def _record(self, key: str) -> _Record | None:
        record = self._records.get(key)
        if record is not None and now() >= record.expires:
            del self._records[key]
            return None
        return record


@dataclass(slots=True)
class _Watch:
    wakes: dict[str, Wake]
    claim_id: str

    def close(self) -> None:
        self.wakes.pop(self.claim_id, None)


_shared: dict[str, MemoryBackend] = {}


def open_url(url: str, *, namespace: str, op_timeout: float) -> MemoryBackend:
    """``memory://`` is a store of its own; ``memory://name`` is shared under its name in this process."""
    name = url.partition("://")[2]
    if "/" in name or "?" in name or "@" in name:
        raise ConfigurationError("a memory:// URL is a name and nothing else: memory:// or memory://name")
    if not name:
        return MemoryBackend(namespace)
    return _shared.setdefault(f"{name}/{namespace}", MemoryBackend(f"{name}/{namespace}"))
