"""The values that cross the border between the core and a backend, and those users see."""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

__all__ = (
    "Busy",
    "Claim",
    "Done",
    "Fault",
    "Grant",
    "Guarantees",
    "Holder",
    "Inspection",
    "LeaseState",
    "Renewal",
    "Waiter",
)


class LeaseState(enum.Enum):
    """What is known of a lease, by the local clock and the last answer of the store."""

    HELD = "held"
    UNKNOWN = "unknown"
    """Renewal or release is failing; still inside the proven time."""
    LOST = "lost"
    RELEASED = "released"


class Fault(enum.Enum):
    """What can go wrong with a store, for `Guarantees.excepted`."""

    LOST_WRITES = "the store restarts without its last writes (for Redis, the tail of the AOF)"
    EMPTY_RESTART = "the store restarts empty"
    FAILOVER = "a replica without the latest writes is promoted"
    EVICTION = "the store evicts keys to free memory"
    DELETED = "someone deletes the lock's data (FLUSHALL, DEL, rm)"
    STORE_CLOCK_JUMP = "the store's clock jumps"
    CLOCK_SET_BACK = "the machine's wall clock is set back across a restart"
    STOPPED_WAITER = "a waiting process that is stopped (SIGSTOP) is given the lock and keeps it until it goes on"
    STALE_LEADER = "a leader that was voted out and does not know it yet answers, or ends leases (etcd before 3.5)"
    FOREIGN_MACHINE = "two machines use it at the same time (a shared or network folder)"


@dataclass(frozen=True, slots=True)
class Guarantees:
    """What a backend promises, and under which faults it does not."""

    backend: str
    scope: str
    """``"process"``, ``"machine"`` or ``"network"``: who is kept out."""
    fenced: bool
    """Every grant has a token above all earlier ones of its key."""
    fair: bool
    """First come, first served."""
    dead_holder: str
    """How a holder that died is noticed: ``"ttl"``, ``"session"`` or ``"at once"``."""
    owner_reentrant: bool
    """``reentrant=True`` with an explicit ``owner`` works, across processes where the scope has them."""
    extend: bool
    """``lease.extend(ttl)`` can set another length than the lock's own."""
    excepted: frozenset[Fault] = frozenset()
    """Faults under which two holders may overlap or tokens may fall."""


# These two are made for every lock: a frozen dataclass takes three times as long to make.


class Claim(NamedTuple):
    """One acquire call: the unit of idempotency and of ownership."""

    id: str
    """Never given out twice: ASCII, without blanks and commas."""
    key: str
    """The lock's name."""
    ttl: float
    """Seconds."""
    wait: bool
    """Queue for the lock when it is taken."""
    owner: str | None = None
    """Who re-enters: only meaningful with ``reentrant``."""
    reentrant: bool = False
    """Others of the same ``owner`` may enter, too."""
    about: str = "{}"
    """Who asks, as the text that `Waiter.read` understands; backends store it and give it back."""
    renewed: bool = True
    """It is to be renewed until it is released; False: not at all, or not for ever."""


class Confirmation(Protocol):
    """The request that makes a provisional grant a whole one. It was sent; the lock is entered before the answer."""

    def outcome(self, patience: float) -> Renewal | None:
        """What it has brought: UNKNOWN, if no answer will come; None, if none came within so many seconds.

        Thread-safe. Raises nothing of its own.
        """


class Grant(NamedTuple):
    """The store gave the lock to ``claim``."""

    claim: Claim
    """Who asked."""
    token: int
    """The fencing token: above that of every earlier grant of this key."""
    deadline: float
    """Until when holding is proven, by `distlock._clock.now`; counted from *before* the request was sent."""
    in_flight: bool = False
    """An earlier request for it was not answered and may still be on its way. After the release it must come to
    nothing."""
    confirmation: Confirmation | None = None
    """``deadline`` is that of a lock which was handed over provisionally; this will prove it for longer."""
    until: float | None = None
    """Of a store whose sessions have a length of their own: the end of the ttl, if ``deadline`` may be sooner and is to
    be moved by renewing, even for a lock that is not to be renewed beyond its ttl."""


