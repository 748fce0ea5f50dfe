"""A command under a lease: started and ended by a guard, with the terminal and the signals passed on to it."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from distlock import Lease, LockLost

from . import _guard
from ._app import LOST, say

__all__ = ("Command", "Job", "caught")

NOT_RUNNABLE, NOT_FOUND = 126, 127
"""As shells have it."""
BRAKE = 0.05
"""Seconds between two tries of what may not succeed at once."""
PATIENCE = 1.0
"""Seconds that a guard gets which learns of the end of the lease only when it is over."""
FORWARDED = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2})


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
        self._margin = min(2.0, ttl / 10)
        self._period = ttl / 10
        self._kill_at = 0.0
        self._overdue_at = math.inf
        self._line, self._theirs = socket.socketpair()
        self._terminal = _Terminal()
        self._pid = 0
        self._status: int | None = None
        self._errno = 0
        self._ending = False
        self._immortal = False
        self._interrupted = False
        self._others: Collection[int] = ()
        """Children that this process had before, of whoever has executed it."""
        # The thread that announces a loss tells the guard, too, and must have the last word.
        self._telling = threading.Lock()
        self._told = math.nan

    def run(self, command: Sequence[str]) -> int:
        """The exit status, when nothing is left of the command; 128 + n if signal n ended it."""
        _guard.adopt_orphans()
        self._others = {pid for pid, _ in _guard.descendants()}
        with caught(self._forward), self._terminal, self._terminal.stopped_by(self._forward):
            guard = self._guard_of(command)
            try:
                self._lease.on_lost(self._tell_times)
                self._attend(guard)
            finally:
                self._line.close()
                if guard.wait():  # somebody killed it; with it goes the command, but on Linux alone
                    self._end_all(group_only=self._status is not None and not self._ending)
                self._terminal.take_back_from(self._pid)
        return self._exit_status(command[0])

    @property
    def cut_off(self) -> bool:
        """It was ended, as its lease could not be kept. Its status does not tell, for commands may have the same."""
        return self._ending or not (self._errno or self._status is not None)

    @property
    def ran(self) -> bool:
        """It was started, and ended by itself."""
        return self._status is not None and not self._ending

    @property
    def interrupted(self) -> bool:
        """By Ctrl-C at the terminal, as this process has to be, then."""
        ended_so = self._status is not None and self._status & 0x7F == signal.SIGINT
        return ended_so and (self._interrupted or self._terminal.was_theirs)

    @property
    def alone_interrupted(self) -> bool:
        """The command had the terminal to itself, and whoever started this process knows nothing of that Ctrl-C."""
        return self._terminal.was_theirs and not any(_guard.companions())

    def _guard_of(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        terminal, line = self._terminal.fd, self._theirs.fileno()
        kept = [os.dup(fd) for fd in self._lease.descriptors]  # a loss may close the lease's own in the meantime
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
                # stdin is named lest posix_spawn(3) be used: that of glibc leaves two of its own signals ignored.
                return subprocess.Popen(program, close_fds=False, stdin=0, env={**os.environ, **told})  # noqa: S603
        finally:
            for fd in kept:
                os.close(fd)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            self._theirs.close()

    def _attend(self, guard: subprocess.Popen[bytes]) -> None:
        """Passes on what there is to pass on, until the guard has gone."""
        unread = b""
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        while True:
            due = min(self._kill_at, self._overdue_at) - _guard.now()
            if poll.poll(1000 * min(self._period, _guard.LONGEST_WAIT, due if due > 0 else BRAKE)):
                heard = b""
                with contextlib.suppress(OSError):
                    heard = self._line.recv(4096)
                if not heard:
                    return
                *lines, unread = (unread + heard).split(b"\n")
                for line in lines:
                    self._hear(*line.decode().split())
            self._tell_times()
            if self._is_overdue() and not self._immortal:
                guard.kill()  # it is stopped

    def _is_overdue(self) -> bool:
        """Nothing should be left of the command, and the guard had time to see to that."""
        t = _guard.now()
        if t < self._kill_at:
            self._overdue_at = math.inf
        elif self._overdue_at == math.inf:
            # Long past: everybody slept, or the lease was taken away. The guard has only just been told, too.
            slept = t - self._kill_at > self._margin / 2
            self._overdue_at = t + (PATIENCE if slept else self._margin / 2)
        return t >= self._overdue_at

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
            self._immortal = True
            say("a process of the command may not be killed, as it runs as another user; end it by hand")
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
        with self._telling:
            lost, kill_at = not self._lease.remaining(), self._kill_time()
            self._kill_at = min(self._kill_at, kill_at) if lost else kill_at
            known = self._told <= self._kill_at if lost else abs(self._told - kill_at) <= self._margin / 10
            if not known and self._tell(f"until {self._kill_at - self._grace!r} {self._kill_at!r}"):
                self._told = self._kill_at

    def _forward(self, number: int, frame: FrameType | None = None) -> None:
        self._interrupted = self._interrupted or (number == signal.SIGINT and self._terminal.fd >= 0)
        self._tell(f"signal {int(number)}")

    def _tell(self, message: str) -> bool:
        with contextlib.suppress(OSError):  # it has gone, or is stopped and the line is full
            return self._line.send(message.encode() + b"\n", socket.MSG_DONTWAIT) > 0
        return False

    def _end_all(self, *, group_only: bool) -> None:
        """What the guard has not."""
        tree, pause = _guard.Tree(self._pid, group_only=group_only, spared=self._others), _guard.SETTLE
        while tree.lives():
            if not tree.send(signal.SIGKILL) and pause > BRAKE:
                self._hear("immortal")
                return
            _guard.reap()
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

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


@dataclass
class Job:
    """What to run under which name, and how."""

    key: str
    command: Sequence[str]
    ttl: float
    grace: float
    child: Command | None = None
    """Once it runs."""

    @property
    def cut_off(self) -> bool:
        """See `Command.cut_off`."""
        return self.child is not None and self.child.cut_off

    @property
    def ran(self) -> bool:
        """See `Command.ran`."""
        return self.child is not None and self.child.ran

    @property
    def about(self) -> Mapping[str, str]:
        """Shown to whoever waits or looks."""
        return {"command": os.path.basename(self.command[0])}

    def run(self, lease: Lease) -> int:
        """The exit status of the command, which `lease` outlives."""
        self.child = Command(lease, self.ttl, self.grace)
        return self.child.run(self.command)


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
        self._given = False

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
        self._given = self._is_of(os.getpgrp()) and not any(_guard.companions())
        return self._given

    def hand_to(self, group: int) -> bool:
        """False: it is not ours to give."""
        if not self._is_of(os.getpgrp()):
            return False
        self._set(group)
        return True

    def take_back_from(self, group: int) -> None:
        """The command has ended."""
        self.was_theirs = self._is_of(group)
        if self.was_theirs or (self._given and not group):  # it had it before it could not be executed
            self._set(os.getpgrp())

    @contextlib.contextmanager
    def stopped_by(self, handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
        """Ctrl-Z goes to ``handler``, where it comes to this process: the command did not have the terminal."""
        before = signal.getsignal(signal.SIGTSTP)
        if self.fd >= 0 and before is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGTSTP, before)

    def suspend(self, group: int) -> bool:
        """The command was stopped: so is this process, until someone continues it. False: nobody could."""
        if self.fd < 0:
            return False
        if self._is_of(group):
            self._set(os.getpgrp())
        before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.killpg(0, signal.SIGTSTP)  # to those, too, that the shell started us with; nothing if there is no such shell
        signal.signal(signal.SIGTSTP, before)
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
