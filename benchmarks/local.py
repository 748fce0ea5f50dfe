"""Locks that need no server: files of this machine, and the memory of this process."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import portalocker

import distlock
from distlock.backends.base import Claim, now
from distlock.backends.memory import MemoryBackend

from ._machine import CLIENT, awake, description, pin
from ._measure import Contender, Pace, Report, Target, compare
from .redis_uncontended import blocks, pairs

__all__ = ("files_in_memory", "files_on_disk", "memory")

ROUNDS = 200
FILE_TARGET = (Target(25),)


def files_in_memory(pace: Pace) -> Report:
    """In a folder that is memory."""
    folder = "/dev/shm"  # noqa: S108 - a fresh folder is made in it
    return _files(pace, folder if os.path.isdir(folder) else None, "tmpfs")


def files_on_disk(pace: Pace) -> Report:
    """In the folder for temporary files."""
    return _files(pace, None, "disk")


def _files(pace: Pace, parent: str | None, medium: str) -> Report:
    with awake(), tempfile.TemporaryDirectory(prefix="distlock-bench-", dir=parent) as folder:
        pin(0, CLIENT)
        with distlock.connect(Path(folder).as_uri()) as locks:
            contenders = (
                Contender("raw floor", raw_flock(f"{folder}/raw"), note="open, flock, unlock, close"),
                Contender("own system calls", own_calls(f"{folder}/own"), note="on a file that stays open"),
                Contender("distlock with", blocks(locks.lock("a")), FILE_TARGET),
                Contender("distlock acquire/release", pairs(locks.lock("b")), FILE_TARGET),
                Contender("portalocker with", blocks(portalocker.Lock(f"{folder}/portalocker"))),
                Contender("filelock with", blocks(filelock.FileLock(f"{folder}/filelock"))),
            )
            rows = compare(contenders, ROUNDS, pace)
        return Report(f"file uncontended, {medium}", "one acquire and release", rows, description())


def raw_flock(path: str) -> Callable[[int], None]:
    """What the system calls alone cost."""

    def run(count: int) -> None:
        for _ in range(count):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    return run


def own_calls(path: str) -> Callable[[int], None]:
    """What distlock asks of the system, on a file that it keeps open: is it in place, who had it, who has it now."""
    record, fd = b"r" * 200, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def run(count: int) -> None:
        for _ in range(count):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(path)
            os.pread(fd, len(record), 0)
            os.pwrite(fd, record, 0)
            os.stat(path)
            os.pwrite(fd, b"0", 0)
            fcntl.flock(fd, fcntl.LOCK_UN)

    return run


def memory(pace: Pace) -> Report:
    """No store to speak of: what is left is the core."""
    with awake(), distlock.connect("memory://") as locks:
        pin(0, CLIENT)
        contenders = (
            Contender("raw floor", bare_backend(MemoryBackend()), note="the memory backend, called directly"),
            Contender("distlock with", blocks(locks.lock("a"))),
            Contender("distlock acquire/release", pairs(locks.lock("b"))),
            Contender("ensure_held", proofs(locks.lock("c")), note="one proof, inside a block"),
        )
        return Report("memory", "one acquire and release", compare(contenders, ROUNDS, pace), description())


def bare_backend(backend: Any) -> Callable[[int], None]:
    """Acquire and release, with nothing above."""
    claim = Claim("id", "key", 30.0, True)

    def run(count: int) -> None:
        for _ in range(count):
            until = now() + 5
            backend.release(backend.acquire(claim, until), until)

    return run


def proofs(lock: distlock.Lock) -> Callable[[int], None]:
    """`Lease.ensure_held`, as before every write."""

    def run(count: int) -> None:
        with lock as lease:
            for _ in range(count):
                lease.ensure_held()

    return run
