"""Which benchmarks there are, and how one is run."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

from ._measure import Report

__all__ = ("BENCHMARKS", "run")

BENCHMARKS = {
    "redis": "redis_uncontended:sync",
    "redis-without-hiredis": "redis_uncontended:sync",
    "redis-requests": "redis_uncontended:requests",
    "redis-async": "redis_uncontended:asynchronous",
    "redis-processes": "handoff:redis_processes",
    "redis-threads": "handoff:redis_threads",
    "file-tmpfs": "local:files_in_memory",
    "file-disk": "local:files_on_disk",
    "file-processes": "handoff:files",
    "memory": "local:memory",
    "import": "imports:importing",
}


def run(name: str, tell: Callable[[str, bool], object]) -> Report | None:
    """In a fresh process, None if it failed: what one imports or leaves behind does not weigh on the next."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(name, theirs))
    process.start()
    theirs.close()
    report: Report | None = None
    try:
        while True:
            message = ours.recv()
            if isinstance(message, Report):
                report = message
            tell(name, report is not None)
    except EOFError:
        pass
    except KeyboardInterrupt:
        process.terminate()
        raise
    finally:
        process.join(15)
        if process.is_alive():
            process.kill()
    return report


def _child(name: str, pipe: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if name.endswith("without-hiredis"):
        sys.modules["hiredis"] = None  # type: ignore[assignment]
    module, _, function = BENCHMARKS[name].partition(":")
    try:
        run = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        pipe.send(run(lambda: pipe.send(None)))
    except KeyboardInterrupt:
        sys.exit(130)
