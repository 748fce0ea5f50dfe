"""What must happen in time, as long as nobody was hurt: a free lock is given, waiting ends, all comes to an end.

While something was stopped, starved, cut off or down, and as long afterwards as the store takes to notice a dead
holder, nothing is judged that it could have delayed; if it was the store, as long again as a client waits for an answer
that was lost.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..._types import Guarantees
from ._events import Event, What
from ._holdings import Attempt, History, Trouble
from ._plan import Plan
from ._verdict import Finding, Kind

__all__ = ("Gap", "gaps", "late", "noticed_within")

OP_TIMEOUT = 5.0
"""The library's own, for a plan that names none."""
TICK = 2.0
"""By which a store that counts in ticks is late: ZooKeeper's default."""
OVERTAKEN = 10
"""So often, and one has been passed over."""
NEVER = 20
"""So many grants to others for each actor, in which one had none, and chance does not explain it."""


def noticed_within(plan: Plan, guarantees: Guarantees) -> float:
    """Seconds after its death within which a holder's lock must be free."""
    return {"at once": 0.1, "session": math.ceil(plan.ttl) + TICK + 1.0}.get(guarantees.dead_holder, plan.ttl + 1.0)


def late(history: History, guarantees: Guarantees) -> Iterator[Finding]:
    """Everything that came too late, or never."""
    judge = _Judge(history, guarantees)
    for key, attempts in history.by_key().items():
        for gap in gaps(history, key, attempts):
            yield from judge.gap(gap)
        yield from judge.overtaken(key, attempts) if guarantees.fair else judge.never_served(key, attempts)
    for attempt in history.attempts:
        yield from judge.end(attempt)
        yield from judge.error(attempt)


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which nobody had a lock."""

    key: str
    since: float
    until: float
    before: Attempt | None
    """Who had it."""
    after: Attempt | None
    """Who was given it."""
    waiting: Sequence[Attempt]
    """Who wanted it for a part of that time."""

    def wanted(self, since: float, until: float) -> float:
        """For how long somebody waited for it, between the two moments."""
        total, reached = 0.0, max(since, self.since)
        for one in self.waiting:
            end = min(one.waits_until, until, self.until)
            if end > reached:
                total += max(0.0, end - max(reached, one.waits_from))
                reached = max(reached, end)
        return total

    @property
    def killed(self) -> bool:
        """The holder was killed, while it held."""
        return self.before is not None and self.before.gone == self.before.life.died < math.inf

    @property
    def proof(self) -> tuple[Event, ...]:
        """What shows it, but for the troubles."""
        before = self.before
        end = (before.lost or before.left or before.gave_up or before.got) if before else None
        wants = [one.wants for one in self.waiting if one.wants][:3]
        given_up = [one.gave_up for one in self.waiting if one.gave_up][:3]
        events = (end, *wants, *given_up, self.after.got if self.after else None)
        return tuple(event for event in events if event)


def gaps(history: History, key: str, attempts: Sequence[Attempt]) -> Iterator[Gap]:
    """The times in which nobody had ``key``, and somebody wanted it."""
    coming = deque(sorted(attempts, key=lambda one: one.waits_from))
    waiting: list[Attempt] = []
    before: Attempt | None = None
    free = known = history.began
    for after in (*sorted((one for one in attempts if one.got), key=lambda one: one.from_), None):
        until = after.from_ if after else history.ended
        while coming and coming[0].waits_from < until:
            waiting.append(coming.popleft())
        waiting = [one for one in waiting if one.waits_until > known]
        if until > free and (found := tuple(one for one in waiting if one.waits_until > free)):
            yield Gap(key, free, until, before, after, found)
        if after:
            before = after if after.gone >= known else before
            free = max(known, after.gone)
            known = free if free < math.inf else known  # whoever never left did not keep it from the next one


class _Judge:
    def __init__(self, history: History, guarantees: Guarantees) -> None:
        self._history, self._plan, self._grace = history, history.plan, history.plan.grace
        self._noticed = noticed_within(history.plan, guarantees)
        self._asking = OP_TIMEOUT if history.plan.op_timeout is None else history.plan.op_timeout

    def _after(self, trouble: Trouble) -> float:
        """Seconds for which it is felt when it has healed."""
        return self._noticed if trouble.workers else self._noticed + self._asking

    def _hurt(self, since: float, until: float) -> Trouble | None:
        """Some trouble that was felt between the two moments."""
        hurts = self._history.hurts
        return next((one for one in hurts if one.since <= until and since <= one.until + self._after(one)), None)

    def gap(self, gap: Gap) -> Iterator[Finding]:
        orphan = self._orphan(gap)
        if orphan:
            yield orphan
            return
        soon = self._plan.ttl / 3 + self._grace
        waited = gap.wanted(gap.since, gap.until)
        proper = gap.before is not None and gap.before.released
        if proper and waited > soon and not self._hurt(gap.since, gap.until):
            yield Finding(
                Kind.LOST_WAKEUP,
                f"{gap.key!r} was released and wanted for {waited:.3f} s before it was given to {_name(gap.after)}"
                f" (at most {soon:.3f} s)",
                gap.proof,
            )
        yield from self._slow(gap)

    def _orphan(self, gap: Gap) -> Finding | None:
        bound = self._plan.ttl + self._grace
        if gap.before is None or not gap.before.released:
            bound = max(bound, self._noticed + self._grace)
        for since, until, trouble in self._peace(gap):
            waited = gap.wanted(since, until)
            most = max(bound, self._after(trouble) + self._grace) if trouble else bound
            if waited > most:
                text = f"nobody had {gap.key!r} and it was wanted for {waited:.3f} s (at most {most:.3f} s)"
                if trouble:
                    text += f", after {trouble.fault!r} had healed"
                healed = (trouble.healed,) if trouble and trouble.healed else ()
                return Finding(Kind.ORPHAN, text, (*healed, *gap.proof))
        return None

    def _peace(self, gap: Gap) -> Iterator[tuple[float, float, Trouble | None]]:
        """The parts of it in which there was no trouble, and which one was before."""
        since, last = gap.since, None
        for trouble in self._history.hurts:  # in the order in which they began
            if trouble.until + self._after(trouble) < gap.since or trouble.since > gap.until:
                continue
            if trouble.since > since:
                yield since, trouble.since, last
            since, last = max(since, trouble.until), trouble
        if since < gap.until:
            yield since, gap.until, last

    def _slow(self, gap: Gap) -> Iterator[Finding]:
        waited = gap.wanted(gap.since, gap.until)
        if gap.killed and gap.before and waited > self._noticed + self._grace and not self._others(gap):
            killed = gap.before.life.killed
            text = (
                f"{gap.before.name} was killed, and {gap.key!r} was wanted for {waited:.3f} s until"
                f" {_name(gap.after)} had it (at most {self._noticed:.3f} s and {self._grace:g} s of grace)"
            )
            yield Finding(Kind.SLOW_RECOVERY, text, (*([killed.strikes] if killed else []), *gap.proof))

    def _others(self, gap: Gap) -> bool:
        """Another fault than the one that killed the holder was about."""
        killed = gap.before.life.killed if gap.before else None
        return any(
            trouble is not killed and trouble.since <= gap.until and gap.since <= trouble.until + self._after(trouble)
            for trouble in self._history.hurts
        )

    def overtaken(self, key: str, attempts: Sequence[Attempt]) -> Iterator[Finding]:
        for index, one in enumerate(attempts):
            until = min(one.waits_until, self._history.ended)
            # Who began to want it later than that came later for certain.
            since = self._quiet_since(one.waits_from, until) + self._grace
            if until <= since:
                continue
            later = []
            for other in attempts[index + 1 :]:
                if other.waits_from >= until:
                    break
                if other.waits_from > since and other.got and other.from_ < until:
                    later.append(other)
            if len(later) >= OVERTAKEN:
                text = f"{one.name} waited for {key!r} while {len(later)} that came later were served"
                yield Finding(Kind.STARVATION, text, _served(one, later))

    def _quiet_since(self, since: float, until: float) -> float:
        """From when on there was no trouble, nor what came of one, up to ``until``."""
        troubles = [trouble.until + self._after(trouble) for trouble in self._history.hurts if trouble.since <= until]
        return max([since, *troubles])

    def never_served(self, key: str, attempts: Sequence[Attempt]) -> Iterator[Finding]:
        actors: defaultdict[str, list[Attempt]] = defaultdict(list)
        for one in attempts:
            actors[one.who].append(one)
        for who, own in actors.items():
            waits = [(one.waits_from, min(one.waits_until, self._history.ended)) for one in own]
            waits = [(since, until) for since, until in waits if not self._hurt(since, until)]
            if any(one.got for one in own) or sum(until - since for since, until in waits) <= 5 * self._plan.ttl:
                continue
            others = [one for one in attempts if one.got and any(a < one.from_ < b for a, b in waits)]
            if len(others) >= NEVER * len(actors):
                text = f"{who} never had {key!r}, which others had {len(others)} times while it waited"
                yield Finding(Kind.STARVATION, text, _served(own[0], others))

    def end(self, attempt: Attempt) -> Iterator[Finding]:
        """It came to an end, and in time."""
        wants = attempt.wants
        end = attempt.got or attempt.gave_up
        over = self._history.final or attempt.life.ends
        if over and attempt.end is None and attempt.wants and attempt.life.died == math.inf:
            events = (attempt.wants, attempt.got, attempt.lost, attempt.leaves, over)
            text = f"{attempt.name} at {attempt.key!r} did not end"
            yield Finding(Kind.HANG, text, tuple(event for event in events if event))
        if wants is None or end is None or end.what is What.CANCELLED or wants.more.get("timeout") is None:
            return
        timeout = float(wants.more["timeout"])
        late_by = end.t - wants.t - timeout
        before = wants.t - self._asking  # when the store was hurt, an answer to be waited for may have been lost
        touched = [
            trouble
            for trouble in self._history.hurts
            if trouble.touches(attempt.life.process, wants.t if trouble.workers else before, end.t)
        ]
        slack = self._grace + (self._asking if touched else 0.0)
        if late_by > slack and not any(trouble.workers for trouble in touched):
            text = f"{attempt.name} at {attempt.key!r} was to wait {timeout:g} s, and waited {late_by:.3f} s more"
            yield Finding(Kind.LATE_TIMEOUT, text, (wants, end))

    def error(self, attempt: Attempt) -> Iterator[Finding]:
        """It did not fail without a reason."""
        for event in (attempt.gave_up, attempt.left):
            word = event.more.get("error") or event.more.get("how") if event else None
            if event is None or event.what not in (What.FAILED, What.LEFT) or word in ("released", "lost", "cancelled"):
                continue
            if not self._hurt(attempt.waits_from, event.t):
                yield Finding(Kind.UNPROVOKED, f"{attempt.name} at {attempt.key!r}: {word}", (event,))


def _name(attempt: Attempt | None) -> str:
    return attempt.name if attempt else "nobody"


def _served(one: Attempt, others: Sequence[Attempt]) -> tuple[Event, ...]:
    """The wish of one, some of the grants to others, and its end."""
    grants = [other.got for other in (*others[:3], *others[-2:]) if other.got]
    events = {id(event): event for event in (one.wants, *grants, one.got or one.gave_up) if event}
    return tuple(sorted(events.values(), key=lambda event: event.t))
