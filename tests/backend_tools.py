"""A backend without the core on top, what has to come of what it is asked, and programs that are its rivals."""

from __future__ import annotations

import select
import subprocess
import threading
from typing import TypeVar

import distlock
from distlock._clock import now
from distlock._who import new_claim_id
from distlock.backends.base import Busy, Claim, Grant, SyncBackend

from .programs import wait_until

__all__ = ("Rival", "claim_of", "granted", "queued", "soon", "tells_its_waiters_that_it_was_closed")

RivalT = TypeVar("RivalT", bound="Rival")


def claim_of(key: str = "k", *, ttl: float = 30.0, wait: bool = False, renewed: bool = True) -> Claim:
    return Claim(new_claim_id(), key, ttl, wait, renewed=renewed)


def soon(seconds: float = 10.0) -> float:
    return now() + seconds


def granted(backend: SyncBackend, claim: Claim) -> Grant:
    outcome = backend.acquire(claim, soon())
    assert isinstance(outcome, Grant)
    return outcome


def queued(backend: SyncBackend, claim: Claim) -> Busy:
    outcome = backend.acquire(claim, soon())
    assert isinstance(outcome, Busy)
    return outcome


class Rival:
    """A program that takes a lock by another library, as a context manager.

    It waits, says so when it holds the lock, and holds it until it is told to end.
    """

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self: RivalT) -> RivalT:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()

    def is_in(self, timeout: float = 0) -> bool:
        """Whether it holds the lock, within so many seconds."""
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], timeout)[0])

    def release(self) -> None:
        self._tell()
        assert self.process.wait(20) == 0

    def _tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


def tells_its_waiters_that_it_was_closed(url: str) -> None:
    """A manager tells those that wait in threads."""
    with distlock.connect(url) as other, other.lock("k"):
        locks = distlock.connect(url)
        said: list[BaseException] = []

        def wait() -> None:
            try:
                locks.lock("k").acquire()
            except distlock.DistLockError as error:
                said.append(error)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        wait_until(lambda: other.inspect("k").waiters, "it to queue")
        locks.close()
        thread.join(10)
        assert "closed" in str(said[0])
