"""One process of the demo: sells items one by one until the stock says that there are none."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import distlock

THINKING = 0.002
"""Seconds between looking and selling: what makes a race of it."""


def main() -> int:
    """Speaks lines with the demo: a task in, "ready" out, "go" in, then "sold" for each item, or an error."""
    try:
        task = json.loads(sys.stdin.readline())
        with ExitStack() as stack:
            lock: distlock.Lock | None = None
            if task["url"] is not None:
                lock = stack.enter_context(distlock.connect(task["url"])).lock(task["key"], ttl=10)
            _say("ready")
            if not sys.stdin.readline():
                return 1
            while _sell(task, lock if lock is not None else nullcontext()):
                _say("sold")
                time.sleep(0)  # the next customer
    except distlock.DistLockError as error:
        _say(str(error))
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(1)
    return 0


def _sell(task: dict[str, Any], lock: AbstractContextManager[Any]) -> bool:
    with lock as lease:
        with open(task["stock"]) as file:
            left = int(file.read())
        if left <= 0:
            return False
        time.sleep(THINKING)
        with open(task["stock"], "r+") as file:  # never empty for a moment: without a lock, others read meanwhile
            file.write(f"{left - 1:08d}")
        with open(task["ledger"], "a") as file:
            file.write(f"{task['number']} {lease.token if lease is not None else 0}\n")
        return True


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())


@contextmanager
def _seller(order: dict[str, str]) -> Iterator[Callable[[], bool]]:
    """One sale, with the lock if the order names one."""
    shop, worker = Shop(Path(order["folder"])), int(order["worker"])
    if not order["url"]:
        yield lambda: shop.sell(worker, 0)
        return
    with connect(order["url"]) as locks:
        locks.inspect(order["key"])  # connected before the start
        lock = locks.lock(order["key"], ttl=TTL)

        def sell() -> bool:
            with lock as lease:
                return not stopped.is_set() and shop.sell(worker, lease.token)

        yield sell


def _sell_out(sell: Callable[[], bool]) -> None:
    threading.Thread(target=_listen, daemon=True).start()
    while not stopped.is_set() and sell():
        time.sleep(NEXT_CUSTOMER)


def _listen() -> None:
    os.read(0, 1)  # not sys.stdin: its lock must be free when the process ends
    stopped.set()


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
