"""One process that has to run: started, signalled, ended, with a log of its own."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ("CannotStart", "Process", "end", "listen")

STOP_TIMEOUT = 10.0
"""Seconds. Who was asked to end, and has not by then, is killed."""
TAIL = 15
"""Lines of a log that are shown."""
TIED = Path(__file__).resolve().parent / "tied.py"
# Below the ports that the kernel gives to outgoing connections: a client that keeps dialling the port of a server
# that is down must not end up connected to itself.
PORTS = range(15_000, 22_000)


class CannotStart(Exception):
    """The shop does not run. The message says why and, where it is known, what to do."""


@dataclass(eq=False)
class Process:
    """Of one name, in one life after the other. It is started by one thread, for which see `start`."""

    role: str
    name: str
    command: Sequence[str]
    log: Path
    listener: socket.socket | None = None
    """What it serves. It is open here as well: the port is never lost, and visitors wait for the next life."""
    popen: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    """When its life began, on the monotonic clock."""
    lives: int = 0

    @property
    def alive(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def start(self, environment: Mapping[str, str]) -> None:
        """In a session of its own, so that Ctrl-C in a terminal reaches the one who ends it in order, and not itself.

        The kernel kills it when the *thread* that calls this ends.
        """
        tied = [sys.executable, "-I", "-S", str(TIED), str(os.getpid())]
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*tied, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[self.listener.fileno()] if self.listener else [],
                env={**os.environ, **environment},
            )
        self.started = time.monotonic()
        self.lives += 1

    def signal(self, number: int) -> None:
        """Nothing happens if it is dead."""
        if self.popen is not None:
            self.popen.send_signal(number)

    @property
    def status(self) -> int | None:
        """With which its last life ended; a signal is negative."""
        return self.popen.returncode if self.popen else None

    @property
    def fate(self) -> str:
        """How its last life ended, with the end of the log."""
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL:]
        return "\n".join([f"{self.name} ended with status {self.status}; the end of {self.log}:", *lines])


def end(processes: Iterable[Process]) -> None:
    """All at once, those that stand still too. Returns when they are gone."""
    running = [each.popen for each in processes if each.popen]
    for popen in running:
        for number in (signal.SIGTERM, signal.SIGCONT):
            popen.send_signal(number)
    deadline = time.monotonic() + STOP_TIMEOUT
    for popen in running:
        with suppress(subprocess.TimeoutExpired):
            popen.wait(max(0.0, deadline - time.monotonic()))
        popen.kill()
        popen.wait()


def listen(port: int = 0) -> socket.socket:
    """A TCP socket of this machine that is listened on; 0 for any free port. `CannotStart`: it is taken."""
    problem: OSError | None = None
    for each in [port] if port else random.sample(PORTS, 200):
        listener = socket.socket()
        # Any port is not one that was in use a moment ago: its server may be about to start again.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(port != 0))
        # Connections inherit it. Those of a listener that was handed down would wait for acknowledgements else.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind(("127.0.0.1", each))
            listener.listen(2048)
        except OSError as error:
            problem = error
            listener.close()
        else:
            return listener
    raise CannotStart(f"port {port or 'any'} of 127.0.0.1: {problem.strerror if problem else ''}") from problem
