"""The stores that are measured: whether they may be, how fast they could be, and that nothing is left in them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from .. import AcquireTimeout, BackendUnavailable, DistLockError, Guarantees, Unsupported, connect
from .._open import without_secrets
from ._measure import Unknown
from ._plan import KILLED, PREFIX, Plan
from ._servers import NoServer, Server, Usage, server_of, watched
from ._sql import RowLock, SqlServer, is_sql
from ._ways import Distlock, Tiered, Way

__all__ = ("KeysInUse", "Store", "check_free", "opened")

LEASES = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)
"""Seconds that are tried, where the wanted ttl is too short for the store."""
FLOOR_SECONDS = 0.03
WARM = 10
CLEANING = 10.0
"""Seconds, beyond the ttl, for what is left to go."""
LEASE = 30.0
"""Seconds of the locks of those that are not killed."""


class KeysInUse(DistLockError):
    """There are locks of the names that a run would use."""


@dataclass
class Store:
    """One that is measured; all that is asked of it without distlock is asked by one thread."""

    name: str
    address: str
    url: str = field(repr=False)
    plan: Plan = field(repr=False)
    server: Server = field(repr=False)
    guarantees: Guarantees | None
    """None: a database."""
    ttl: float
    """The least that it allows, of those that were asked for."""
    tiered: bool = False
    """A local lock stands in front of it."""
    complete: Any = field(default=lambda told: told, repr=False)
    trouble: DistLockError | None = None
    """Why it is not asked any more."""

    @property
    def is_shared(self) -> bool:
        """Processes can share it."""
        return self.guarantees is None or self.guarantees.scope != "process"

    def way(self, ttl: float = LEASE, *, renew: bool = True) -> Way:
        """Of its contenders."""
        if self.guarantees is None:
            return RowLock(self.url, _table(self.plan), self.address)
        way = Distlock(self.url, self.plan.namespace, ttl, renew)
        return Tiered(way) if self.tiered else way

    def floor(self) -> float | None:
        """Seconds of the least that a lock on its server costs, now: the median of some."""
        if not self.server.floor:
            return None
        with self.mapped():
            self.server.run(WARM)
            until, times = time.perf_counter() + FLOOR_SECONDS, [self._timed()]
            while time.perf_counter() < until:
                times.append(self._timed())
        return median(times)

    def _timed(self) -> float:
        began = time.perf_counter()
        self.server.run(1)
        return time.perf_counter() - began

    def requests(self) -> float | Unknown:
        """That its server has received so far."""
        with self.mapped():
            return self.server.requests()

    def usage(self) -> Usage:
        """Of its server, as of now."""
        with self.mapped():
            told: Usage = self.complete(self.server.usage())
            return told

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Errors of drivers."""
        try:
            yield
        except DistLockError:
            raise
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise BackendUnavailable(f"{what} [{self.address}]", backend=self.address) from error

    def clean(self) -> None:
        """Ends what is left of this run. Raises if the store cannot be asked, or keeps some."""
        try:
            if self.guarantees is not None and self.is_shared:
                self._end_locks()
        finally:
            with self.mapped():
                self.server.close()

    def _end_locks(self) -> None:
        until = time.monotonic() + self.ttl + CLEANING
        with connect(self.url, namespace=self.plan.namespace) as locks:
            if "recovery" in self.plan.workloads:  # a file whose holder died is nobody's, and not listed
                with suppress(AcquireTimeout):
                    locks.lock(f"{self.plan.prefix}{KILLED}", ttl=self.ttl, timeout=self.ttl).acquire().release()
            while left := list(locks.list(self.plan.prefix)):
                if time.monotonic() > until:
                    names = ", ".join(found.key for found in left)
                    raise DistLockError(f"left behind: {names} [{self.address}]", backend=self.address)
                for found in left:
                    if found.holder is not None and found.holder.token is not None:
                        locks.force_release(found.key, token=found.holder.token)
                    with suppress(AcquireTimeout):  # whoever was killed while waiting is passed over
                        locks.lock(found.key, ttl=self.ttl, timeout=1.0).acquire().release()


def _table(plan: Plan) -> str:
    return f"distlock_bench_{plan.run}"


def check_free(plan: Plan, url: str) -> None:
    """Raises `KeysInUse` if there are names that are another run's, or what a killed one has left."""
    if is_sql(url):
        return
    with connect(url, namespace=plan.namespace) as locks:
        names = sorted(found.key for found in locks.list(PREFIX))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise KeysInUse(
                f"there are locks named {PREFIX}…, of another run or a killed one: {', '.join(names[:3])}{more}"
                f" [{locks.address}]",
                key=names[0],
                backend=locks.address,
            )


def opened(plan: Plan, number: int, url: str) -> Store:
    """The store of the URL with this number. Leaves nothing if it raises."""
    complete = watched(plan.pids[number]) if number in plan.pids else lambda told: told
    if is_sql(url):
        sql = SqlServer(url, _table(plan))
        name = f"row lock, {url.partition('://')[0].partition('+')[0]}"
        return Store(name, sql.address, url, plan, sql, None, plan.ttl, complete=complete)
    with connect(url, namespace=plan.namespace) as locks:
        ttl = _least_ttl(locks, plan)
        store = Store(
            locks.guarantees.backend, locks.address, url, plan, NoServer(), locks.guarantees, ttl, complete=complete
        )
    if store.name == "redlock":
        store = replace(store, name=f"redlock of {without_secrets(url).count(',') + 1}")
    with store.mapped():
        return replace(store, server=server_of(url, store.address, plan.run))


def _least_ttl(locks: Any, plan: Plan) -> float:
    refused: Unsupported | None = None
    for ttl in (plan.ttl, *(each for each in LEASES if each > plan.ttl)):
        try:
            locks.lock(f"{plan.prefix}ttl", ttl=ttl, timeout=CLEANING).acquire().release()
        except Unsupported as error:
            refused = error
        else:
            return ttl
    assert refused is not None
    raise refused
