"""What the events of a run say, put together: each attempt at a lock, each life of a process, and each trouble."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..._types import Fault
from ._events import Event, What
from ._plan import Plan

__all__ = ("Attempt", "History", "Life", "Trouble", "gather")

_WORKERS = re.compile(r"w\d+( w\d+)*")
"""And nothing else: a command of somebody's may well have a word like these."""


@dataclass(slots=True, eq=False)
class Trouble:
    """One fault, from before it hurts until all is as before."""

    strikes: Event
    fault: str
    on: str
    excused: frozenset[Fault]
    healed: Event | None = None

    @property
    def since(self) -> float:
        return self.strikes.t

    @property
    def until(self) -> float:
        """``inf`` if nothing says that it has healed."""
        return math.inf if self.healed is None else self.healed.t

    @property
    def workers(self) -> frozenset[str]:
        """The processes that it struck; none, if it was the store, or all."""
        return frozenset(self.on.split() if _WORKERS.fullmatch(self.on) else ())

    @property
    def harmless(self) -> bool:
        """It delays nobody: the end of one attempt, which a lock has to stand at any moment."""
        return "cancel" in self.fault.lower() and bool(self.workers)

    def touches(self, process: str, since: float, until: float) -> bool:
        """It hurt that process, or the store, between the two moments."""
        return self.since <= until and since <= self.until and (not self.workers or process in self.workers)


