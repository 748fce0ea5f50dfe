"""What an adapter says of its peer: what it stands on, and what it guarantees, with the function that shows it."""

from __future__ import annotations

import importlib
import operator
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

__all__ = (
    "ADAPTERS", "PROMISES", "TTL", "WORKLOADS",
    "Claim", "Guarantees", "Peer", "absent", "folder_of", "no", "part", "peers", "port_of", "yes",
)  # fmt: skip

TTL = 30
"""Seconds for which a lock lasts, where it does not last for ever."""

WORKLOADS = ("uncontended", "hand-off", "contended", "waiting")
ADAPTERS = (
    "raw", "raw_queue", "distlock_sync", "distlock_asyncio",
    "redis_py", "redis_py_asyncio", "python_redis_lock", "pottery", "pyredlock", "redlock_py", "aioredlock", "coredis",
    "sherlock", "tooz", "py_cachify", "kazoo", "etcd3", "aetcd", "portalocker", "filelock",
)  # fmt: skip
"""The modules that say who the contenders are, floors first."""


@dataclass(frozen=True)
class Claim:
    """An answer, and the code of the pinned version that it was read in."""

    answer: str
    """``yes``, ``no`` or ``in part``."""
    seen_in: str
    """``module:name``."""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.answer}: {self.why}" if self.why else self.answer


def yes(seen_in: str, why: str = "") -> Claim:
    """It does."""
    return Claim("yes", seen_in, why)


def no(seen_in: str, why: str = "") -> Claim:
    """It does not."""
    return Claim("no", seen_in, why)


def part(seen_in: str, why: str) -> Claim:
    """Only if told so, or not quite."""
    return Claim("in part", seen_in, why)


@dataclass(frozen=True)
class Guarantees:
    """What a lock promises by itself, as it is measured here."""

    owner_check: Claim
    renewal: Claim
    fencing: Claim
    fairness: Claim
    waiting: Claim
    told: Claim
    asyncio: Claim

    def each(self) -> list[Claim]:
        """All of them, in the order of `PROMISES`."""
        return [getattr(self, field.name) for field in fields(self)]


PROMISES = (
    "a release checks the owner",
    "renews by itself",
    "fencing token",
    "first come, first served",
    "waits for a bounded time, without polling",
    "tells its holder of a loss",
    "asyncio",
)


@dataclass(frozen=True)
class Peer:
    """A contender."""

    name: str
    stores: tuple[str, ...]
    pins: str = ""
    """All packages of its environment, exactly; none: it runs in the environment that measures."""
    guarantees: Guarantees | None = None
    """Of a floor there are none."""
    python: str = "3.12"
    colour: str = "sync"
    """Or ``asyncio``."""
    workloads: tuple[str, ...] = WORKLOADS
    note: str = ""


def peers() -> dict[str, Peer]:
    """All contenders, by adapter."""
    return {name: importlib.import_module(f"{__package__}.{name}").PEER for name in ADAPTERS}


def absent(peer: Peer) -> list[str]:
    """What the claims name and the environment has not: then they were read in another version."""
    missing = []
    for claim in peer.guarantees.each() if peer.guarantees else ():
        module, _, name = claim.seen_in.partition(":")
        try:
            operator.attrgetter(name)(importlib.import_module(module))
        except (AttributeError, ImportError):
            missing.append(claim.seen_in)
    return missing


def port_of(place: str) -> int:
    """The port of a store's URL."""
    return int(urlsplit(place).port or 0)


def folder_of(place: str) -> str:
    """The path of a ``file:`` URL."""
    return urlsplit(place).path
