"""A command under a lease: started and ended by a guard, with the terminal and the signals passed on to it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from distlock import Lease, LockLost

from . import _guard
from ._app import LOST, say

__all__ = ("Command", "caught")

NOT_RUNNABLE, NOT_FOUND = 126, 127
"""As shells have it."""
BRAKE = 0.1
"""Seconds before a command that was stopped in the background, where there is no terminal to read, goes on there."""
FORWARDED = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGTSTP,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }
)


@contextlib.contextmanager
def caught(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Signals go to ``handler``. What is ignored, as under nohup, stays so."""
    before = {number: signal.getsignal(number) for number in FORWARDED}
    numbers = [number for number in FORWARDED if before[number] is not signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


class Command:
    """Runs once."""

    def __init__(self, lease: Lease, ttl: float, grace: float) -> None:
        self._lease = lease
        self._grace = grace
        # From KILL to the end of the proven time: for a scheduler that has much to do.
        self._margin = min(1.0, ttl / 10)
        self._period = ttl / 10
        self._kill_at = 0.0
        self._line, self._theirs = socket.socketpair()
        self._terminal = _Terminal()
        self._pid = 0
        self._status: int | None = None
        self._ending = False

    def run(self, command: Sequence[str]) -> int:
        """The exit status, when nothing is left of the command; 128 + n if signal n ended it."""
        _guard.adopt_orphans()
        with caught(self._forward), self._terminal:
            guard = self._guard_of(command)
            try:
                self._lease.on_lost(self._tell_times)
                self._attend()
            finally:
                self._line.close()
                guard.wait()
        if self._pid and self._status is None:
            self._end_all()
        return self._exit_status(command[0])

    @property
    def interrupted(self) -> bool:
        """By Ctrl-C at the terminal, which it had to itself."""
        return self._terminal.given and self._status is not None and self._status & 0x7F == signal.SIGINT

    def _guard_of(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        terminal = self._terminal.to_be_given()
        fds = [self._theirs.fileno(), *([terminal] if terminal >= 0 else [])]
        self._kill_at, arguments = self._kill_time(), [self._theirs.fileno(), terminal, self._grace]
        arguments += [self._kill_at - self._grace, self._kill_at]
        program = [sys.executable, "-I", str(Path(_guard.__file__)), *map(str, arguments), *command]
        told = {
            "DISTLOCK_KEY": self._lease.key,
            "DISTLOCK_TOKEN": str(self._lease.token),
            "DISTLOCK_OWNER": self._lease.owner,
        }
        # What comes before the guard is ready for it waits: for us, and it is passed on.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            return subprocess.Popen(program, pass_fds=fds, env={**os.environ, **told})  # noqa: S603 - as it was told
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            self._theirs.close()

    def _attend(self) -> None:
        """Passes on what there is to pass on, until the guard has gone."""
        unread = b""
        while True:
            if select.select([self._line], [], [], self._period)[0]:
                try:
                    heard = self._line.recv(4096)
                except OSError:
                    heard = b""
                if not heard:
                    return
                *lines, unread = (unread + heard).split(b"\n")
                for line in lines:
                    self._hear(*line.decode().split())
            self._tell_times()

    def _hear(self, word: str, number: str = "0") -> None:
        if word == "started":
            self._pid = int(number)
        elif word == "failed":
            self._status = -int(number)
        elif word == "ended":
            self._status = int(number)
        elif word == "ending":
            self._ending = True
        elif word == "stopped" and self._terminal.suspend(self._pid):
            self._forward(signal.SIGCONT)

    def _kill_time(self) -> float:
        """When nothing of the command may be left, timed backwards from the end of what is proven."""
        t = _guard.now()  # before the question, so that it errs to the safe side
        return t + self._lease.remaining() - self._margin

    def _tell_times(self) -> None:
        kill_at = self._kill_time()
        if abs(kill_at - self._kill_at) > self._margin / 10:
            self._kill_at = kill_at
            self._tell(f"until {kill_at - self._grace!r} {kill_at!r}")

    def _forward(self, number: int, frame: FrameType | None = None) -> None:
        self._tell(f"signal {int(number)}")

    def _tell(self, message: str) -> None:
        with contextlib.suppress(OSError):  # it has gone
            self._line.sendall(message.encode() + b"\n")

    def _end_all(self) -> None:
        """Somebody killed the guard; with it goes the command, but on Linux alone."""
        tree = _guard.Tree(self._pid)
        while tree.lives():
            tree.send(signal.SIGKILL)
            _guard.reap()
            time.sleep(_guard.SETTLE)

    def _exit_status(self, name: str) -> int:
        if self._ending:
            say(f"the command was ended, as its lock could no longer be kept: {self._reason()}")
            return LOST
        if self._status is None:
            say("the guard of the command was killed, and the command with it")
            return LOST
        if not self._pid:
            error = OSError(-self._status, os.strerror(-self._status))
            say(f"{name}: {error.strerror}")
            return NOT_FOUND if isinstance(error, (FileNotFoundError, NotADirectoryError)) else NOT_RUNNABLE
        status = os.waitstatus_to_exitcode(self._status)
        return status if status >= 0 else 128 - status

    def _reason(self) -> str:
        try:
            self._lease.ensure_held()
        except LockLost as error:
            return str(error)
        return f"no renewal of {self._lease.key!r} was answered [{self._lease.backend}]"


class _Terminal:
    """The controlling terminal, if there is one. A shell waits for this process, so the command, which has a group of
    its own, is stopped and continued as this process is."""

    def __init__(self) -> None:
        self._fd = -1
        self.given = False
        """This process is in the foreground, or would be."""

    def __enter__(self) -> None:
        with contextlib.suppress(OSError):
            self._fd = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)

    def __exit__(self, *_: object) -> None:
        if self.given:
            self._hand_to(os.getpgrp())
        if self._fd >= 0:
            os.close(self._fd)

    def to_be_given(self) -> int:
        """Its descriptor for the command, if this process is in the foreground; else -1."""
        with contextlib.suppress(OSError):
            self.given = self._fd >= 0 and os.tcgetpgrp(self._fd) == os.getpgrp()
        return self._fd if self.given else -1

    def suspend(self, group: int) -> bool:
        """The command was stopped: so is this process, until someone continues it. False: nobody could."""
        if self._fd < 0:
            return False
        if self.given:
            self._hand_to(os.getpgrp())
        before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.killpg(0, signal.SIGTSTP)  # to those, too, that the shell started us with; nothing if there is no such shell
        signal.signal(signal.SIGTSTP, before)
        if self.to_be_given() >= 0:
            self._hand_to(group)
        else:
            time.sleep(BRAKE)
        return True

    def _hand_to(self, group: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # as we may be in the background
        with contextlib.suppress(OSError):
            os.tcsetpgrp(self._fd, group)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})
