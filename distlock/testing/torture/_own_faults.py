"""Faults that are made of what somebody has at hand: processes to be stopped, commands of a shell."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from ..._types import Fault
from ._faults import Arena, Hurt

__all__ = ("hook", "stop_of")

PATIENCE = 120.0
"""Seconds for a command to end."""


def stop_of(pid: int, excused: frozenset[Fault] = frozenset()) -> Hurt:
    """SIGSTOP and SIGCONT of a server process on this machine. `OSError` if that is not allowed."""
    os.kill(pid, 0)

    @contextmanager
    def strike(arena: Arena) -> Iterator[str]:
        os.kill(pid, signal.SIGSTOP)
        try:
            yield f"pid {pid}"
        finally:
            os.kill(pid, signal.SIGCONT)

    return Hurt(f"SIGSTOP of pid {pid}", strike, excused=excused)


def hook(name: str, begin: str, end: str, excused: frozenset[Fault] = frozenset()) -> Hurt:
    """Two commands of a shell: one that hurts, one that heals (the latter even if the former failed). A command that
    fails is a fault that could not be made, and so the run fails."""

    @contextmanager
    def strike(arena: Arena) -> Iterator[str]:
        try:
            _shell(begin)
            yield begin
        finally:
            _shell(end)

    return Hurt(name, strike, excused=excused)


def _shell(command: str) -> None:
    # Ctrl-C is for the run, which heals what it has hurt: no command may be cut off by it, least of all one that heals.
    words = f"trap '' INT HUP\n{command}"
    # What it may leave running must not hold a pipe of ours open, for whose end we would wait.
    done = subprocess.run(  # noqa: S602 - a shell is what was asked for
        words, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False, timeout=PATIENCE
    )
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode} of: {command}")
