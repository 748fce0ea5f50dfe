"""One worker of the demo, a process of its own: it sells until the stock is gone.

Its stdin gives the order (a line of JSON), then the moment to start (a line), then nothing; the end of stdin means
stop, also when it ends because the demo was killed. Its stdout says ``ready``, and in the end what went wrong, if
anything did. The order is not on the command line: a URL may hold a password, and everyone sees command lines.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from distlock import DistLockError, connect

__all__ = ("READY", "Sale", "Shop", "main")

READY = "ready"
THINK = 0.002
"""Seconds between looking at the stock and taking from it: a slow database, a payment."""
RUSH = 0.5
"""Seconds after the start within which the first customers wait until all have looked at the stock. Else a machine
that is busy enough may run one worker after the other, and nothing would be oversold, by luck."""
NEXT_CUSTOMER = 0.0005
"""Seconds between two sales of a worker."""
TTL = 10.0

stopped = threading.Event()


class Sale(NamedTuple):
    """A line of the ledger."""

    worker: int
    token: int
    at: float
    """On the monotonic clock, which all processes of a machine share."""


class Shop:
    """The stock and the ledger, each a plain file. Selling is check-then-act: nothing here excludes anyone."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._stock = folder / "stock"
        self._ledger = folder / "ledger"
        self._looked = folder / "looked"
        self._workers = workers
        self._first = True

    def open(self, stock: int) -> None:
        """Fills the shelves."""
        self._stock.write_bytes(b"%12d" % stock)
        self._ledger.touch()
        self._looked.touch()

    def sell(self, worker: int, token: int, rush_ends: float) -> bool:
        """False: nothing left."""
        left = int(self._stock.read_bytes())
        if left <= 0:
            return False
        self._think(rush_ends)
        with open(self._stock, "r+b", buffering=0) as file:  # not truncated, so never seen empty
            file.write(b"%12d" % (left - 1))
        with open(self._ledger, "ab", buffering=0) as file:
            file.write(b"%d %d %.6f\n" % (worker, token, time.monotonic()))
        return True

    def _think(self, rush_ends: float) -> None:
        if self._first:
            self._first = False
            with open(self._looked, "ab", buffering=0) as file:
                file.write(b".")
        time.sleep(THINK)
        # Under a lock nobody else can look: the very first customer waits in vain, and all others not at all.
        while time.monotonic() < rush_ends and self._looked.stat().st_size < self._workers and not stopped.is_set():
            time.sleep(THINK)

    def sold(self) -> int:
        """How many so far."""
        return self._ledger.read_bytes().count(b"\n")

    def sales(self) -> list[Sale]:
        """As they were written, in that order."""
        lines = (line.split() for line in self._ledger.read_text().splitlines())
        return [Sale(int(worker), int(token), float(at)) for worker, token, at in lines]


def main() -> int:
    """Sells. The exit status is 1 if anything went wrong."""
    order = json.loads(sys.stdin.readline() or "null")
    if order is None:  # Ctrl-C came first
        return 0
    try:
        with _seller(order) as sell:
            _say(READY)
            start = sys.stdin.readline()
            if start:  # else the demo has ended already
                threading.Thread(target=_listen, daemon=True).start()
                time.sleep(max(0.0, float(start) - time.monotonic()))
                while not stopped.is_set() and sell(float(start) + RUSH):
                    time.sleep(NEXT_CUSTOMER)
    except Exception as error:  # noqa: BLE001 - the demo says what it was
        shown = str(error) if isinstance(error, DistLockError) else f"{type(error).__name__}: {error}"
        _say(json.dumps({"error": shown, "traceback": traceback.format_exc()}))
        return 1
    return 0


@contextmanager
def _seller(order: dict[str, str]) -> Iterator[Callable[[float], bool]]:
    """One sale, under the lock if the order names a store."""
    shop, worker = Shop(Path(order["folder"]), int(order["workers"])), int(order["worker"])
    if not order["url"]:
        yield lambda rush_ends: shop.sell(worker, 0, rush_ends)
        return
    with connect(order["url"]) as locks:
        locks.inspect(order["key"])  # connected before the start
        lock = locks.lock(order["key"], ttl=TTL)

        def sell(rush_ends: float) -> bool:
            with lock as lease:
                return not stopped.is_set() and shop.sell(worker, lease.token, rush_ends)

        yield sell


def _listen() -> None:
    os.read(0, 1)  # not sys.stdin: Python needs that one's lock to end
    stopped.set()


def _say(line: str) -> None:
    print(line, flush=True)
