"""What a run comes to in numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median

from ._events import What
from ._holdings import Attempt, History
from ._liveness import gaps
from ._verdict import Figures

__all__ = ("measure",)


def measure(history: History) -> Figures:
    """All figures of a run."""
    attempts, seconds = history.attempts, history.ended - history.began
    granted = [one for one in attempts if one.got]
    ends = Counter(one.gave_up.what for one in attempts if one.gave_up)
    handovers = sorted(_handovers(history))
    return Figures(
        seconds=seconds,
        attempts=len(attempts),
        grants=len(granted),
        busy=ends[What.BUSY],
        failed=ends[What.FAILED],
        cancelled=ends[What.CANCELLED],
        lost=sum(one.lost is not None for one in attempts),
        writes=sum(event.what is What.TOOK for event in history.register),
        refused=sum(event.what is What.TURNED_DOWN for event in history.register),
        grants_per_s=len(granted) / seconds if seconds else 0.0,
        handover_median=median(handovers) if handovers else None,
        handover_p99=handovers[math.ceil(len(handovers) * 0.99) - 1] if handovers else None,
        longest_wait=max((min(one.waits_until, history.ended) - one.waits_from for one in attempts), default=None),
        fairness=_fairness(attempts),
        recovery=max(_recoveries(history), default=None),
        faults=dict(sorted(Counter(trouble.fault for trouble in history.troubles).items())),
    )


def _handovers(history: History) -> Iterator[float]:
    for attempts in history.by_key().values():
        granted = sorted((one for one in attempts if one.got), key=lambda one: one.from_)
        for one, other in pairwise(granted):
            left = one.leaves.t if one.leaves and one.released else math.inf
            if other.waits_from < left < other.from_:
                yield other.from_ - left


def _fairness(attempts: Sequence[Attempt]) -> float | None:
    grants = Counter({one.who: 0 for one in attempts})
    grants.update(one.who for one in attempts if one.got)
    if not grants or not max(grants.values()):
        return None
    fewest = min(grants.values())
    return max(grants.values()) / fewest if fewest else math.inf


def _recoveries(history: History) -> Iterator[float]:
    for key, attempts in history.by_key().items():
        yield from (gap.wanted(gap.since, gap.until) for gap in gaps(history, key, attempts) if gap.killed)
