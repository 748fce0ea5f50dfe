"""Locks in ZooKeeper: alone, wanted by many, and held by the thousand."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Any

import distlock
from distlock.bench._workers import child

from ._machine import CLIENT, SERVER, awake, pin
from ._measure import Contender, Pace, Report, Row, Spread, Target, compare, rotated, table_of
from ._melee import melee
from ._zookeeper import Bare, client_at, conditions, requests_of, server
from .redis_uncontended import blocks, pairs

__all__ = ("crowd", "renewal", "requests", "sync")

ROUNDS = 150
TARGETS = (Target(1.5, "bare create and delete"),)


def sync(pace: Pace) -> Report:
    """One thread that holds nothing else."""
    with awake(), server(SERVER) as store:
        pin(0, CLIENT)
        client = client_at(store.url)
        with distlock.connect(store.url) as locks:
            contenders = [
                Contender("bare create and delete", Bare(store.url, "/bare").run),
                Contender("distlock with", blocks(locks.lock("a")), TARGETS),
                Contender("distlock acquire/release", pairs(locks.lock("b")), TARGETS),
                Contender("kazoo Lock", blocks(client.Lock("/kazoo"))),
            ]
            tooz = _tooz(store.url)
            if tooz is not None:
                contenders.append(Contender("tooz", blocks(tooz.get_lock(b"tooz"))))
            for contender in contenders:
                contender.run(pace.of(1000, 10))  # the JVM compiles
            rows = compare(tuple(contenders), ROUNDS, pace)
            about = conditions(store, pinned=True)
        return Report("zookeeper uncontended", "one acquire and release", rows, about)


def _tooz(url: str) -> Any:
    try:
        from tooz import coordination
    except ImportError:
        return None
    coordinator = coordination.get_coordinator(f"kazoo{url.removeprefix('zookeeper')}", b"benchmark")
    coordinator.start()
    return coordinator


def requests(pace: Pace) -> Report:
    """How many requests reach the server, by its own account."""
    with server(None) as store, distlock.connect(store.url) as locks, closing(asyncio.new_event_loop()) as runner:
        lock, lease = locks.lock("a"), []
        theirs = client_at(store.url).Lock("/kazoo")

        async def acquire() -> None:
            lease.append(await lock.acquire_async())

        async def release() -> None:
            await lease.pop().release()

        ways = {
            "distlock": (lambda: lease.append(lock.acquire()), lambda: lease.pop().release()),
            "distlock on asyncio": (
                lambda: runner.run_until_complete(acquire()),
                lambda: runner.run_until_complete(release()),
            ),
            "kazoo Lock": (theirs.acquire, theirs.release),
        }
        rows = []
        for name, (take, give) in ways.items():
            take(), give()  # connects, and makes the nodes above
            for step, call in (("acquire", take), ("release", give)):
                before = requests_of(store)
                call()
                count = requests_of(store) - before - 1  # the question itself
                most = Target(2) if step == "acquire" else Target(1)
                targets = ((most, count),) if name.startswith("distlock") else ()
                rows.append(Row(f"{name} {step}", Spread(count, count, count), "requests", None, targets))
            pace.tick()
        runner.run_until_complete(locks.aclose())
        return Report("zookeeper requests", "requests that reach the server", rows, conditions(store))


TURNS = 8
PROCESSES, THREADS = 4, 4
WARM_UP, SECONDS = 0.5, 1.5
CROWD = ("distlock", "kazoo Lock")


def crowd(pace: Pace) -> list[Report]:
    """Acquisitions of all threads together, and those of the luckiest as a ratio to the unluckiest's."""
    rates: dict[str, list[float]] = {name: [] for name in CROWD}
    fairness: dict[str, list[float]] = {name: [] for name in CROWD}
    seconds = pace.of(SECONDS, 0.5)
    with awake(), server(None) as store, melee(CROWD, store.url, PROCESSES, THREADS) as run:
        for turn in pace.turns(TURNS):
            for name in rotated(CROWD, turn):
                counts = run(name, pace.of(WARM_UP, 0.2), seconds)
                rates[name].append(sum(counts) / seconds)
                fairness[name].append(max(counts) / (min(counts) or 0.5))
        about = conditions(store)
    name = f"zookeeper contended, {PROCESSES} processes × {THREADS} threads"
    fast = {"distlock": (Target(2, "kazoo Lock", least=True),)}
    what = f"acquisitions of a thread in {seconds:g} s, most by least (none counts as a half)"
    fair = table_of(fairness, "", {"distlock": (Target(1.2),)})
    return [
        Report(name, "acquisitions when all ask again at once", table_of(rates, "/s", fast), about),
        Report(f"{name}, fairness", what, fair, about),
    ]


RENEWED = 1_000
TTL = 6
INTERVALS = 5


def renewal(pace: Pace) -> Report:
    """What keeping many locks asks of the server, beyond kazoo's own heartbeat."""
    count, intervals = pace.of(RENEWED, 50), pace.of(INTERVALS, 1)
    sent, notes = {}, {}
    with server(None) as store:
        for held in (1, count):
            name = f"distlock, {held} locks"
            with child(_keep, store.url, held) as pipe:
                pipe.recv()
                time.sleep(TTL / 3)
                pipe.send(intervals * TTL / 3)
                asked, sessions = pipe.recv()
                kept = len(store.nodes())
            if kept < held:
                raise RuntimeError(f"it has kept {kept} of {held} locks")
            store.flush()
            sent[name] = [asked / intervals]
            notes[name] = f"{asked:g} in {intervals} intervals, {sessions} session"
            pace.tick()
        about = conditions(store)
    rows = table_of(sent, "requests", {f"distlock, {count} locks": (Target(1),)}, notes)
    what = "requests in a third of the session, but for pings"
    return Report(f"zookeeper, {count} held locks, ttl {TTL} s", what, rows, about)


def _keep(pipe: Connection, url: str, count: int) -> None:
    """Holds them, and counts what it sends, at the border to kazoo."""
    locks = distlock.connect(url)
    held = [locks.lock(f"orders:{number}", ttl=TTL).acquire() for number in range(count)]
    pipe.send("all of them held")
    seconds = pipe.recv()
    backend: Any = locks._backend
    sessions = list(backend._sessions._sessions.values())
    before = [session._link._client._connection._xid for session in sessions]
    time.sleep(seconds)
    after = [session._link._client._connection._xid for session in sessions]
    pipe.send((float(sum(after) - sum(before)), len(sessions)))
    pipe.recv()
    del held
