"""What the checker says of a run."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..._types import Fault, Guarantees
from ._events import Event
from ._plan import Plan

__all__ = ("Figures", "Finding", "Kind", "Verdict")


class Kind(enum.Enum):
    """What can be wrong. The first five are never forgiven but for what `Guarantees.excepted` names."""

    SILENT_OVERLAP = "two held one lock, each sure of it and neither told"
    STALE_WRITE = "a write was taken from one whose turn had passed on to another that had read or written"
    LOST_UPDATE = "a write was taken that did not know of the one before it"
    TOKEN_REPEATED = "two grants of one lock have the same token"  # noqa: S105 - not that kind of token
    TOKEN_FELL = "a later grant has a lower token"  # noqa: S105
    LOST_WAKEUP = "a lock was released and wanted, but handed on too late"
    ORPHAN = "a lock was free, or its holder dead or gone, and wanted, but nobody was given it"
    SLOW_RECOVERY = "a lock whose holder was killed came free too late"
    STARVATION = "one waited while those who came later were served again and again"
    LATE_TIMEOUT = "the end of waiting came later than it should have"
    HANG = "an attempt, or a process, did not end"
    UNPROVOKED = "an error, without any fault"
    AFTER_FORK = "a forked child could use its parent's lock, or did not end well"
    CLIENT_LEAK = "a process had more threads, descriptors, … at its end than at its beginning"
    STORE_LEAK = "something of locks that are free was left in the store"
    NOT_FREE = "a lock that nobody held could not be had after the end"
    BROKEN_RUN = "something went wrong with the run itself, so that it proves less than it should"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    kind: Kind
    text: str
    """What, for people."""
    proof: tuple[Event, ...]
    """The events that show it, in order."""
    excused: Fault | None = None
    """It came with a fault that the backend says it cannot stand."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Times are seconds; None where there was nothing to measure."""

    seconds: float = 0.0
    """From the first event to the last."""
    attempts: int = 0
    grants: int = 0
    busy: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0
    """Holders that were told of a loss."""
    writes: int = 0
    refused: int = 0
    """Writes that the register turned down for their tokens."""
    grants_per_s: float = 0.0
    handover_median: float | None = None
    """From when one began to release until one that waited had the lock."""
    handover_p99: float | None = None
    longest_wait: float | None = None
    fairness: float | None = None
    """The most grants that an actor had, by the fewest; ``inf`` if one had none."""
    recovery: float | None = None
    """The longest that a lock was wanted after its holder was killed."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """How often the nemesis struck, by fault."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that is known of a run."""

    plan: Plan
    guarantees: Guarantees
    findings: tuple[Finding, ...]
    figures: Figures

    @property
    def ok(self) -> bool:
        """Nothing is wrong that is not excused."""
        return all(finding.excused for finding in self.findings)

    def count(self, kind: Kind, *, excused: bool = False) -> int:
        """How many findings of a kind there are that are excused, or that are not."""
        return sum(finding.kind is kind and bool(finding.excused) is excused for finding in self.findings)
