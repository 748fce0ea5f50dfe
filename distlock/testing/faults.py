"""A store under test, and the ways to hurt it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from .. import BackendUnavailable, Guarantees, Inspection, Manager, connect
from ..backends.base import Busy, Claim, Done, Grant, Renewal, Subscription, SyncBackend, Wake

__all__ = ("Store", "Tap", "redis_store")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Store:
    """One store; each call of ``connect`` is one more client of it."""

    connect: Callable[..., Manager]
    """`distlock.connect` with the target filled in; it is given a ``namespace`` at times."""
    lose: Callable[[str], object]
    """Makes the lease of a key vanish behind its holder's back."""
    url: str | None = None
    """For other processes; None where there are none."""
    left: Callable[[], object] = field(default=lambda: ())
    """What the store has kept of locks that are free; nothing, if all is well."""


def redis_store(url: str) -> Store:
    """A Redis server."""
    import redis

    def keys() -> list[bytes]:
        with redis.Redis.from_url(url) as client:
            return [key for key in client.scan_iter("distlock:{*") if isinstance(key, bytes)]

    def lose(key: str) -> None:
        with redis.Redis.from_url(url) as client:
            client.delete(f"distlock:{{default:{key}}}")

    return Store(connect=partial(connect, url), lose=lose, url=url, left=keys)


class Tap(SyncBackend):
    """A backend whose requests and replies pass through the hands of the test.

    ``before[method]`` is called before a request goes out, ``after[method]`` when its reply has come and nobody
    has seen it yet. Either may raise, as `cut` and `once` make them do.
    """

    def __init__(self, backend: SyncBackend) -> None:
        self.backend: SyncBackend = backend
        self.guarantees: Guarantees = backend.guarantees
        self.address: str = backend.address
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}
        self.calls: Counter[str] = Counter()
        self.wakes: list[Wake] = []
        """Of every watch that was set up."""

    def cut(self) -> None:
        """The line is cut: whether the request has arrived, nobody knows."""
        raise BackendUnavailable(f"the line is cut [{self.address}]", backend=self.address, sent=True)

    def down(self) -> None:
        """The store cannot be reached: it has surely not heard the request."""
        raise BackendUnavailable(f"nobody listens [{self.address}]", backend=self.address)

    @staticmethod
    def once(fault: Callable[[], object], times: int = 1) -> Callable[[], object]:
        """``fault``, and from then on nothing."""
        left = iter(range(times))
        return lambda: fault() if next(left, None) is not None else None

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        return self._pass("acquire", lambda: self.backend.acquire(claim, deadline))

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        def watch() -> Subscription:
            self.wakes.append(wake)
            return self.backend.watch(busy, wake, deadline)

        return self._pass("watch", watch)

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        self._pass("withdraw", lambda: self.backend.withdraw(claim, deadline, in_flight=in_flight))

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        return self._pass("renew", lambda: self.backend.renew(grants, deadline))

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        return self._pass("extend", lambda: self.backend.extend(grant, ttl, deadline))

    def release(self, grant: Grant, deadline: float) -> bool:
        return self._pass("release", lambda: self.backend.release(grant, deadline))

    def revoke(self, key: str, token: int, deadline: float) -> bool:
        return self._pass("revoke", lambda: self.backend.revoke(key, token, deadline))

    def inspect(self, key: str, deadline: float) -> Inspection:
        return self.backend.inspect(key, deadline)

    def list(self, prefix: str, deadline: float) -> Iterator[Inspection]:
        return self.backend.list(prefix, deadline)

    def results(self) -> SyncBackend:
        return Tap(self.backend.results())

    def complete(self, grant: Grant, record: bytes, keep: float, deadline: float) -> bool:
        return self._pass("complete", lambda: self.backend.complete(grant, record, keep, deadline))

    def recorded(self, key: str, deadline: float) -> tuple[bytes, float | None] | None:
        return self.backend.recorded(key, deadline)

    def forget(self, key: str, deadline: float) -> bool:
        return self._pass("forget", lambda: self.backend.forget(key, deadline))

    def records(self, prefix: str, deadline: float) -> Iterator[str]:
        return self.backend.records(prefix, deadline)

    def close(self) -> None:
        self.backend.close()

    def after_fork(self) -> None:
        self.backend.after_fork()

    def _pass(self, method: str, call: Callable[[], T]) -> T:
        self.calls[method] += 1
        self.before.get(method, _nothing)()
        reply = call()
        self.after.get(method, _nothing)()
        return reply


def _nothing() -> None:
    pass