class Done(NamedTuple):
    """There is nothing to hold: the work under this key was completed, and its record is kept."""

    claim: Claim
    """Who asked. Nothing of it is left in the store."""
    record: bytes
    """As it was given to `SyncBackend.complete`."""
    expires_in: float | None = None
    """Seconds for which the store keeps it from now on; None: it did not say in the same step."""
    in_flight: bool = False
    """As in `Grant`; it comes to nothing for as long as the record is kept."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """Who waits for a lock, as it described itself."""

    owner: str
    host: str = "?"
    pid: int = 0
    where: str = ""
    """Thread or task."""
    site: str = ""
    """``file.py:line`` of the call."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def read(owner: str, about: str) -> Waiter:
        """What `describe` wrote; anything else is an unknown waiter, never an error."""
        return Waiter(**_read(owner, about))  # type: ignore[arg-type]

    def __str__(self) -> str:
        if not self.pid:  # it did not describe itself
            return self.owner
        site = f" ({self.site})" if self.site else ""
        return f"{self.host} pid {self.pid}{site}"


@dataclass(frozen=True, slots=True)
class Holder(Waiter):
    """Who holds a lock."""

    token: int | None = None
    held_for: float | None = None
    """Seconds since the grant, by the store's clock."""
    ttl: float | None = None
    """Seconds until the store would end it; ``None`` where a holder's life is not measured in seconds."""

    @staticmethod
    def found(owner: str, about: str, *, token: int | None, held_for: float | None, ttl: float | None) -> Holder:
        """A holder from the text that `describe` wrote and what the store knows."""
        return Holder(**_read(owner, about), token=token, held_for=held_for, ttl=ttl)  # type: ignore[arg-type]

    @property
    def since(self) -> float | None:
        """Unix time of the grant, by this machine's wall clock."""
        return None if self.held_for is None else time.time() - self.held_for

    def __str__(self) -> str:
        age = "" if self.held_for is None else f" for {self.held_for:.1f} s"
        token = "" if self.token is None else f", token {self.token}"
        return f"{Waiter.__str__(self)}{age}{token}"


@dataclass(frozen=True, slots=True)
class Busy:
    """The lock is someone else's."""

    claim: Claim
    found: Holder | Callable[[], Holder | None] | None = None
    """Who has it, or how to find that out of what the store said: few of those who wait want to know."""
    retry_after: float | None = None
    """Seconds after which to ask again even if nothing woke the waiter. ``inf``: the watch finds by itself what a lost
    wake-up would have said; ``None``: the core's own bound, 30 s."""
    in_flight: bool = False
    """As in `Grant`."""
    ends_in: float | None = None
    """Seconds until the store frees it by itself, where that is known."""

    @property
    def holder(self) -> Holder | None:
        """Who has it."""
        return self.found() if callable(self.found) else self.found


@dataclass(frozen=True, slots=True)
class Renewal:
    """What came of renewing one grant: ``HELD`` until a new ``deadline``, ``LOST``, or ``UNKNOWN``."""

    state: LeaseState
    deadline: float = 0.0


@dataclass(frozen=True, slots=True)
class Inspection:
    """A lock as the store sees it now. Already old when you read it: for people, not for decisions."""

    key: str
    holder: Holder | None
    waiters: tuple[Waiter, ...] = ()


_encode = json.JSONEncoder(separators=(",", ":")).encode


def describe(host: str, pid: int, where: str, site: str, metadata: Mapping[str, str] | None) -> str:
    """The text that a store keeps beside a claim."""
    return _encode({"h": host, "p": pid, "w": where, "s": site, "m": metadata} if metadata else
                   {"h": host, "p": pid, "w": where, "s": site})  # fmt: skip


def _read(owner: str, about: str) -> dict[str, object]:
    try:
        data = json.loads(about)
        metadata = {str(k): str(v) for k, v in data.get("m", {}).items()}
        return {
            "owner": owner,
            "host": str(data.get("h", "?")),
            "pid": int(data.get("p", 0)),
            "where": str(data.get("w", "")),
            "site": str(data.get("s", "")),
            "metadata": metadata,
        }
    except (ValueError, TypeError, AttributeError):
        return {"owner": owner}
