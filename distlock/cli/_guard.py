"""Starts the command of `distlock run`, and sees to it that it is gone before the lease is.

A process of its own: it is the parent of the command and outlives a `distlock run` that is killed. Run as a file, so
that it imports nothing of distlock, starts in a moment and stays small. What it knows of the lease is two times, and
open files that keep the lock, if there are such: they are closed when nothing of the command is left.

usage: _guard.py SOCKET TERMINAL SHOWN KEPT LINGER TERM_AT KILL_AT COMMAND [ARGUMENT…]

TERMINAL is its descriptor or -1, SHOWN is 1 if the command begins in its foreground, KEPT are those open files.

Told, a line each:  ``until TERM_AT KILL_AT``  the lease was renewed; times of `now`
                    ``signal NUMBER``          for the command
                    the end of the line        `distlock run` is dead: the command is ended
Tells:              ``started PID``, or ``failed ERRNO``
                    ``stopped NUMBER``         the command was, by that signal
                    ``ending``                 the lease is about to end, and so is the command
                    ``immortal``               somebody may not be signalled, and lives on
                    ``ended STATUS``           of wait(2); what else is left of its group is being ended
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

__all__ = ("SETTLE", "TO_GROUP", "Guard", "Tree", "adopt_orphans", "companions", "descendants", "now", "reap")

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
SETTLE = 0.005
"""Seconds between two looks at whether those that were killed are gone; the second one is longer, and so on."""
LONGEST_WAIT = 1.0
"""Seconds. The clock of poll(2) stands still while the machine sleeps; the leases do not."""
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
CATCHABLE = sorted(set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})
TO_GROUP = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGCONT})
"""What a terminal or a shell sends to a whole group; other signals go to the command alone, as if sent to it."""


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

    def __init__(self, group: int, *, group_only: bool = False, spared: Collection[int] = ()) -> None:
        self.group_only: bool = group_only
        self._group = group
        self._spared = spared
        self._gone = not group

    def group_lives(self) -> bool:
        """Someone of the command's own group is there."""
        if not self._gone:
            try:
                os.killpg(self._group, 0)
            except ProcessLookupError:
                self._gone = True  # from now on the number may be another's
            except PermissionError:  # it runs as someone else by now
                pass
        if self._gone:
            return False
        found = _processes()  # a zombie keeps a group, too, and need not be a child of ours
        return not found or any(group == self._group for _, group in found.values())

    def lives(self) -> bool:
        """Anyone is there."""
        return self.group_lives() or (not self.group_only and any(True for _ in descendants(self._spared)))

    def send(self, number: int) -> bool:
        """To all of them. False: some may not be signalled."""
        others = [] if self.group_only else [pid for pid, group in descendants(self._spared) if group != self._group]
        allowed = True
        for pid in [*([-self._group] if self.group_lives() else []), *others]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
            except PermissionError:
                allowed = False
        return allowed


def reap() -> Sequence[tuple[int, int]]:
    """Those of our children whose state has changed: pid and status of wait(2)."""
    changes: list[tuple[int, int]] = []
    with contextlib.suppress(ChildProcessError):
        while (change := os.waitpid(-1, os.WNOHANG | os.WUNTRACED))[0]:
            changes.append(change)
    return changes


