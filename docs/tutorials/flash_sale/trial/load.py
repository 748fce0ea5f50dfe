"""A sale, with a crowd and with everything going wrong at once; then the audit."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from redis import Redis, RedisError
from sqlalchemy import Engine, func, select

from ..outbox import STREAM
from ..running.console import run
from ..running.system import System
from ..settings import Settings
from ..tables import orders, outbox, position, reading, reservations
from . import faults
from .audit import Finding, audit, read, reader
from .crowd import Crowd, crowd_of
from .without import ENDLESS

__all__ = ("ALL_FAULTS", "Report", "sale")

OUTSIDE = {"redis-restarts": 0.4, "kills": 0.2}
"""Faults from outside, with the part of the stock that has orders then."""
ALL_FAULTS = (*faults.FAULTS, *OUTSIDE)
HASTE: dict[str, Any] = {
    "reservation": 10.0,  # a busy machine takes some from there to the checkout
    "lease": 2.0,
    "overdue": 1.0,
    "slow": 2.5,
    "patience": 8.0,
    "longest": 1.0,
    "outages": 3,
}
"""Settings by which a sale ends soon."""
STUCK = 120.0
"""Seconds without a change, after which nothing will change: a busy machine takes some to start a process again."""
STUCK_WITHOUT = 30.0
"""The same without one of `ENDLESS`: more often than not there is no end."""
GLANCE = 0.2
"""Seconds between two looks at what has happened."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Report:
    """What came of a sale."""

    findings: Sequence[Finding]
    happened: Sequence[str]
    """The faults."""
    purchases: int
    seconds: float
    """From the first click until nothing changed any more."""

    @property
    def breaches(self) -> list[Finding]:
        """What does not hold."""
        return [finding for finding in self.findings if finding.breaches]


