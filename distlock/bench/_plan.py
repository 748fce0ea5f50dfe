"""What a run is to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

__all__ = ("KILLED", "PREFIX", "Plan")

PREFIX = "distlock-bench/"
"""What all names begin with, in the namespace of the locks."""
KILLED = "killed"
"""The lock of a run whose holder is killed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Times are seconds. Every workload has ``rounds`` turns on every store."""

    urls: tuple[str, ...]
    """Of distlock, or of SQLAlchemy for row locks of a database."""
    workloads: tuple[str, ...]
    """Names of `WORKLOADS`."""
    run: str
    """What no other run is called: part of all names."""
    namespace: str | None = None
    colour: str = "sync"
    """What contenders are: threads (``sync``), or tasks of ``asyncio`` or ``trio``."""
    contenders: tuple[int, ...] = (1, 2, 4, 8)
    """How many want the same lock, where that is what is varied."""
    rounds: int = 5
    seconds: float = 0.5
    """Of each turn."""
    warm_up: float = 0.2
    """Before them, in each turn."""
    waiters: int = 20
    held: int = 100
    """Locks that are renewed."""
    keys: int = 64
    """Locks that nobody else wants, where there are many."""
    ttl: float = 1.0
    """Of the holder that is killed, and of the locks that are renewed; the least that the store allows, if longer."""
    timeout: float = 0.1
    """Of an acquire that may fail."""
    work: float = 0.001
    """For which a lock is held there."""
    pids: Mapping[int, int] = field(default_factory=dict)
    """The process of the server, by the place of its URL, counted from 1."""

    def quick(self) -> Plan:
        """Only to see that all of it runs: its figures say nothing."""
        return replace(self, rounds=1, seconds=0.1, warm_up=0.02, contenders=(1, 2), waiters=3, held=5, keys=4)

    @property
    def prefix(self) -> str:
        """Of the names of this run."""
        return f"{PREFIX}{self.run}/"
