"""What must never happen, whatever was stopped, killed or cut off: overlaps, stale writes, tokens that fall.

All processes of a run share one clock, and what an event says was so before its time: a holder has the lock at the
latest when it says GOT, and believes to have it no longer when it says LEAVES. So a holding that is drawn from the
events lies inside the real one, and two that overlap did so in truth.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

from ..._types import Fault, Guarantees
from ._events import Event, What
from ._holdings import Attempt, History
from ._verdict import Finding, Kind

__all__ = ("unsafe",)

# Excepted, but for something else: docs/guarantees.md says which fault takes which promise back.
_NOT_FOR_HOLDERS = frozenset({Fault.STOPPED_WAITER, Fault.CLOCK_SET_BACK})
_NOT_FOR_TOKENS = frozenset({Fault.STOPPED_WAITER, Fault.STALE_LEADER})


def unsafe(history: History, guarantees: Guarantees) -> Iterator[Finding]:
    """Everything that went wrong with who held what."""
    attempts = history.by_key()
    for key in sorted({*attempts, *(event.key for event in history.register if event.key)}):
        judge = _Judge(history, guarantees, key, attempts.get(key, ()))
        yield from judge.overlaps()
        yield from judge.tokens()
        yield from judge.writes()


class _Judge:
    """Of one key."""

    def __init__(self, history: History, guarantees: Guarantees, key: str, attempts: Sequence[Attempt]) -> None:
        self._history, self._guarantees, self._key = history, guarantees, key
        self._attempts = attempts
        self._register = [event for event in history.register if event.key == key]

    def overlaps(self) -> Iterator[Finding]:
        holding: list[Attempt] = []
        for later in sorted((one for one in self._attempts if one.holds), key=lambda one: one.from_):
            holding = [one for one in holding if one.until > later.from_]
            for earlier in holding:
                until = min(earlier.until, later.until)
                yield self._finding(
                    Kind.SILENT_OVERLAP,
                    f"{earlier.name} and {later.name} both held {self._key!r} for {until - later.from_:.3f} s",
                    (*earlier.proof, *later.proof),
                    self._excuse(later.from_, later.from_, until),
                )
            holding.append(later)

    def tokens(self) -> Iterator[Finding]:
        """Each grant against those that were surely before it."""
        granted = [one for one in self._attempts if one.got and one.token is not None]
        seen: dict[int, Attempt] = {}
        for one in sorted(granted, key=lambda one: one.from_):
            other = seen.setdefault(_token(one), one)
            if other is not one:
                yield self._misnumbered(Kind.TOKEN_REPEATED, other, one)
        for earlier, later in _falls(granted):
            yield self._misnumbered(Kind.TOKEN_FELL, earlier, later)

    def writes(self) -> Iterator[Finding]:
        previous: Event | None = None
        for event in self._register:
            if event.what is not What.TOOK:
                continue
            version = previous.more["version"] if previous else event.more["version"] - 1
            read = event.more.get("read")
            if read is not None and read != version:
                text = f"{event.more['by']} wrote {self._key!r} knowing version {read}, but it was {version}"
                proof = (previous, event) if previous else (event,)
                yield self._finding(Kind.LOST_UPDATE, text, proof, self._excuse(event.t, event.t, event.t))
            previous = event
        yield from self._stale_writes()

    def _stale_writes(self) -> Iterator[Finding]:
        writers = {(one.who, one.number, one.token): one for one in self._attempts if one.got}
        used = deque(sorted(_uses(self._attempts, self._register), key=lambda use: use[0]))
        newest: Attempt | None = None  # of those that had read or written: the last that was granted
        highest: tuple[int, Event] | None = None
        for event in (event for event in self._register if event.what is What.TOOK):
            while used and used[0][0] < event.t:
                _, token, attempt, shown = used.popleft()
                if token is not None and (highest is None or token > highest[0]):
                    highest = token, shown
                if attempt and attempt.holds and (newest is None or attempt.from_ > newest.from_):
                    newest = attempt
            token = event.more.get("token")
            writer = writers.get((event.more["by"], event.more["try"], token))
            passed = writer and newest and newest is not writer and writer.from_ < newest.from_
            if token is not None and highest is not None and token < highest[0]:
                yield self._stale(event, f"it had seen {highest[0]}", (highest[1], event))
            elif writer and newest and passed:
                yield self._stale(
                    event, f"{newest.name} had come after it", (*writer.proof[:1], *newest.proof[:1], event)
                )

    def _stale(self, event: Event, why: str, proof: tuple[Event, ...]) -> Finding:
        text = f"the register took a write of {event.more['by']} with token {event.more.get('token')}: {why}"
        return self._finding(Kind.STALE_WRITE, text, proof, self._excuse(event.t, event.t, event.t))

    def _misnumbered(self, kind: Kind, earlier: Attempt, later: Attempt) -> Finding:
        text = f"{later.name} got {self._key!r} with token {later.token}, after {earlier.name} with {earlier.token}"
        proof = tuple(event for event in (earlier.got, earlier.left, later.wants, later.got) if event)
        excused = self._excuse(earlier.from_, later.from_, later.from_, _NOT_FOR_TOKENS)
        return self._finding(kind, text, proof, excused)

    def _finding(self, kind: Kind, text: str, proof: tuple[Event, ...], excused: Fault | None) -> Finding:
        return Finding(kind, text, tuple(sorted(proof, key=lambda event: event.t)), excused)

    def _excuse(
        self, first: float, last: float, ends: float, none: frozenset[Fault] = _NOT_FOR_HOLDERS
    ) -> Fault | None:
        """A fault that this backend does not stand, if one was about between ``first`` and ``last``: from before it
        struck to a ttl after it healed. What goes on beyond that has no excuse, nor has what is among ``none``."""
        plan = self._history.plan
        for trouble in self._history.troubles:
            over = trouble.until + plan.ttl
            known = (trouble.excused & self._guarantees.excepted) - none
            if known and trouble.since <= last and first <= over and (ends == last or ends <= over + plan.grace):
                return min(known, key=lambda fault: fault.name)
        return None


def _falls(granted: Sequence[Attempt]) -> Iterator[tuple[Attempt, Attempt]]:
    """Pairs of which the first was surely before the second, and has the higher token.

    Surely before: it had the lock when the other began to want it, or it had ceased to hold when the other held.
    After a fall, only what was granted from there on counts: each fall is told once.
    """
    line = _Line()
    steps = [(one.waits_from, 0, line.wants, one) for one in granted]
    steps += [(one.from_, 1, line.gets, one) for one in granted]
    steps += [(one.until, 2, line.goes, one) for one in granted if one.holds]
    for _, _, step, one in sorted(steps, key=lambda step: step[:2]):
        yield from step(one)


class _Line:
    """The grants of a key as time goes by."""

    def __init__(self) -> None:
        self._since = float("-inf")
        """Of the last fall."""
        self._had: Attempt | None = None
        """The highest of those that have got it."""
        self._over: Attempt | None = None
        """The highest of those whose holding is over."""
        self._before: defaultdict[Attempt, list[Attempt]] = defaultdict(list)

    def wants(self, one: Attempt) -> Iterator[tuple[Attempt, Attempt]]:
        if self._had:
            self._before[one].append(self._had)
        yield from ()

    def gets(self, one: Attempt) -> Iterator[tuple[Attempt, Attempt]]:
        before = self._before.pop(one, [])
        if self._over and one.holds:
            before.append(self._over)
        higher = [other for other in before if other.from_ >= self._since and _token(other) > _token(one)]
        if higher:
            self._since, self._had, self._over = one.from_, None, None
            yield max(higher, key=_token), one
        self._had = self._had if self._had and _token(self._had) > _token(one) else one

    def goes(self, one: Attempt) -> Iterator[tuple[Attempt, Attempt]]:
        if one.from_ >= self._since and (self._over is None or _token(one) > _token(self._over)):
            self._over = one
        yield from ()


def _uses(
    attempts: Sequence[Attempt], register: Sequence[Event]
) -> Iterator[tuple[float, int | None, Attempt | None, Event]]:
    """What the register was asked, as (when at the latest, token, by whom, what shows it)."""
    for attempt in attempts:
        for event in (*attempt.reads, *attempt.writes):
            yield event.t, attempt.token, attempt, event
    for event in register:
        yield event.t, event.more.get("token"), None, event


def _token(attempt: Attempt) -> int:
    assert attempt.token is not None
    return attempt.token
