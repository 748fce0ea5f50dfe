"""Starts the command of `distlock run`, and sees to it that it is gone before the lease is.

A process of its own: it is the parent of the command and outlives a `distlock run` that is killed. Run as a file, so
that it imports nothing of distlock, starts in a moment and stays small. It knows one pipe and two times.

usage: _guard.py SOCKET TERMINAL LINGER TERM_AT KILL_AT COMMAND [ARGUMENT…]

Told, a line each:  ``until TERM_AT KILL_AT``  the lease was renewed; times of `now`
                    ``signal NUMBER``          for the command
                    the end of the line        `distlock run` is dead: the command is ended
Tells:              ``started PID``, or ``failed ERRNO``
                    ``stopped``                the command was, by Ctrl-Z or the like
                    ``ending``                 the lease is about to end, and so is the command
                    ``ended STATUS``           of wait(2); what else is left of its group is being ended
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator, Sequence

__all__ = ("SETTLE", "Guard", "Tree", "adopt_orphans", "now", "reap")

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
SETTLE = 0.005
"""Seconds between two looks at whether those that were killed are gone."""
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
CATCHABLE = sorted(set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})


def now() -> float:
    """Seconds on a clock that never steps, and goes on while the machine sleeps, as the leases do."""
    return time.clock_gettime(CLOCK)


def _prctl(option: int, value: int) -> None:
    """Linux alone has it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def adopt_orphans() -> None:
    """From now on what descends from this process stays below it, whoever in between dies."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


class Tree:
    """The process group of a command; and on Linux all that descends from this process."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._gone = False

    def group_lives(self) -> bool:
        """Someone of the command's own group is there."""
        if not self._gone:
            try:
                os.killpg(self._group, 0)
            except ProcessLookupError:
                self._gone = True  # from now on the number may be another's
            except PermissionError:  # it runs as someone else by now
                pass
        return not self._gone

    def lives(self) -> bool:
        """Anyone is there."""
        return self.group_lives() or any(True for _ in _descendants())

    def send(self, number: int, *, group_only: bool = False) -> None:
        """To all of them."""
        if self.group_lives():
            with contextlib.suppress(OSError):
                os.killpg(self._group, number)
        for pid, group in () if group_only else list(_descendants()):
            if group != self._group:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)


def reap() -> Sequence[tuple[int, int]]:
    """Those of our children whose state has changed: pid and status of wait(2)."""
    changes: list[tuple[int, int]] = []
    with contextlib.suppress(ChildProcessError):
        while (change := os.waitpid(-1, os.WNOHANG | os.WUNTRACED))[0]:
            changes.append(change)
    return changes


