"""A process that drives one peer's locks as it is told: ``python -m benchmarks.peers._worker ADAPTER PLACE``.

Orders come in and replies go out as lines of JSON: ``{"do": "pairs", "key": "k", "count": 10}``, ``{"done": 0.0012}``
or ``{"failed": "LockError: …"}``. The first reply tells of the environment. Times are of the monotonic clock, which is
the same in all processes.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ._peer import absent


class Threads:
    """Orders carried out by threads; each has a lock object of its own, over one client."""

    def __init__(self, adapter: Any, client: Any) -> None:
        self._adapter, self._client = adapter, client
        self._locks: dict[tuple[str, int], tuple[Any, Any]] = {}

    def pairs(self, key: str, count: int) -> float:
        """Seconds for taking it and giving it back so many times."""
        take, give = self._lock(key)
        start = time.perf_counter()
        for _ in range(count):
            take()
            give()
        return time.perf_counter() - start

    def take(self, key: str) -> list[int]:
        """When it was asked for, and when it was there; ns."""
        take, _ = self._lock(key)
        asked = time.monotonic_ns()
        take()
        return [asked, time.monotonic_ns()]

    def give(self, key: str) -> int:
        """The moment before; ns."""
        _, give = self._lock(key)
        before = time.monotonic_ns()
        give()
        return before

    def fight(self, key: str, size: int, **window: float) -> list[int]:
        """How often each of ``size`` threads got it in the window, all asking again at once."""
        locks = [self._lock(key, number) for number in range(size)]
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(lambda lock: self._fight(*lock, **window), locks))

    @staticmethod
    def _fight(take: Any, give: Any, opens: float, counts_from: float, ends: float) -> int:
        count = 0
        time.sleep(max(0.0, opens - time.monotonic()))
        while time.monotonic() < ends:
            take()
            count += counts_from <= time.monotonic() < ends
            give()
        return count

    def wait(self, key: str, size: int) -> None:
        """Has ``size`` threads wait for what another process holds, until this process is killed."""
        for number in range(size):
            threading.Thread(target=self._lock(key, number)[0], daemon=True).start()

    def _lock(self, key: str, number: int = 0) -> tuple[Any, Any]:
        if (key, number) not in self._locks:
            self._locks[key, number] = self._adapter.lock(self._client, key)
        return self._locks[key, number]


class Tasks(Threads):
    """The same, by the tasks of an event loop that runs all the time."""

    async def pairs(self, key: str, count: int) -> float:  # type: ignore[override]
        take, give = self._lock(key)
        start = time.perf_counter()
        for _ in range(count):
            await take()
            await give()
        return time.perf_counter() - start

    async def take(self, key: str) -> list[int]:  # type: ignore[override]
        take, _ = self._lock(key)
        asked = time.monotonic_ns()
        await take()
        return [asked, time.monotonic_ns()]

    async def give(self, key: str) -> int:  # type: ignore[override]
        _, give = self._lock(key)
        before = time.monotonic_ns()
        await give()
        return before

    async def fight(self, key: str, size: int, **window: float) -> list[int]:  # type: ignore[override]
        locks = [self._lock(key, number) for number in range(size)]
        return list(await asyncio.gather(*(self._fight(*lock, **window) for lock in locks)))

    @staticmethod
    async def _fight(take: Any, give: Any, opens: float, counts_from: float, ends: float) -> int:  # type: ignore[override]
        count = 0
        await asyncio.sleep(max(0.0, opens - time.monotonic()))
        while time.monotonic() < ends:
            await take()
            count += counts_from <= time.monotonic() < ends
            await give()
        return count

    async def wait(self, key: str, size: int) -> None:  # type: ignore[override]
        self._waiting = [asyncio.ensure_future(self._lock(key, number)[0]()) for number in range(size)]


def main() -> None:
    """Until the orders end."""
    # What a peer prints must not come between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def reply(**words: Any) -> None:
        replies.write(json.dumps(words) + "\n")

    name, place = sys.argv[1:]
    try:
        adapter = importlib.import_module(f"benchmarks.peers.{name}")
        if adapter.PEER.colour == "asyncio":
            asyncio.run(_serve_tasks(adapter, place, reply))
        else:
            _serve(adapter, place, reply)
    except Exception as error:  # noqa: BLE001  # whatever a peer raises, the driver is to be told
        reply(failed=_told(error))
    os._exit(0)  # not held up by what a peer leaves behind


def _serve(adapter: Any, place: str, reply: Callable[..., None]) -> None:
    threads = Threads(adapter, adapter.connect(place))
    reply(done=_about(adapter))
    for line in sys.stdin:
        do, words = _order(line)
        try:
            reply(done=getattr(threads, do)(**words))
        except Exception as error:  # noqa: BLE001  # as above
            reply(failed=_told(error))


async def _serve_tasks(adapter: Any, place: str, reply: Callable[..., None]) -> None:
    tasks = Tasks(adapter, await adapter.connect(place))
    reply(done=_about(adapter))
    loop = asyncio.get_running_loop()
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        do, words = _order(line)
        try:
            reply(done=await getattr(tasks, do)(**words))
        except Exception as error:  # noqa: BLE001  # as above
            reply(failed=_told(error))


def _order(line: str) -> tuple[str, dict[str, Any]]:
    words = json.loads(line)
    return words.pop("do"), words


def _about(adapter: Any) -> dict[str, Any]:
    return {"python": platform.python_version(), "absent": absent(adapter.PEER)}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
