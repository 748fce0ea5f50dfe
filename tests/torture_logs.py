"""Logs of runs that never were, in a few words: what the checker is shown by its tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from distlock import Fault, Guarantees
from distlock.backends.memory import MemoryBackend
from distlock.testing.torture._checker import Finding, Kind, Verdict, judge
from distlock.testing.torture._events import Event, What
from distlock.testing.torture._plan import Plan

Log = list[Event]

TTL, GRACE, TIMEOUT = 2.0, 1.0, 10.0
SOON, ORPHANED, RECOVERED = TTL / 3 + GRACE, TTL + GRACE, TTL + 1 + GRACE
"""The bounds for a wake-up, for a lock that is free, and for one whose holder is gone."""
PLAN = Plan("memory://", ttl=TTL, grace=GRACE, timeout=TIMEOUT)
FAIR: Guarantees = MemoryBackend.guarantees
UNFAIR = replace(FAIR, fair=False)


def say(t: float, who: str, what: What, key: str | None = None, **more: Any) -> Event:
    """As it would be read from a file."""
    return Event.read(Event(t, who, what, key, more).text())


def run(*parts: Event | Iterable[Event], found: dict[str, list[str]] | None = None, plan: Plan = PLAN) -> Log:
    """A whole log around those events, from 0 to 100, of a run in which at least another lock was granted."""
    events = [event for part in parts for event in ([part] if isinstance(part, Event) else part)]
    started = say(0, "run", What.STARTED, plan=json.loads(json.dumps(asdict(plan))))
    about: dict[str, Any] = {"try": 1, "timeout": 1, "token": 1, "until": 1, "how": "released"}
    other = [say(0, "w9.0", what, "another", **about) for what in (What.WANTS, What.GOT, What.LEAVES, What.LEFT)]
    return [started, *other, *events, say(99, "run", What.STOPS), say(100, "run", What.FINAL, found=found or {})]


def wants(t: float, who: str, number: int = 1, timeout: float | None = TIMEOUT) -> Event:
    return say(t, who, What.WANTS, "k", **{"try": number, "timeout": timeout})


def got(t: float, who: str, number: int = 1, *, token: int | None = None, until: float | None = None) -> Event:
    """Proven for a ttl, unless ``until`` is given."""
    until = t + TTL if until is None else until
    return say(t, who, What.GOT, "k", **{"try": number, "token": token, "until": until})


def sure(at: float, who: str, number: int = 1, *, until: float | None = None) -> Event:
    until = at + TTL if until is None else until
    return say(at, who, What.SURE, "k", **{"try": number, "at": at, "until": until})


def then(t: float, who: str, what: What, number: int = 1, **more: Any) -> Event:
    """Whatever else happens to an attempt."""
    return say(t, who, what, "k", **{"try": number, **more})


def leaves(t: float, who: str, number: int = 1, *, how: str = "released") -> Log:
    return [then(t, who, What.LEAVES, number), then(t, who, What.LEFT, number, how=how)]


def holds(who: str, number: int, start: float, stop: float, *, token: int | None = None) -> Log:
    """It has the lock at once, and gives it up in time."""
    return [
        wants(start, who, number),
        got(start, who, number, token=token, until=stop + TTL),
        *leaves(stop, who, number),
    ]


def took(t: float, by: str, version: int, read: int, number: int = 1, token: int | None = None) -> Event:
    return say(
        t, "register", What.TOOK, "k", by=by, **{"try": number, "token": token, "version": version, "read": read}
    )


def fault(start: float, stop: float, name: str = "outage", on: str = "all", *excused: Fault) -> Log:
    """Whom it struck is known when it has struck."""
    return [
        say(start, "nemesis", What.STRIKES, fault=name, on="", excused=[each.name for each in excused]),
        say(start, "nemesis", What.STRUCK, fault=name, on=on),
        say(stop, "nemesis", What.HEALED, fault=name, on=on),
    ]


def process(name: str, start: float, stop: float | None, before: int = 1, after: int = 1) -> Log:
    """A worker with so many threads."""
    begins = say(start, name, What.BEGINS, pid=1, colour="sync", counts={"threads": before})
    return [begins] if stop is None else [begins, say(stop, name, What.ENDS, counts={"threads": after})]


def killed(name: str, t: float, healed: float) -> Log:
    return fault(t, healed, "kill -9 of a worker", name)


def barging(wins: int) -> Log:
    """One waits while another comes and goes; only from a grace on it is certain who came first."""
    others = [event for n in range(wins + 1) for event in holds("w1.0", n, 2 + n / 4, 2.2 + n / 4)]
    end = 2.2 + wins / 4
    return [*holds("w1.0", 99, 1, 2), wants(1.2, "w0.0"), *others, got(end, "w0.0"), *leaves(end + 0.1, "w0.0")]


def verdict(log: Sequence[Event], guarantees: Guarantees = FAIR) -> Verdict:
    return judge(log, guarantees)


def findings(log: Sequence[Event], guarantees: Guarantees = FAIR) -> tuple[Finding, ...]:
    return judge(log, guarantees).findings


def kinds(log: Sequence[Event], guarantees: Guarantees = FAIR) -> set[Kind]:
    """What is wrong, and not excused."""
    return {finding.kind for finding in findings(log, guarantees) if not finding.excused}