def _descendants() -> Iterator[tuple[int, int]]:
    """Of this process: pid and group, alive, in no order. See proc(5); nobody where there is no such thing."""
    found: dict[int, tuple[int, int, bool]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(name)
                with open(f"/proc/{pid}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                found[pid] = int(fields[1]), int(fields[2]), fields[0] not in (b"Z", b"X")
    me = os.getpid()
    for pid, (parent, group, alive) in found.items():
        while parent not in (0, me):
            parent, _, _ = found.get(parent, (0, 0, False))
        if parent and alive:
            yield pid, group


class Guard:
    """Of one command."""

    def __init__(self, line: socket.socket, linger: float, term_at: float, kill_at: float) -> None:
        self._line = line
        self._heard = b""
        self._linger = linger
        self._term_at = term_at
        self._kill_at = kill_at
        self._pid = 0
        self._over = False
        """The command itself has ended."""
        self._ending = False
        """Those that are left were asked to end: there is no way back."""
        self._group_only = False
        """The command ended by itself; what has left its group, as daemons do, may stay."""

    def run(self, command: Sequence[str], terminal: int, ignored: Collection[int]) -> None:
        """Returns when nothing of the command is left."""
        wake, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            self._pid = spawn(command, terminal, ignored)
        except OSError as error:
            self._tell(f"failed {error.errno}")
            return
        _let_go_of_stdio()
        self._tell(f"started {self._pid}")
        self._tree = Tree(self._pid)
        while self._is_left():
            self._wait(wake)
            self._look_after_children()
            if not self._ending and now() >= self._term_at:
                self._tell("ending")
                self._end()
            if now() >= self._kill_at:
                self._tree.send(signal.SIGKILL, group_only=self._group_only)

    def _is_left(self) -> bool:
        return not self._over or self._tree.group_lives() or (not self._group_only and self._tree.lives())

    def _wait(self, wake: int) -> None:
        """Until there is something to do."""
        left = (self._kill_at if self._ending else self._term_at) - now()
        if self._ending:  # their last ones need not be children of ours, and end without a sign
            left = min(left, 0.1)
        lines: list[int] = [wake] if self._line.fileno() < 0 else [wake, self._line.fileno()]
        ready, _, _ = select.select(lines, [], [], min(max(left, SETTLE), 3600.0))
        if wake in ready:
            os.read(wake, 512)
        if ready not in ([], [wake]):
            self._listen()

    def _listen(self) -> None:
        heard = b""
        with contextlib.suppress(OSError):
            heard = self._line.recv(4096)
        if not heard:
            self._line.close()
            self._end()
            return
        *lines, self._heard = (self._heard + heard).split(b"\n")
        for line in lines:
            word, *rest = line.split()
            if word == b"signal" and not self._over:
                with contextlib.suppress(OSError):
                    os.killpg(self._pid, int(rest[0]))
            elif word == b"until" and self._ending:
                self._kill_at = min(self._kill_at, float(rest[1]))
            elif word == b"until":
                self._term_at, self._kill_at = float(rest[0]), float(rest[1])

    def _look_after_children(self) -> None:
        for pid, status in reap():
            if pid == self._pid and os.WIFSTOPPED(status):
                self._tell("stopped")
            elif pid == self._pid:
                self._over = True
                self._tell(f"ended {status}")
                if not self._ending:
                    self._group_only = True
                    self._kill_at = min(self._kill_at, now() + self._linger)
                    self._end()

    def _end(self) -> None:
        """Asks them to end, the stopped ones too. Who has not by ``kill_at`` is killed."""
        if not self._ending:
            self._ending = True
            for number in (signal.SIGTERM, signal.SIGCONT):
                self._tree.send(number, group_only=self._group_only)

    def _tell(self, message: str) -> None:
        with contextlib.suppress(OSError):  # it is dead, as we shall learn
            self._line.sendall(message.encode() + b"\n")


def _let_go_of_stdio() -> None:
    """Whoever reads what the command writes, or feeds it, need not wait for us too."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nothing, fd)


def spawn(command: Sequence[str], terminal: int, ignored: Collection[int]) -> int:
    """The pid of the command, in a group of its own, which has the terminal if there is one."""
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            if terminal >= 0:
                os.tcsetpgrp(terminal, os.getpid())
            for number in CATCHABLE:
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # should even we be killed
            if os.getppid() == parent:
                os.execvp(command[0], [*command])  # noqa: S606 - that is what it is for
        except OSError as error:
            os.write(writer, str(error.errno).encode())
        finally:
            os._exit(127)
    os.close(writer)
    with open(reader, "rb") as failure:
        if failed := failure.read():
            os.waitpid(pid, 0)
            raise OSError(int(failed), os.strerror(int(failed)))
    return pid


def _become_deaf() -> Collection[int]:
    """From now on nothing but SIGKILL ends us before our time. What was ignored already, as under nohup."""
    ignored = {number for number in CATCHABLE if signal.getsignal(number) is signal.SIG_IGN}
    for number in CATCHABLE:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CATCHABLE)
    # Python itself ignores these.
    return ignored - {getattr(signal, name, 0) for name in ("SIGPIPE", "SIGXFSZ")}


def main(argv: Sequence[str]) -> None:
    os.setpgid(0, 0)
    ignored = _become_deaf()
    adopt_orphans()
    line, terminal = int(argv[0]), int(argv[1])
    for fd in (line, terminal):
        if fd >= 0:
            os.set_inheritable(fd, False)
    linger, term_at, kill_at = (float(text) for text in argv[2:5])
    Guard(socket.socket(fileno=line), linger, term_at, kill_at).run(argv[5:], terminal, ignored)


if __name__ == "__main__":
    main(sys.argv[1:])
