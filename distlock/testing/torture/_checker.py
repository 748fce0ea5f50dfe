"""The judge of a run: it knows nothing but the events, and what the backend promises.

Whatever is not safe is never forgiven, but for the faults that the backend excepts; whatever is late is forgiven while
somebody was hurt who could have delayed it. Each finding carries the events that prove it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ..._types import Guarantees
from ._events import Event
from ._figures import measure
from ._holdings import History, Life, gather
from ._liveness import late
from ._safety import unsafe
from ._verdict import Figures, Finding, Kind, Verdict

__all__ = ("Figures", "Finding", "Kind", "Verdict", "judge")


def judge(events: Sequence[Event], guarantees: Guarantees) -> Verdict:
    """What is wrong with a run, by all of its events, in any order.

    `ValueError` if STARTED, which says what it was to do, is not among them.
    """
    history = gather(events)
    findings = [*unsafe(history, guarantees), *late(history, guarantees), *_unended(history), *_found(history)]
    order = list(Kind)
    findings.sort(key=lambda found: (order.index(found.kind), found.proof[0].t))
    return Verdict(history.plan, guarantees, tuple(findings), measure(history))


def _unended(history: History) -> Iterator[Finding]:
    """Processes that did not end, or not as they had begun."""
    for life in history.lives:
        if life.begins and life.ends:
            yield from _leaks(life, life.begins, life.ends)
        elif life.begins and history.final and life.died == math.inf:
            yield Finding(Kind.HANG, f"process {life.process} did not end", (life.begins, history.final))


def _leaks(life: Life, begins: Event, ends: Event) -> Iterator[Finding]:
    before: Mapping[str, int] = begins.more.get("counts", {})
    after: Mapping[str, int] = ends.more.get("counts", {})
    more = [f"{name}: {before[name]} → {after[name]}" for name in before if after.get(name, 0) > before[name]]
    if more:
        yield Finding(Kind.CLIENT_LEAK, f"{life.process}: {', '.join(more)}", (begins, ends))


def _found(history: History) -> Iterator[Finding]:
    """What the run itself has found at its end."""
    if history.final:
        if not any(attempt.got for attempt in history.attempts):
            yield Finding(Kind.BROKEN_RUN, "no lock was ever granted", (history.final,))
        for what, texts in history.final.more["found"].items():
            kind = _FOUND.get(what, Kind.BROKEN_RUN)
            yield from (Finding(kind, f"{what}: {text}", (history.final,)) for text in texts)


_FOUND = {
    "hung": Kind.HANG,
    "left in the store": Kind.STORE_LEAK,
    "not free": Kind.NOT_FREE,
    "after a fork": Kind.AFTER_FORK,
    "failed to close": Kind.UNPROVOKED,
}