@dataclass(slots=True, eq=False)
class Life:
    """A process, from its beginning to its end."""

    process: str
    begins: Event | None = None
    ends: Event | None = None
    last: float = -math.inf
    """The time of the last that it said."""
    killed: Trouble | None = None

    @property
    def died(self) -> float:
        """When it was killed, by what can be known: not before; ``inf`` if it was not."""
        return math.inf if self.killed is None else max(self.last, self.killed.since)


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt at a lock, and what became of it."""

    who: str
    number: int
    key: str
    life: Life
    wants: Event | None = None
    got: Event | None = None
    gave_up: Event | None = None
    """BUSY, FAILED or CANCELLED; the last two may come while it holds."""
    sure: list[Event] = field(default_factory=list)
    lost: Event | None = None
    reads: list[Event] = field(default_factory=list)
    writes: list[Event] = field(default_factory=list)
    leaves: Event | None = None
    left: Event | None = None

    @property
    def name(self) -> str:
        return f"{self.who} (try {self.number})"

    @property
    def token(self) -> int | None:
        return None if self.got is None else self.got.more.get("token")

    @property
    def waits_from(self) -> float:
        return self.wants.t if self.wants else self.got.t if self.got else math.inf

    @property
    def waits_until(self) -> float:
        """It has the lock, has given up or is dead."""
        end = self.got or self.gave_up
        return min(self.life.died, end.t if end else math.inf)

    @property
    def from_(self) -> float:
        """From when on it certainly holds; ``inf``: never. A forked child may be sure of what it did not get."""
        return self.got.t if self.got else min((_asked(event) for event in self.sure), default=math.inf)

    @property
    def until(self) -> float:
        """Until when it is sure to hold: what was proven last, unless it began to leave, was told or died before."""
        ends = [self.life.died]
        ends += [event.t for event in (self.leaves, self.left, self.gave_up) if event]
        before = [event for event in self.sure if _asked(event) < min(ends)]
        if self.lost and not any(_asked(event) > self.lost.t for event in before):
            ends.append(self.lost.t)
        proof = before[-1] if before else self.got
        return -math.inf if proof is None else min(*ends, float(proof.more["until"]))

    @property
    def holds(self) -> bool:
        """There is a moment at which it certainly holds."""
        return self.from_ < self.until

    @property
    def proof(self) -> tuple[Event, ...]:
        """What shows from when and until when it holds."""
        end = min((event for event in (self.leaves, self.lost, self.gave_up) if event), key=_time, default=None)
        last = [event for event in self.sure if _asked(event) < self.until][-1:]
        return tuple(event for event in (self.got, *last, end) if event)

    @property
    def released(self) -> bool:
        """It gave the lock up, and the store took it."""
        return self.left is not None and self.left.more.get("how") == "released" and self.lost is None

    @property
    def gone(self) -> float:
        """When it has ceased to hold, whatever the store knows; ``inf``: nothing says so."""
        return min((event.t for event in (self.lost, self.left) if event), default=self.life.died)

    @property
    def end(self) -> Event | None:
        """The last word of it."""
        return self.left if self.got else self.gave_up


@dataclass(slots=True, eq=False)
class History:
    """All of a run."""

    plan: Plan
    attempts: list[Attempt] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    register: list[Event] = field(default_factory=list)
    """TOOK and TURNED_DOWN."""
    stops: Event | None = None
    final: Event | None = None
    began: float = 0.0
    ended: float = 0.0
    """The time of the first and of the last event."""

    @property
    def hurts(self) -> Sequence[Trouble]:
        """Those that may delay others, in the order in which they began."""
        return [trouble for trouble in self.troubles if not trouble.harmless]

    def by_key(self) -> Mapping[str, Sequence[Attempt]]:
        """The attempts at each key, in the order in which they began."""
        found: defaultdict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            found[attempt.key].append(attempt)
        return found


def gather(events: Iterable[Event]) -> History:
    """`ValueError` if the log does not say what the run was to do: it has not begun."""
    events = sorted(events, key=_time)
    plan = next((event.more["plan"] for event in events if event.what is What.STARTED), None)
    if plan is None:
        raise ValueError("the log of a run says STARTED: this one has not begun")
    history = History(Plan.read(plan if isinstance(plan, str) else json.dumps(plan)))
    history.began, history.ended = events[0].t, events[-1].t
    reader = _Reader(history)
    for event in events:
        reader.read(event)
    _bury(history)
    return history


class _Reader:
    """Gives each event its place."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._lives: dict[str, Life] = {}
        self._attempts: dict[tuple[Life, str, int], Attempt] = {}

    def read(self, event: Event) -> None:
        history = self._history
        if event.what in (What.TOOK, What.TURNED_DOWN):
            history.register.append(event)
        elif event.what in (What.STRIKES, What.STRUCK, What.HEALS, What.HEALED):
            self._read_trouble(event)
        elif event.what is What.STOPS:
            history.stops = event
        elif event.what is What.FINAL:
            history.final = event
        elif event.what is not What.STARTED:
            self._read_worker(event)

    def _read_trouble(self, event: Event) -> None:
        fault, on = str(event.more.get("fault", "")), str(event.more.get("on") or "")
        if event.what is What.STRIKES:
            excused = frozenset(Fault[name] for name in event.more.get("excused") or ())
            self._history.troubles.append(Trouble(event, fault, on, excused))
            return
        open_ = [trouble for trouble in self._history.troubles if trouble.fault == fault and trouble.healed is None]
        if open_:
            open_[0].on = open_[0].on or on  # who was struck may be known only then
            if event.what is What.HEALED:
                open_[0].healed = event

    def _read_worker(self, event: Event) -> None:
        process = event.who.partition(".")[0]
        if event.what is What.BEGINS or process not in self._lives:
            self._lives[process] = life = Life(process)
            self._history.lives.append(life)
        life = self._lives[process]
        life.last = event.t
        if event.what is What.BEGINS:
            life.begins = event
        elif event.what is What.ENDS:
            life.ends = event
        else:
            self._read_attempt(event, life)

    def _read_attempt(self, event: Event, life: Life) -> None:
        number = event.more.get("try")
        if number is None:
            return
        attempt = self._attempts.get((life, event.who, number))
        if attempt is None:
            attempt = self._attempts[life, event.who, number] = Attempt(event.who, number, event.key or "", life)
            self._history.attempts.append(attempt)
        attempt.key = attempt.key or event.key or ""
        if event.what in _ONE:
            name = _ONE[event.what]
            if getattr(attempt, name) is None:  # the first of it counts
                setattr(attempt, name, event)
        elif event.what in _MANY:
            getattr(attempt, _MANY[event.what]).append(event)


_ONE = {
    What.WANTS: "wants",
    What.GOT: "got",
    What.BUSY: "gave_up",
    What.FAILED: "gave_up",
    What.CANCELLED: "gave_up",
    What.LOST: "lost",
    What.LEAVES: "leaves",
    What.LEFT: "left",
}
_MANY = {What.SURE: "sure", What.READ: "reads", What.WROTE: "writes"}


def _bury(history: History) -> None:
    """Finds who was killed, and when: the fault says it, and it says nothing any more."""
    for life in history.lives:
        for trouble in history.troubles:
            on_it = life.process in trouble.workers and life.last <= trouble.until
            if on_it and not life.ends and "kill" in trouble.fault.lower():
                life.killed = trouble


def _time(event: Event) -> float:
    return event.t


def _asked(event: Event) -> float:
    return float(event.more.get("at", event.t))
