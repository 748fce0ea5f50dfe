"""A lock that someone waits for: how long it takes from the one to the other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from ._locks import team
from ._machine import awake, description
from ._measure import Pace, Report, Spread, Target, rotated, table_of
from ._race import Handoffs, crowd, duel
from ._redis import RawSocket, command, conditions, server, url_of

__all__ = ("etcd_processes", "files", "redis_idle", "redis_processes", "redis_threads")

ROUNDS = 12
SECONDS = 0.4
REST = 0.02
"""Seconds in which processors doze off and caches go cold."""
IDLE = {"distlock": (Target(0.7, "python-redis-lock"),)}
CONTENDED = {"distlock": (Target(1.5, "python-redis-lock", least=True),)}
THREADS = 8


REDIS = (
    "raw token (BLPOP)", "raw direct grant", "distlock", "python-redis-lock", "redis-py", "redis-py, asking every 1 ms"
)  # fmt: skip
Found = Mapping[str, Sequence[Handoffs]]


def redis_processes(pace: Pace) -> list[Report]:
    """Two processes on one key."""
    with awake(), server(None) as store:
        _put_token(store.port)
        with duel(dict.fromkeys(REDIS, url_of(store))) as run:
            found = _measured(REDIS, run, pace)
        about = conditions(store)
        one = _latencies("redis hand-off, 2 processes", "from release to the waiter being in", found, about, IDLE)
        return [one, _rates("redis contended, 2 processes", found, about, CONTENDED)]


def redis_idle(pace: Pace) -> Report:
    """Two processes that do nothing in between, on a machine that may doze, as most are most of the time."""
    with server(None) as store:
        _put_token(store.port)
        names = REDIS[:4]
        with duel(dict.fromkeys(names, url_of(store)), REST) as run:
            found = _measured(names, run, pace)
        what = f"from release to the waiter being in, after {REST * 1000:g} ms of rest"
        about = {**conditions(store), "kept awake by SCHED_IDLE spinners": "no"}
        return _latencies("redis hand-off, idle", what, found, about, IDLE)


def redis_threads(pace: Pace) -> Report:
    """Eight threads of one process on one key."""
    with awake(), server(None) as store:
        _put_token(store.port)
        locks = {name: team(name, url_of(store), THREADS) for name in REDIS}
        found = _measured(REDIS, lambda name, seconds: crowd(locks[name], seconds), pace)
        what = f"from release to the next of {THREADS} threads being in"
        return _latencies(f"redis hand-off, {THREADS} threads", what, found, conditions(store), {})


def etcd_processes(pace: Pace) -> list[Report]:
    """Two processes on one key of etcd."""
    from . import _etcd

    with awake(), _etcd.server(None) as store:
        names = ("raw queue", "distlock", "etcd3")
        with duel(dict.fromkeys(names, store.url)) as run:
            found = _measured(names, run, pace)
        about = _etcd.conditions()
        one = _latencies("etcd hand-off, 2 processes", "from release to the waiter being in", found, about, {})
        fast = {"distlock": (Target(2, "etcd3", least=True),)}
        return [one, _rates("etcd contended, 2 processes", found, about, fast)]


def files(pace: Pace) -> Report:
    """Two processes on one file of a disk."""
    with awake(), tempfile.TemporaryDirectory(prefix="distlock-bench-") as folder:
        names = ("raw flock", "distlock", "portalocker", "filelock")
        places = dict.fromkeys(names, folder)
        places["distlock"] = Path(folder).as_uri()
        with duel(places) as run:
            found = _measured(names, run, pace)
        targets = {"distlock": (Target(2, "raw flock"),)}
        what = "from release to the waiter being in"
        return _latencies("file hand-off, 2 processes", what, found, description(), targets)


def _put_token(port: int) -> None:
    RawSocket(port).ask(command("RPUSH", "token", "t"))


def _measured(names: Sequence[str], run: Callable[[str, float], Handoffs], pace: Pace) -> Found:
    seconds = pace.of(SECONDS, SECONDS / 4)
    found: dict[str, list[Handoffs]] = {name: [] for name in names}
    for name in names:
        run(name, SECONDS / 4)  # connects
    for turn in pace.turns(ROUNDS):
        for name in rotated(names, turn):
            found[name].append(run(name, seconds))
    return found


def _latencies(
    name: str, what: str, found: Found, about: dict[str, str], targets: Mapping[str, tuple[Target, ...]]
) -> Report:
    values = {each: [one.latency for one in all_of_it] for each, all_of_it in found.items()}
    notes = {each: _rate([one.rate for one in all_of_it]) for each, all_of_it in found.items()}
    return Report(name, what, table_of(values, "µs", targets, notes, scale=1e6), about)


def _rate(rates: Sequence[float]) -> str:
    spread = Spread.of(rates)
    if not spread.high:
        return ""
    return f"{spread.median:.0f} hand-offs/s ({spread.low:.0f}–{spread.high:.0f}) when all ask again at once"


def _rates(name: str, found: Found, about: dict[str, str], targets: Mapping[str, tuple[Target, ...]]) -> Report:
    values = {each: [one.rate for one in all_of_it] for each, all_of_it in found.items()}
    notes = {
        each: f"{median(one.acquisitions for one in all_of_it):.0f} acquisitions/s" for each, all_of_it in found.items()
    }
    return Report(
        name, "changes of the holder when both ask again at once", table_of(values, "/s", targets, notes), about
    )