def _processes() -> Mapping[int, tuple[int, int]]:
    """All that live: parent and group by pid. See proc(5); none where there is no such thing."""
    found: dict[int, tuple[int, int]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(name)
                with open(f"/proc/{pid}/stat", "rb") as file:
                    state, parent, group = file.read().rpartition(b")")[2].split()[:3]
                if state not in (b"Z", b"X"):
                    found[pid] = int(parent), int(group)
    return found


def companions() -> Iterator[int]:
    """The others of this process's group."""
    return (pid for pid, (_, group) in _processes().items() if group == os.getpgrp() and pid != os.getpid())


def descendants(spared: Collection[int] = ()) -> Iterator[tuple[int, int]]:
    """Of this process: pid and group, in no order, but for those ``spared`` and theirs. A zombie has no children:
    they have been adopted."""
    found, me = _processes(), os.getpid()
    for pid, (parent, group) in found.items():
        spare = pid in spared
        while parent not in (0, me):
            spare = spare or parent in spared
            parent, _ = found.get(parent, (0, 0))
        if parent and not spare:
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
        self._tree = Tree(0)
        self._over = False
        """The command itself has ended."""
        self._ending = False
        """Those that are left were asked to end: there is no way back."""
        self._pause = SETTLE
        self._said = False
        self._early: list[int] = []
        """Signals that came before the command."""

    def run(self, command: Sequence[str], terminal: int, *, shown: bool) -> None:
        """Returns when nothing of the command is left."""
        wrapper = os.getpgid(os.getppid())
        os.setpgid(0, 0)
        ignored = _become_deaf()
        adopt_orphans()
        wake, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while self._line.fileno() in self._poll(-1, 0.0):
            self._listen()
        if not self._start(command, terminal if shown else -1, ignored):
            return
        while self._is_left():
            self._wait(wake)
            self._look_after_children()
            if not self._ending and now() >= self._term_at:
                self._tell("ending")
                self._end()
            if now() >= self._kill_at:
                self._kill()
        self._give_back(terminal, wrapper)

    def _start(self, command: Sequence[str], terminal: int, ignored: Collection[int]) -> bool:
        if self._ending:
            self._tell("ending")
            return False
        try:
            self._pid = spawn(command, terminal, ignored, self._term_at)
        except OSError as error:
            self._tell("ending" if error.errno == errno.ETIME else f"failed {error.errno}")
            return False
        self._tree = Tree(self._pid)
        self._tell(f"started {self._pid}")
        for number in self._early:
            self._signal(number)
        return True

    def _is_left(self) -> bool:
        return not self._over or self._tree.lives()

    def _wait(self, wake: int) -> None:
        """Until there is something to do."""
        left = (self._kill_at if self._ending else self._term_at) - now()
        if self._ending:  # their last ones need not be children of ours, and end without a sign
            left = min(left, 0.1) if left > 0 else self._pause
        ready = self._poll(wake, max(left, SETTLE))
        if wake in ready:
            os.read(wake, 512)
        if self._line.fileno() in ready:
            self._listen()

    def _poll(self, wake: int, patience: float) -> set[int]:
        poll = select.poll()
        for fd in (wake, self._line.fileno()):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        return {fd for fd, _ in poll.poll(min(patience, LONGEST_WAIT) * 1000)}

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
            if word == b"until" and self._ending:
                self._kill_at = min(self._kill_at, float(rest[1]))
            elif word == b"until":
                self._term_at, self._kill_at = float(rest[0]), float(rest[1])
            elif word == b"signal" and not self._pid:
                self._early.append(int(rest[0]))
            elif word == b"signal" and not self._over:
                self._signal(int(rest[0]))

    def _signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.kill(-self._pid if number in TO_GROUP else self._pid, number)

    def _look_after_children(self) -> None:
        for pid, status in reap():
            if pid == self._pid and os.WIFSTOPPED(status):
                self._tell(f"stopped {os.WSTOPSIG(status)}")
            elif pid == self._pid:
                self._over = True
                self._tell(f"ended {status}")
                if not self._ending:  # what has left its group, as daemons do, may stay
                    self._tree.group_only = True
                    self._kill_at = min(self._kill_at, now() + self._linger)
                    self._end()

    def _end(self) -> None:
        """Asks them to end, the stopped ones too. Who has not by ``kill_at`` is killed."""
        if not self._ending:
            self._ending = True
            for number in (signal.SIGTERM, signal.SIGCONT):
                self._tree.send(number)

    def _kill(self) -> None:
        if not self._tree.send(signal.SIGKILL) and not self._said:
            self._said = True
            self._tell("immortal")
        self._pause = min(2 * self._pause, 0.5)

    def _give_back(self, terminal: int, wrapper: int) -> None:
        """For a `distlock run` that cannot do it any more: to the shell, in its group, that waited for it."""
        if terminal >= 0 and self._line.fileno() < 0:
            with contextlib.suppress(OSError):
                if os.tcgetpgrp(terminal) == self._pid:
                    os.tcsetpgrp(terminal, wrapper)

    def _tell(self, message: str) -> None:
        with contextlib.suppress(OSError):  # it is dead, as we shall learn
            self._line.send(message.encode() + b"\n", socket.MSG_DONTWAIT)  # or it is stopped, and the line is full


def spawn(command: Sequence[str], terminal: int, ignored: Collection[int], before: float) -> int:
    """The pid of the command, in a group of its own, which has the terminal if there is one. `OSError`: why it does
    not run; ETIME if it would not have begun ``before`` that time."""
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
            if now() >= before:
                raise OSError(errno.ETIME, "too late")
            if os.getppid() == parent:
                _execute(command)
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


def _execute(command: Sequence[str]) -> None:
    try:
        os.execvp(command[0], [*command])  # noqa: S606 - that is what it is for
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        import shutil

        # As execvp(3) does, and Python does not: a script that does not say whose it is, is the shell's.
        os.execv("/bin/sh", ["sh", shutil.which(command[0]) or command[0], *command[1:]])  # noqa: S606


def _become_deaf() -> Collection[int]:
    """From now on nothing but SIGKILL ends us before our time. What was ignored already, as under nohup."""
    ignored = {number for number in CATCHABLE if signal.getsignal(number) is signal.SIG_IGN}
    for number in CATCHABLE:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CATCHABLE)
    # Python itself ignores these.
    return ignored - {getattr(signal, name, 0) for name in ("SIGPIPE", "SIGXFSZ")}


def main(argv: Sequence[str]) -> None:
    line, terminal, shown = (int(text) for text in argv[:3])
    kept = [int(text) for text in argv[3].split(",") if text]
    for fd in (line, terminal, *kept):
        if fd >= 0:
            os.set_inheritable(fd, False)
    linger, term_at, kill_at = (float(text) for text in argv[4:7])
    guard = Guard(socket.socket(fileno=line), linger, term_at, kill_at)
    guard.run(argv[7:], terminal, shown=bool(shown))


if __name__ == "__main__":
    main(sys.argv[1:])
