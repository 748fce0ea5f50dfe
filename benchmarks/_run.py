"""Which benchmarks there are, and how one is run."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from ._measure import Pace, Report

__all__ = ("BENCHMARKS", "run")

BENCHMARKS = {
    "redis": "redis_uncontended:sync",
    "redis-without-hiredis": "redis_uncontended:sync",
    "redis-requests": "redis_uncontended:requests",
    "redis-async": "redis_uncontended:asynchronous",
    "redis-processes": "handoff:redis_processes",
    "redis-idle": "handoff:redis_idle",
    "redis-threads": "handoff:redis_threads",
    "redis-crowd": "redis_contended:crowd",
    "redis-waiting": "redis_contended:waiting",
    "redis-tasks": "redis_throughput:tasks",
    "redis-many-threads": "redis_throughput:threads",
    "redis-memory": "redis_held:memory",
    "redis-renewal": "redis_held:renewal",
    "etcd": "etcd_uncontended:sync",
    "etcd-requests": "etcd_uncontended:requests",
    "etcd-async": "etcd_uncontended:asynchronous",
    "etcd-processes": "handoff:etcd_processes",
    "etcd-waiting": "etcd_held:waiting",
    "etcd-renewal": "etcd_held:renewal",
    "zookeeper": "zookeeper:sync",
    "zookeeper-requests": "zookeeper:requests",
    "zookeeper-crowd": "zookeeper:crowd",
    "zookeeper-renewal": "zookeeper:renewal",
    "file-tmpfs": "local:files_in_memory",
    "file-disk": "local:files_on_disk",
    "file-processes": "handoff:files",
    "memory": "local:memory",
    "http": "http:in_process",
    "import": "imports:importing",
    "growth-held": "growth:held",
    "growth-waiting": "growth:waiting",
    "growth-names": "growth:names",
}


def run(name: str, tell: Callable[[str, bool], object], *, quick: bool = False) -> Sequence[Report]:
    """In a fresh process, nothing if it failed: what one imports or leaves behind does not weigh on the next."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(name, theirs, quick))
    process.start()
    theirs.close()
    reports: Sequence[Report] = ()
    try:
        while True:
            reports = ours.recv() or ()
            tell(name, bool(reports))
    except EOFError:
        pass
    except KeyboardInterrupt:
        process.terminate()
        raise
    finally:
        process.join(15)
        if process.is_alive():
            process.kill()
    return reports


def _child(name: str, pipe: Connection, quick: bool) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if name.endswith("without-hiredis"):
        sys.modules["hiredis"] = None  # type: ignore[assignment]
    module, _, function = BENCHMARKS[name].partition(":")
    try:
        run = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        outcome = run(Pace(lambda: pipe.send(None), quick))
        pipe.send([outcome] if isinstance(outcome, Report) else outcome)
    except KeyboardInterrupt:
        sys.exit(130)
