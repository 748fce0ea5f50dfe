"""Processes that are killed, stopped and forked, for stores that other processes can reach."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ..colours import World, case
from ..process import Process

__all__ = ("Processes",)


class Processes:
    @case
    async def test_a_killed_holder_is_succeeded(self, world: World) -> None:
        """redisson#3730: the waiter slept on although the holder was long gone."""
        with _processes(world, 1) as processes:
            for process in processes:
                token = int(await world.aside(partial(process.ask, "acquire k 3")))
                task = world.start(lambda: world.acquire(world.locks.lock("k"), timeout=30))
                await world.queued("k", 1)
                await world.aside(process.kill)
                lease = await task.result()
                assert lease.token > token
                await world.release(lease)

    @case
    async def test_killed_waiters_are_passed_over(self, world: World) -> None:
        with _processes(world, 5) as processes:
            if not processes:
                return
            async with world.block(world.locks.lock("k", ttl=60)):
                for n, process in enumerate(processes):
                    process.tell("acquire k 60")
                    if world.locks.guarantees.fair:
                        await world.queued("k", n + 1)
                task = world.start(lambda: world.acquire(world.other.lock("k"), timeout=30))
                if world.locks.guarantees.fair:
                    await world.queued("k", 6)
                for process in processes:
                    await world.aside(process.kill)
            started = time.monotonic()
            await world.release(await task.result())
            assert time.monotonic() - started < 25  # not the sum of their ttls, nor one

    @case
    async def test_a_stopped_holder_knows_that_it_lost(self, world: World) -> None:
        """Kleppmann, "How to do distributed locking": the pause of a garbage collector."""
        with _processes(world, 1) as processes:
            for process in processes:
                await world.aside(partial(process.ask, "acquire k 0.5"))
                process.popen.send_signal(signal.SIGSTOP)
                await world.sleep(1.2)
                process.tell("state")
                process.popen.send_signal(signal.SIGCONT)
                assert await world.aside(process.hear) == "lost"

    @case
    async def test_a_clock_that_is_an_hour_off_changes_nothing(self, world: World) -> None:
        """rueidis, Redisson's fair lock: times of several clients' clocks were compared."""
        tokens: list[int] = []
        with _processes(world, 2) as processes:
            for process, off_by in zip(processes, (3600, -3600)):  # noqa: B905 - or there are no processes
                assert await world.aside(partial(process.ask, f"clock {off_by}")) == "set"
                tokens.append(int(await world.aside(partial(process.ask, "acquire k 30"))))
                assert await world.try_acquire(world.locks.lock("k")) is None
                assert await world.aside(partial(process.ask, "state")) == "held"
                holder = (await world.inspect("k")).holder
                assert holder is None or holder.held_for is None or holder.held_for < 600
                assert await world.aside(partial(process.ask, "release")) == "released"
                async with world.block(world.locks.lock("k", timeout=10)) as lease:
                    tokens.append(lease.token)
        assert tokens == sorted(set(tokens))

    @case
    async def test_a_forked_child_holds_nothing(self, world: World) -> None:
        """python-redis-lock: the child released its parent's lock."""
        with _processes(world, 1) as processes:
            for process in processes:
                await world.aside(partial(process.ask, "acquire k 30"))
                for order in ("fork", "fork quietly", "fork"):
                    assert await world.aside(partial(process.ask, order)) == "fine"
                assert await world.aside(partial(process.ask, "state")) == "held"
                assert await world.try_acquire(world.locks.lock("k")) is None
                assert await world.aside(partial(process.ask, "release")) == "released"
                async with world.block(world.locks.lock("k", timeout=10)):
                    pass


@contextmanager
def _processes(world: World, count: int) -> Iterator[list[Process]]:
    """That many, or none where the store is this process's own."""
    if world.store.url is None:
        assert world.locks.guarantees.scope == "process", "give the Store a url: other processes can reach it"
    processes = [Process(world.store.url) for _ in range(count)] if world.store.url is not None else []
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
