"""Locks on etcd that are waited for or held: what that asks of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import distlock
from distlock.bench._workers import child

from ._etcd import conditions, etcd3_at, requests_of, server
from ._locks import Etcd3
from ._machine import awake
from ._measure import Pace, Report, Target, table_of

__all__ = ("renewal", "waiting")

WAITERS = 50
TTL = 30
WATCHED = 30.0
"""Seconds: a ttl, in which each thing that recurs does so."""
SETTLED = 5.0
"""Seconds in which all have surely asked, on a loaded machine too."""
HELD = 4 * TTL


class Ours:
    """distlock."""

    def __init__(self, url: str) -> None:
        self.locks = distlock.connect(url)

    def hold(self, key: str) -> object:
        """For long, and without any further request."""
        return self.locks.lock(key, ttl=HELD, renew=False).acquire()

    def wait(self, key: str) -> object:
        """Until it is given up."""
        return self.locks.lock(key, ttl=TTL).acquire()


class Theirs:
    """cslab-etcd3."""

    def __init__(self, url: str) -> None:
        self.client = etcd3_at(url)

    def hold(self, key: str) -> object:
        """For long, and without any further request."""
        return Etcd3(self.client, key, HELD).__enter__()

    def wait(self, key: str) -> object:
        """Until it is given up."""
        return Etcd3(self.client, key, TTL).__enter__()


CASES: dict[str, tuple[Callable[[str], Any], int, int]] = {
    "distlock, 1 waiter": (Ours, 1, 1),
    "distlock": (Ours, WAITERS, 1),
    f"distlock, {WAITERS} keys": (Ours, WAITERS, WAITERS),
    "etcd3": (Theirs, WAITERS, 1),
}
"""By name: who waits, how many do, and for how many locks."""


def waiting(pace: Pace) -> Report:
    """What one process with many waiters asks of the server. The cases share the time, each with its server."""
    seconds = pace.of(WATCHED, 1.0)
    with ExitStack() as stack:
        stores = {name: stack.enter_context(server(None)) for name in CASES}
        for name, store in stores.items():
            stack.enter_context(_waiters(name, store.url))
        time.sleep(pace.of(SETTLED, 2.0))
        before = {name: requests_of(store) for name, store in stores.items()}
        time.sleep(seconds)
        heard = {name: _since(before[name], requests_of(store)) for name, store in stores.items()}
        leases = {name: len(store.leases()) for name, store in stores.items()}
        pace.tick()
    sent = {name: [sum(found.values()) * 10 / seconds] for name, found in heard.items()}
    notes = {name: f"{_told(found)}; {leases[name]} leases" for name, found in heard.items()}
    few = {name: (Target(1.2, "distlock, 1 waiter"),) for name in list(CASES)[1:3]}
    what = f"requests in 10 s, ttl {TTL} s, counted for {seconds:g} s"
    return Report(f"etcd, {WAITERS} waiters of one process", what, table_of(sent, "requests", few, notes), conditions())


def _since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: count - before[name] for name, count in after.items() if count > before[name]}


def _told(found: Mapping[str, float]) -> str:
    return ", ".join(f"{count:g} {name}" for name, count in found.items()) or "none"


@contextmanager
def _waiters(name: str, url: str) -> Iterator[None]:
    """Holds the locks here, and has another process wait for them."""
    make, _, keys = CASES[name]
    holder = make(url)
    held = [holder.hold(f"key:{number}") for number in range(keys)]
    with child(_wait, name, url) as pipe:
        pipe.recv()
        yield
    del held


def _wait(pipe: Connection, name: str, url: str) -> None:
    make, waiters, keys = CASES[name]
    waiter = make(url)
    for number in range(waiters):
        threading.Thread(target=waiter.wait, args=(f"key:{number % keys}",), daemon=True).start()
    pipe.send("all of them ask")
    threading.Event().wait()


# Renewal.

RENEWED = 1_000
RENEWED_TTL = 6
INTERVALS = 5


def renewal(pace: Pace) -> list[Report]:
    """What keeping many locks asks of the server and takes of the client, which does nothing else."""
    count, intervals = pace.of(RENEWED, 50), pace.of(INTERVALS, 1)
    seconds = intervals * RENEWED_TTL / 3
    found = {}
    with awake():
        for held in (0, 1, count):
            found[f"distlock, {held} locks"] = _renewing(held, seconds)
            pace.tick()
    sent = {name: [sum(heard.values()) / intervals] for name, (heard, _, _) in found.items()}
    notes = {name: f"{_told(heard)} in {intervals} intervals" for name, (heard, _, _) in found.items()}
    spent = {name: [busy] for name, (_, busy, _) in found.items()}
    threads = {name: f"{number} threads" for name, (_, _, number) in found.items()}
    most = f"distlock, {count} locks"
    name, about = f"etcd, renewal of {count} locks, ttl {RENEWED_TTL} s", conditions()
    per = "requests in an interval (a third of the ttl)"
    return [
        Report(name, per, table_of(sent, "requests", {most: (Target(2),)}, notes), about),
        Report(name, f"client's processor time in {seconds:g} s", table_of(spent, "ms", {}, threads, 1e3), about),
    ]


def _renewing(count: int, seconds: float) -> tuple[dict[str, float], float, int]:
    """Requests by method, seconds of the client's processor time, and its threads."""
    with server(None) as store, child(_keep, store.url, count) as pipe:
        pipe.recv()
        time.sleep(RENEWED_TTL / 3)  # the first renewals are out of step
        before = requests_of(store)
        pipe.send(seconds)
        busy, threads = pipe.recv()
        heard = _since(before, requests_of(store))
        kept = len(store.keys())
        if kept < count:
            raise RuntimeError(f"it has kept {kept} of {count} locks")
        return heard, busy, threads


def _keep(pipe: Connection, url: str, count: int) -> None:
    locks = distlock.connect(url)
    held = [locks.lock(f"orders:{number}", ttl=RENEWED_TTL).acquire() for number in range(count)]
    pipe.send("all of them held")
    seconds = pipe.recv()
    before = time.process_time()
    time.sleep(seconds)
    pipe.send((time.process_time() - before, threading.active_count()))
    pipe.recv()
    del held
