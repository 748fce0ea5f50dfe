"""What goes on behind the shop: ``python -m flash_sale.worker saga|publisher|consumer``. Any number of each.

A worker may be killed at any line. `flash_sale.running` starts it again, and others go on meanwhile.
"""

from __future__ import annotations

import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine

import distlock
from distlock import BackendError, Lease, LockLost, Manager

from . import outbox, stock
from .clients import Services
from .saga import Saga
from .settings import Settings
from .tables import engine_of

__all__ = ("main",)

log = logging.getLogger("flash_sale.worker")

SCAN = 0.1
"""Seconds between two looks for steps that are due."""
THREADS = 16
ALARM = 1.0
"""Seconds after which an order is tried again that failed in a way that nobody has thought of."""


def drive_orders(engine: Engine, locks: Manager, settings: Settings) -> None:
    """All that is due, for ever. Reservations that have expired, too: no lock is needed for that."""
    saga = Saga(engine, locks, Services(settings), settings)
    driving = _Busy()
    with ThreadPoolExecutor(THREADS) as threads:
        while True:
            stock.expire(engine)
            found = saga.overdue()
            random.shuffle(found)  # else those that others are at for long, which come first, would take all places
            for order in found:
                if driving.begin(order):
                    threads.submit(_drive, saga, order).add_done_callback(partial(driving.end, order))
            time.sleep(SCAN)


class _Busy:
    """The orders that this process is at; it need not ask for their locks again."""

    def __init__(self) -> None:
        self._orders: set[str] = set()
        self._changing = threading.Lock()

    def begin(self, order: str) -> bool:
        with self._changing:
            new = order not in self._orders and len(self._orders) < THREADS
            if new:
                self._orders.add(order)
        return new

    def end(self, order: str, _: object) -> None:
        with self._changing:
            self._orders.discard(order)


def _drive(saga: Saga, order: str) -> None:
    try:
        saga.advance(order)
    except LockLost as error:  # so is a StaleToken: somebody else goes on
        log.warning("%s", error)
    except BackendError as error:  # the store of the locks is down: the step is overdue some time, and done then
        log.warning("order %s has to wait: %s", order, error)
    except Exception:
        log.exception("order %s", order)
        time.sleep(ALARM)


def elected(locks: Manager, name: str, ttl: float, work: Callable[[Lease], None]) -> None:
    """Does ``work`` while nobody else does: it waits in line for the lock, and lines up again if it is lost."""
    while True:
        try:
            with locks.lock(name, ttl=ttl, metadata={"job": name}) as lease:
                log.info("%s is this one now, with token %d", name, lease.token)
                work(lease)
        except (LockLost, BackendError, RedisError) as error:
            log.warning("%s: %s", name, error)
            time.sleep(SCAN)


def main(role: str) -> None:
    """One worker, until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # blocks are left, locks are given back
    settings = Settings.of()
    engine = engine_of(settings.database)
    redis = Redis.from_url(settings.redis, decode_responses=True, socket_timeout=settings.patience)
    with distlock.connect(settings.redis, namespace="flash") as locks:
        if role == "saga":
            drive_orders(engine, locks, settings)
        elif role == "publisher":
            elected(locks, role, settings.lease, partial(outbox.publish, engine, redis))
        elif role == "consumer":
            elected(locks, role, settings.lease, partial(outbox.consume, engine, redis))
        else:
            sys.exit(f"no such worker: {role}")


if __name__ == "__main__":
    main(sys.argv[1])
