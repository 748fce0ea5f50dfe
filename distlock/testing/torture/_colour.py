"""Actors in sync code, asyncio and trio, by one set of coroutines: those of threads never suspend."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import anyio

from ..._core.actor import poster
from ..._core.drive import drive

__all__ = ("Colour",)

T = TypeVar("T")


class Colour:
    """How the actors of a process run. Made once for each run of its event loop."""

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.is_async: bool = name != "sync"
        self._post: Callable[[Callable[[], object]], object] | None = None

    def run(self, body: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """``body`` to its end, in an event loop of its own unless actors are threads."""
        if not self.is_async:
            return drive(body())

        async def main() -> T:
            self._post = poster()
            return await body()

        return anyio.run(main, backend=self.name)

    def post(self, call: Callable[[], object]) -> None:
        """Has the event loop make a call, from any thread; if actors are threads, this one makes it."""
        if self._post is None:
            call()
        else:
            self._post(call)

    async def all(self, calls: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        """All of them at once, to their ends."""
        if self.is_async:
            async with anyio.create_task_group() as tasks:
                for call in calls:
                    tasks.start_soon(call)
        else:
            threads = [threading.Thread(target=lambda call=call: drive(call())) for call in calls]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def sleep(self, seconds: float) -> Awaitable[None]:
        """A plain wait."""
        return anyio.sleep(seconds) if self.is_async else _sleep(seconds)

    def tasks(self) -> int:
        """How many tasks the event loop has."""
        return len(anyio.get_running_tasks()) if self.is_async else 0


async def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - no event loop in this colour
