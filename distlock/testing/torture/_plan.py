"""What a run of the torture kit is to do. All of it can be written down and given to other processes, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ("Plan",)


@dataclass(frozen=True, slots=True)
class Plan:
    """Times are seconds. The same plan with the same ``seed`` hurts the same victims at the same moments."""

    url: str
    """What the workers connect to."""
    seed: int = 0
    seconds: float = 20.0
    """How long the nemesis is at work, but for the time that it takes to hurt and to heal; what has begun by then is
    carried out. Before and after it, a ttl of peace each."""
    workers: int = 3
    """Processes."""
    actors: int = 4
    """Threads or tasks of each."""
    colours: tuple[str, ...] = ("sync", "asyncio", "trio")
    """The first worker is of the first, the second of the second, and round again."""
    keys: int = 2
    ttl: float = 2.0
    timeout: float | None = 10.0
    """Of each attempt."""
    op_timeout: float | None = None
    """Of each request; the library's own if None."""
    work: float = 0.02
    """The longest critical section; how long each is, chance says."""
    overlong: float = 0.0
    """The share of critical sections that last longer than the ttl, of locks that are not renewed."""
    grace: float = 1.0
    """What is added to the bounds of the checker: how late a slow machine may be."""
    namespace: str = "torture"
    party: str = "distlock.testing.torture._party:Distlock"
    """``module:name`` of the adapter that the workers take and leave locks with."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More for that adapter, such as the keyword arguments of `distlock.connect`."""

    def text(self) -> str:
        """For the command line of a worker, and the log."""
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str) -> Plan:
        data = json.loads(text)
        return Plan(**{**data, "colours": tuple(data["colours"])})
