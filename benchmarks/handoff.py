"""A lock that someone waits for: how long it takes from the one to the other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ._locks import MAKERS
from ._machine import awake, description
from ._measure import Contender, Report, Row, Spread, Target, rows_of
from ._race import Handoffs, crowd, duel
from ._redis import RawSocket, command, conditions, server, url_of

__all__ = ("files", "redis_processes", "redis_threads")

ROUNDS = 12
SECONDS = 0.4
THREADS = 8
Tick = Callable[[], object]


def redis_processes(tick: Tick) -> Report:
    """Two processes on one key."""
    with awake(), server(None) as store:
        names = ("raw token (BLPOP)", "distlock", "redis-py", "redis-py, asking every 1 ms")
        places = dict.fromkeys(names, url_of(store))
        _put_token(store.port)
        with duel(places) as run:
            rows = _rows(names, run, tick, {})
        return Report("redis hand-off, 2 processes", "from release to the waiter being in", rows, conditions(store))


def redis_threads(tick: Tick) -> Report:
    """Eight threads of one process on one key."""
    with awake(), server(None) as store:
        names = ("raw token (BLPOP)", "distlock", "redis-py", "redis-py, asking every 1 ms")
        _put_token(store.port)
        url = url_of(store)
        # distlock and redis-py are thread-safe and shared; a raw socket is not.
        locks = {name: [MAKERS[name](url)] * THREADS for name in names[1:]}
        locks[names[0]] = [MAKERS[names[0]](url) for _ in range(THREADS)]
        rows = _rows(names, lambda name, seconds: crowd(locks[name], seconds), tick, {})
        what = f"from release to the next of {THREADS} threads being in"
        return Report(f"redis hand-off, {THREADS} threads", what, rows, conditions(store))


def files(tick: Tick) -> Report:
    """Two processes on one file of a disk."""
    with awake(), tempfile.TemporaryDirectory(prefix="distlock-bench-") as folder:
        names = ("raw flock", "distlock", "portalocker", "filelock")
        places = dict.fromkeys(names, folder)
        places["distlock"] = Path(folder).as_uri()
        with duel(places) as run:
            rows = _rows(names, run, tick, {"distlock": (Target(2, "raw flock"),)})
        return Report("file hand-off, 2 processes", "from release to the waiter being in", rows, description())


def _put_token(port: int) -> None:
    RawSocket(port).ask(command("RPUSH", "token", "t"))


def _rows(
    names: Sequence[str],
    run: Callable[[str, float], Handoffs],
    tick: Tick,
    targets: Mapping[str, tuple[Target, ...]],
) -> list[Row]:
    found: dict[str, list[Handoffs]] = {name: [] for name in names}
    for name in names:
        run(name, SECONDS / 4)  # connects
    for turn in range(ROUNDS):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            found[name].append(run(name, SECONDS))
        tick()
    contenders = [
        Contender(name, lambda _: None, targets.get(name, ()), _rate([each.rate for each in found[name]]))
        for name in names
    ]
    latencies = {name: [each.latency for each in found[name]] for name in names}
    return list(rows_of(contenders, latencies, scale=1e6, unit="µs"))


def _rate(rates: Sequence[float]) -> str:
    spread = Spread.of(rates)
    return f"{spread.median:.0f} hand-offs/s ({spread.low:.0f}–{spread.high:.0f}) when all ask again at once"
