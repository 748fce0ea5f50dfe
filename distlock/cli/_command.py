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
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
)  # fmt: skip


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
        self._errno = 0
        self._ending = False
        self._interrupted = False

    def run(self, command: Sequence[str]) -> int:
        """The exit status, when nothing is left of the command; 128 + n if signal n ended it."""
        _guard.adopt_orphans()
        with caught(self._forward), self._terminal:
            guard = self._guard_of(command)
            try:
                self._lease.on_lost(self._tell_times)
                self._attend(guard)
            finally:
                self._line.close()
                guard.wait()
                if self._status is None and not self._errno:
                    self._end_all()
                self._terminal.take_back_from(self._pid)
        return self._exit_status(command[0])

    @property
    def interrupted(self) -> bool:
        """By Ctrl-C at the terminal, as this process has to be, then."""
        ended_so = self._status is not None and self._status & 0x7F == signal.SIGINT
        return ended_so and (self._interrupted or self._terminal.was_theirs)

    @property
    def had_the_terminal(self) -> bool:
        """So that whoever started this process knows nothing of that Ctrl-C."""
        return self._terminal.was_theirs

    def _guard_of(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        terminal, kept, line = self._terminal.fd, self._lease.descriptors, self._theirs.fileno()
        self._kill_at = self._kill_time()
        times = self._grace, self._kill_at - self._grace, self._kill_at
        arguments = [line, terminal, int(self._terminal.is_ours_alone()), ",".join(map(str, kept)), *times]
        program = [sys.executable, "-I", str(Path(_guard.__file__)), *map(str, arguments), *command]
        told = {
            "DISTLOCK_KEY": self._lease.key,
            "DISTLOCK_TOKEN": str(self._lease.token),
            "DISTLOCK_OWNER": self._lease.owner,
        }
        # What comes before the guard is ready for it waits: for us, and it is passed on.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            with _inherited([line, *kept, *([terminal] if terminal >= 0 else [])]):
                # Whatever else was left open for the command is its own, as that of make and of <( ) in a shell.
                # The folder, lest posix_spawn(3) be used: of glibc, it leaves two signals of its own ignored.
                return subprocess.Popen(program, close_fds=False, cwd=".", env={**os.environ, **told})  # noqa: S603
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            self._theirs.close()

    def _attend(self, guard: subprocess.Popen[bytes]) -> None:
        """Passes on what there is to pass on, until the guard has gone."""
        unread = b""
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        while True:
            overdue_at = self._kill_at + self._margin / 2
            if poll.poll(1000 * min(self._period, max(0.01, overdue_at - _guard.now()))):
                heard = b""
                with contextlib.suppress(OSError):
                    heard = self._line.recv(4096)
                if not heard:
                    return
                *lines, unread = (unread + heard).split(b"\n")
                for line in lines:
                    self._hear(*line.decode().split())
            self._tell_times()
            if not self._ending and self._status is None and _guard.now() >= self._kill_at + self._margin / 2:
                guard.kill()  # it is stopped: it should have said so, and ended the command, before

    def _hear(self, word: str, number: str = "0") -> None:
        if word == "started":
            self._pid = int(number)
        elif word == "failed":
            self._errno = int(number)
        elif word == "ended":
            self._status = int(number)
        elif word == "ending":
            self._ending = True
        elif word == "immortal":
            say("a process of the command may not be ended, as it runs as someone else; it goes on without the lock")
        elif word == "stopped":
            self._stopped(int(number))

    def _stopped(self, number: int) -> None:
        wants_it = number in (signal.SIGTTIN, signal.SIGTTOU)
        if (wants_it and self._terminal.hand_to(self._pid)) or self._terminal.suspend(self._pid):
            self._tell(f"signal {int(signal.SIGCONT)}")

    def _kill_time(self) -> float:
        """When nothing of the command may be left, timed backwards from the end of what is proven."""
        t = _guard.now()  # before the question, so that it errs to the safe side
        return t + self._lease.remaining() - self._margin

    def _tell_times(self) -> None:
        kill_at = self._kill_time()
        if self._lease.remaining():
            if abs(kill_at - self._kill_at) <= self._margin / 10:
                return
        elif kill_at > self._kill_at:  # it is lost, and that was said
            return
        self._kill_at = kill_at
        self._tell(f"until {kill_at - self._grace!r} {kill_at!r}")

    def _forward(self, number: int, frame: FrameType | None = None) -> None:
        self._interrupted = self._interrupted or (number == signal.SIGINT and self._terminal.fd >= 0)
        self._tell(f"signal {int(number)}")

    def _tell(self, message: str) -> None:
        with contextlib.suppress(OSError):  # it has gone
            self._line.sendall(message.encode() + b"\n")

    def _end_all(self) -> None:
        """Somebody killed the guard; with it goes the command, but on Linux alone."""
        tree = _guard.Tree(self._pid)
        while tree.lives() and tree.send(signal.SIGKILL):
            _guard.reap()
            time.sleep(_guard.SETTLE)

    def _exit_status(self, name: str) -> int:
        if self._ending:
            say(f"the command was ended, as its lock could no longer be kept: {self._reason()}")
            return LOST
        if self._errno:
            error = OSError(self._errno, os.strerror(self._errno))
            say(f"{name}: {error.strerror}")
            return NOT_FOUND if isinstance(error, (FileNotFoundError, NotADirectoryError)) else NOT_RUNNABLE
        if self._status is None:
            say("the guard of the command was killed, or could not guard it, and the command was ended")
            return LOST
        status = os.waitstatus_to_exitcode(self._status)
        return status if status >= 0 else 128 - status

    def _reason(self) -> str:
        try:
            self._lease.ensure_held()
        except LockLost as error:
            return str(error)
        return f"no renewal of {self._lease.key!r} was answered [{self._lease.backend}]"


@contextlib.contextmanager
def _inherited(fds: Sequence[int]) -> Iterator[None]:
    for fd in fds:
        os.set_inheritable(fd, True)
    try:
        yield
    finally:
        for fd in fds:
            os.set_inheritable(fd, False)


class _Terminal:
    """The controlling terminal, if there is one. A shell waits for this process, so the command, which has a group of
    its own, is stopped and continued as this process is."""

    def __init__(self) -> None:
        self.fd: int = -1
        self.was_theirs: bool = False
        """At the end."""

    def __enter__(self) -> None:
        with contextlib.suppress(OSError):
            self.fd = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def is_ours_alone(self) -> bool:
        """Else the others of a pipeline would find themselves in the background. They are asked only when there is a
        terminal, and the command gets it later, if it wants it."""
        return self._is_of(os.getpgrp()) and not any(_guard.companions())

    def hand_to(self, group: int) -> bool:
        """False: it is not ours to give."""
        if not self._is_of(os.getpgrp()):
            return False
        self._set(group)
        return True

    def take_back_from(self, group: int) -> None:
        """The command has ended."""
        self.was_theirs = self._is_of(group)
        if self.was_theirs:
            self._set(os.getpgrp())

    def suspend(self, group: int) -> bool:
        """The command was stopped: so is this process, until someone continues it. False: nobody could."""
        if self.fd < 0:
            return False
        if self._is_of(group):
            self._set(os.getpgrp())
        os.killpg(0, signal.SIGTSTP)  # to those, too, that the shell started us with; nothing if there is no such shell
        if not self.hand_to(group):
            time.sleep(BRAKE)
        return True

    def _is_of(self, group: int) -> bool:
        with contextlib.suppress(OSError):
            return self.fd >= 0 and os.tcgetpgrp(self.fd) == group
        return False

    def _set(self, group: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # as we may be in the background
        with contextlib.suppress(OSError):
            os.tcsetpgrp(self.fd, group)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})