def sale(
    *,
    clients: int = 500,
    stock: int = 100,
    rush: float = 5.0,
    without: str = "",
    faults: Sequence[str] = ALL_FAULTS,
    database: str = "",
    redis: str = "",
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """One sale. ``database``: a new one, or SQLite. ``redis``: a server, which does not restart, or one of its own."""
    faults = [each for each in faults if not (redis and each == "redis-restarts")]
    with tempfile.TemporaryDirectory(prefix="flash-sale-") as folder:
        settings = Settings(database=database, redis=redis, services="", folder=folder, stock=stock, without=without)
        settings = replace(settings, **HASTE, faults=",".join(each for each in faults if each in FROM_INSIDE))
        with System(settings, tell=tell) as system:
            return run(_Sale(system, clients, rush, set(faults), tell).run)


FROM_INSIDE = frozenset(faults.FAULTS)


class _Sale:
    def __init__(
        self, system: System, clients: int, rush: float, faults: set[str], tell: Callable[[str], None]
    ) -> None:
        self._system = system
        self._settings = system.settings
        self._faults = faults
        self._tell = tell
        self._engine: Engine
        self._crowd = Crowd(system.url, crowd_of(clients, rush, system.settings.limit))
        self._done: list[str] = []

    async def run(self) -> Report:
        begun = time.monotonic()
        with reader(self._settings.database) as self._engine:
            async with anyio.create_task_group() as tasks:
                for fault, happen in (("redis-restarts", self._restart_redis), ("kills", self._kill)):
                    if fault in self._faults:
                        tasks.start_soon(self._in_time, fault, happen)
                tasks.start_soon(self._resume)
                await self._crowd.buy()
                self._tell(f"the crowd has gone, with {self._crowd.bought} orders")
                await self._settle()
                tasks.cancel_scope.cancel()
        seconds = time.monotonic() - begun
        books = read(self._settings, self._crowd.purchases)
        happened = [fault for fault in faults.FAULTS if self._has_happened(fault)]
        return Report(audit(books), [*happened, *self._done], self._crowd.bought, seconds)

    # Faults from outside

    async def _in_time(self, fault: str, happen: Callable[[], Awaitable[None]]) -> None:
        await _until(partial(self._is_due, fault))
        await happen()
        self._done.append(fault)

    def _is_due(self, fault: str) -> bool:
        return self._crowd.bought >= OUTSIDE[fault] * self._settings.stock / self._settings.limit

    async def _restart_redis(self) -> None:
        self._tell("Redis is killed, and starts again")
        await anyio.to_thread.run_sync(self._system.restart_redis)

    async def _kill(self) -> None:
        """Whatever they are at."""
        for role in ("shop", "saga", "consumer"):
            self._system.kill(await _until(partial(self._victim, role)))

    def _victim(self, role: str) -> int | None:
        """None: they have all just died of other faults, and start again."""
        stopped, _ = faults.happened(self._settings.folder, "saga-pauses") or (0, "")
        return next((pid for pid in self._system.pids(role) if pid != stopped), None)  # that one is to come back late

    async def _resume(self) -> None:
        """Whoever was stopped goes on, when somebody else has finished its work."""
        await _until(lambda: self._has_happened("saga-pauses"))
        pid, order = faults.happened(self._settings.folder, "saga-pauses") or (0, "")
        ended = select(orders.c.id).where(orders.c.id == order, orders.c.state.in_(("completed", "compensated")))
        await _until(lambda: self._ask(ended))
        self._tell("the saga's worker that was stopped goes on")
        self._system.kill(pid, signal.SIGCONT)

    def _has_happened(self, fault: str) -> bool:
        return faults.happened(self._settings.folder, fault) is not None

    # The end

    async def _settle(self) -> None:
        """Until all is done; or until nothing has changed for so long that nothing will."""
        longest = STUCK_WITHOUT if self._settings.without in ENDLESS else STUCK
        before, since = None, time.monotonic()
        while time.monotonic() < since + longest:
            now = await anyio.to_thread.run_sync(self._progress)
            if now != before:
                before, since = now, time.monotonic()
            elif now[1] and time.monotonic() > since + 2 * self._settings.overdue:
                return
            await anyio.sleep(GLANCE)

    def _progress(self) -> tuple[Any, bool]:
        """What there is so far, and whether all is done."""
        states = select(orders.c.state, func.count()).group_by(orders.c.state)
        held = select(func.count()).select_from(reservations).where(reservations.c.state == "held")
        published = select(func.count(outbox.c.published_at), func.count())
        with reading(self._engine) as connection:
            found = [tuple(row) for row in connection.execute(states.order_by(orders.c.state))]
            waiting = connection.scalars(held).one()
            sent, written = connection.execute(published).one()
            heard = connection.scalars(select(position.c.entry)).one()
        open_orders = {state for state, _ in found} & {"placed", "compensating"}
        faulty = self._is_in_a_fault()
        ended = not (open_orders or waiting or faulty) and sent == written and heard == self._last_sent()
        return (found, waiting, sent, written, heard, faulty), ended

    def _last_sent(self) -> str:
        """Where the consumer is when it has had all, those that were sent twice too."""
        with suppress(RedisError), Redis.from_url(self._settings.redis, decode_responses=True) as redis:
            last: Any = redis.xrevrange(STREAM, count=1)
            return str(last[0][0]) if last else "0-0"
        return "it is down"

    def _is_in_a_fault(self) -> bool:
        """Whether one has begun that is not over: a kill, or the worker that was stopped is to come back."""
        stopped, _ = faults.happened(self._settings.folder, "saga-pauses") or (0, "")
        late = stopped in self._system.pids("saga") and not faults.is_over(self._settings.folder, "saga-pauses")
        return late or any(self._is_due(each) for each in self._faults & {*OUTSIDE} - {*self._done})

    def _ask(self, question: Any) -> Any:
        with reading(self._engine) as connection:
            return connection.execute(question).first()


async def _until(happened: Callable[[], ResultT | None]) -> ResultT:
    """What it says when it is true. Who does it is another process, and cannot call us."""
    while not (result := await anyio.to_thread.run_sync(happened)):  # noqa: ASYNC110
        await anyio.sleep(GLANCE)
    return result
