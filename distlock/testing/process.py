"""A process that takes locks when told to: for tests that stop, kill and fork it.

Its `main` reads lines and answers each: ``acquire KEY TTL`` → the token,
``state`` → the state of the last lease, ``release`` → ``released``, ``fork`` → what a forked child may do, ``fork
quietly`` → the same of one that does nothing but end, ``clock SECONDS`` → ``set``: its wall clock is that far off.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings

from .. import BackendError, Lease, LeaseState, LockLost, Manager, connect

__all__ = ("Process", "main")


class Process:
    """One such process, seen from the test."""

    def __init__(self, url: str) -> None:
        self.popen: subprocess.Popen[str] = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-c", "from distlock.testing.process import main; main()", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        """Sends a line; the answer is for `hear`."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def hear(self) -> str:
        """The next answer; empty if the process has ended."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def ask(self, line: str) -> str:
        """Both."""
        self.tell(line)
        return self.hear()

    def kill(self) -> None:
        """SIGKILL."""
        self.popen.kill()
        self.popen.communicate()


def main() -> None:
    """What the process does."""
    with connect(sys.argv[1]) as locks:
        lease: Lease | None = None
        for line in sys.stdin:
            word, *args = line.split()
            if word == "clock":
                _set_clock(float(args[0]))
                _say("set")
            elif word == "acquire":
                lease = locks.lock(args[0], ttl=float(args[1])).acquire()
                _say(lease.token)
            elif lease is not None and word == "state":
                _say(lease.state.value)
            elif lease is not None and word == "release":
                lease.release()
                _say("released")
            elif lease is not None and word == "fork":
                _say(_fork(locks, lease, quietly=bool(args)))
        os._exit(0)


def _set_clock(off_by: float) -> None:
    right = time.time

    def wrong() -> float:
        # grpc turns a timeout into a moment, which its core reads by the machine's clock: both would be wrong.
        return right() + (0.0 if sys._getframe(1).f_globals["__name__"].startswith("grpc.") else off_by)

    time.time = wrong


def _fork(locks: Manager, lease: Lease, *, quietly: bool) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where there are threads
        child = os.fork()
    if child == 0:
        if quietly:  # as a program ends: its blocks are left, its objects finalised
            sys.exit()
        os._exit(_touch(locks, lease))
    return "fine" if os.waitpid(child, 0)[1] == 0 else "the child could touch the lock"


def _touch(locks: Manager, lease: Lease) -> int:
    """What a forked child tries with the lease that it inherited; 0: in vain."""
    try:
        lease.release()
    except LockLost:
        lost = lease.state is LeaseState.LOST and lease.remaining() == 0
        try:
            taken = locks.lock(lease.key).try_acquire() is None
            with locks.lock(f"{lease.key}-of-the-child", timeout=20):  # it can have locks of its own
                return 0 if lost and taken else 2
        except BackendError as error:  # or is told at once why it cannot
            return 0 if lost and "fork" in str(error) else 3
    return 1


def _say(what: object) -> None:
    print(what, flush=True)
