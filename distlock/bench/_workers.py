"""Processes of a benchmark's own, each at the end of a pipe, which is what ends them: Ctrl-C is for their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

__all__ = ("child", "workers")

ENDING = 3.0
"""Seconds for all of them to end by themselves."""


@contextmanager
def child(work: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """``work`` in a fresh process, which is killed when the block is left."""
    process, ours = _started(work, arguments)
    try:
        yield ours
    finally:
        process.kill()
        process.join()


@contextmanager
def workers(work: Callable[..., None], each: Iterable[tuple[Any, ...]]) -> Iterator[list[Connection]]:
    """``work`` in fresh processes, one for the arguments in each; they end with their pipes when the block is left."""
    pipes, processes = [], []
    try:
        for arguments in each:
            process, ours = _started(work, arguments)
            pipes.append(ours)
            processes.append(process)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        until = time.monotonic() + ENDING
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def _started(work: Callable[..., None], arguments: tuple[Any, ...]) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
    resource_tracker.ensure_running()  # which unblocks the signal when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the child inherits, and keeps
    given = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"  # else it takes a random.py of the current folder for Python's
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.environ.pop("PYTHONSAFEPATH")
        if given is not None:
            os.environ["PYTHONSAFEPATH"] = given
    theirs.close()
    return process, ours
