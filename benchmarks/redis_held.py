"""Locks on Redis that are held: the memory that each takes, and what keeping them costs."""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from multiprocessing.connection import Connection

import redis

from distlock.bench._workers import child
from tests.servers import RedisServer

from ._machine import awake
from ._measure import Pace, Report, Target, rotated, table_of
from ._redis import conditions, server, url_of
from ._takers import TAKERS

__all__ = ("memory", "renewal")

HELD = 10_000
HELD_FOR = 600
"""Seconds of ttl: no renewal comes in between."""
KEEPERS = ("key and value", "distlock", "redis-py", "python-redis-lock", "tooz")


def memory(pace: Pace) -> list[Report]:
    """Bytes for each of many held locks, in a fresh process and on a fresh server."""
    count = pace.of(HELD, 300)
    client, store_side = {}, {}
    about: dict[str, str] = {}
    for name in KEEPERS:
        with server(None) as store, child(_traced, name, url_of(store), count) as pipe:
            client[name] = [pipe.recv()]
            store_side[name] = [_usage(store) / count]
            about = about or conditions(store)
        pace.tick()
    name = f"redis, memory of {count} held locks"
    return [
        Report(
            f"{name}, client", "bytes for each", table_of(client, "B", {"distlock": (Target(800),)}, scale=1.0), about
        ),
        Report(
            f"{name}, server",
            "bytes of all keys, for each",
            table_of(store_side, "B", {"distlock": (Target(400),)}),
            about,
        ),
    ]


def _traced(pipe: Connection, name: str, url: str, count: int) -> None:
    take = TAKERS[name](url, HELD_FOR)
    warm = [take(f"warm:{number}") for number in range(10)]
    gc.collect()
    tracemalloc.start()
    held = [take(f"orders:{number}") for number in range(count)]
    gc.collect()
    pipe.send(tracemalloc.get_traced_memory()[0] / count)
    pipe.recv()
    del warm, held


def _usage(store: RedisServer) -> int:
    with redis.Redis(port=store.port) as client, client.pipeline(transaction=False) as pipeline:
        for key in client.scan_iter(count=1000):
            pipeline.memory_usage(key, samples=0)
        return sum(pipeline.execute())


# Renewal.

ROUNDS = 2
RENEWED = 1_000
TTL = 3
SECONDS = 10.0
RENEWERS = ("raw pipeline", "distlock", "python-redis-lock, auto_renewal", "tooz")


def renewal(pace: Pace) -> list[Report]:
    """Processor time of a process that holds many locks and does nothing else, less that of one that holds none."""
    seconds, count = pace.of(SECONDS, 0.5), pace.of(RENEWED, 100)
    spent: dict[str, list[float]] = {name: [] for name in RENEWERS}
    threads: dict[str, list[float]] = {name: [] for name in RENEWERS}
    kept = dict.fromkeys(RENEWERS, count)
    about: dict[str, str] = {}
    with awake():
        for turn in pace.turns(ROUNDS):
            idle, _, _ = _renewing("nothing", 0, seconds, about)
            for name in rotated(RENEWERS, turn):
                busy, most, left = _renewing(name, count, seconds, about)
                spent[name].append(busy - idle)
                threads[name].append(most)
                kept[name] = min(kept[name], left)
    lost = {each: f"{count - left} were lost" for each, left in kept.items() if left < count}
    name = f"redis, renewal of {count} locks, ttl {TTL} s"
    cheap = {"distlock": (Target(40), Target(0.11, "tooz"))}
    return [
        Report(name, f"client's processor time in {seconds:g} s", table_of(spent, "ms", cheap, lost, scale=1e3), about),
        Report(name, "threads of the client", table_of(threads, "threads", {"distlock": (Target(2),)}), about),
    ]


def _renewing(name: str, count: int, seconds: float, about: dict[str, str]) -> tuple[float, int, int]:
    """Seconds of processor time, threads, and locks that are still held after that."""
    with server(None) as store, child(_kept, name, url_of(store), count, seconds) as pipe:
        if not about:
            about.update(conditions(store))
        busy, threads = pipe.recv()
        with redis.Redis(port=store.port) as client:
            kept = min(int(client.dbsize()), count)
        if kept < count and name == "distlock":
            raise RuntimeError(f"{name} has kept {kept} of {count} locks")
        return busy, threads, kept


def _kept(pipe: Connection, name: str, url: str, count: int, seconds: float) -> None:
    take = TAKERS[name](url, TTL)
    held = [take(f"orders:{number}") for number in range(count)]
    before = time.process_time()
    time.sleep(seconds)
    pipe.send((time.process_time() - before, len(os.listdir("/proc/self/task"))))
    pipe.recv()
    del held
