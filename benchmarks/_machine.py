"""Keeping a measurement comparable: processors of one's own that never idle; and what machine and process say."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

from distlock.bench import _machine
from distlock.bench._machine import versions

__all__ = ("CLIENT", "SERVER", "awake", "description", "pin", "traffic", "versions")

# It ends by itself when whoever started it is gone, however that came.
SPINNER = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
parent = int(sys.argv[2])
while os.getppid() == parent:
    for _ in range(50_000):
        pass
"""


def _processors() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


_ALLOWED = _processors()
CLIENT = _ALLOWED[0] if len(_ALLOWED) > 1 else None
"""The processor of what is measured; None if there is but one."""
SERVER = _ALLOWED[1] if len(_ALLOWED) > 1 else None
"""The processor of the server, or of the second process."""


def pin(pid: int, processor: int | None) -> None:
    """Binds all threads of a process (0: this one) to a processor, where there are several."""
    if processor is None:
        return
    for thread in os.listdir(f"/proc/{pid or os.getpid()}/task"):
        os.sched_setaffinity(int(thread), {processor})


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keeps both processors from idling, by programs that run only when nothing else wants to.

    Waking an idle virtual processor costs more than a request to Redis does, and not always the same.
    """
    spinners = []
    try:
        if hasattr(os, "SCHED_IDLE") and SERVER is not None:
            for processor in (CLIENT, SERVER):
                argv = [sys.executable, "-I", "-S", "-c", SPINNER, str(processor), str(os.getpid())]
                spinners.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL))
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def description() -> dict[str, str]:
    """What readers must know to judge the figures."""
    return {
        **_machine.description(),
        "kept awake by SCHED_IDLE spinners": "yes" if hasattr(os, "SCHED_IDLE") and SERVER is not None else "no",
    }


def traffic() -> tuple[int, int]:
    """Bytes that the open TCP connections of this process have sent and received, by the kernel's account."""
    sent = received = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # not all are sockets, nor all of them TCP
            link = socket.socket(fileno=int(name))
            try:
                info = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
            finally:
                link.detach()
            acknowledged, arrived = struct.unpack_from("QQ", info, 120)
            sent, received = sent + acknowledged, received + arrived
    return sent, received
