"""What is measured, each in a turn of its own: data, and a function that gives the figures of one turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from .. import DistLockError
from ._crew import Crew
from ._fight import Tally, Window
from ._jobs import Duel, Enter, Fight, Hold, Job, Wait
from ._measure import Unknown, percentile
from ._plan import KILLED, Plan
from ._stores import LEASE, Store

__all__ = ("WORKLOADS", "Measured", "Metric", "NothingDone", "Turn", "Workload")

MOST = 4
"""Processes of a capacity turn."""
SURELY_WAITS = 0.2
"""Seconds in which a process that is about to wait does so."""


class NothingDone(DistLockError):
    """A turn was too short to see anything."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a workload."""

    name: str
    unit: str
    better: str = ""
    """``less`` or ``more``; empty: neither."""

    def to_floor(self, value: float, floor: float) -> float:
        """``value`` as a ratio to the raw floor, of which one takes ``floor`` seconds."""
        return value * floor if self.unit == "/s" else value / 1e6 / floor


Figures = Mapping[str, "float | Unknown"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a turn."""

    figures: Figures
    samples: Sequence[float] = ()
    """Seconds of single ones, where there are."""
    spans: Sequence[tuple[int, int, int]] = ()
    """Hand-offs: who got it, when the other let go, and when it was in, in ns by one clock."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One workload's, on one store."""

    plan: Plan
    crew: Crew
    store: Store
    at: int
    """How many contenders, where that is varied."""

    def key(self, name: str) -> str:
        """Of this run alone."""
        return f"{self.plan.prefix}{name}"

    def run(
        self, jobs: Sequence[Job], seconds: float = 0.0, watch: Callable[[Window], Any] = lambda window: None
    ) -> Any:
        """What the jobs give, and what ``watch`` saw."""
        return self.crew.run(jobs, self.plan.warm_up, seconds or self.plan.seconds, watch)

    def fight(self, colour: str, *teams: Sequence[str], **how: float) -> list[Tally]:
        """A process for each of ``teams``, a contender for each of its keys."""
        jobs = [Fight(self.store.way(), colour, tuple(keys), **how) for keys in teams]
        return [tally for tallies in self.run(jobs)[0] for tally in tallies]

    def during(self, window: Window, ask: Callable[[], Any]) -> tuple[Any, Any, float]:
        """What is answered when counting begins and when it ends, and the seconds between."""
        time.sleep(max(0.0, window.counts_from - time.monotonic()))
        began, first = time.monotonic(), ask()
        time.sleep(max(0.0, window.ends - time.monotonic()))
        ended, last = time.monotonic(), ask()
        return first, last, ended - began


def _anything(store: Store, plan: Plan) -> str:
    if store.tiered:
        return "measured for capacity alone"
    return _for_threads(plan.colour, store)


def _for_threads(colour: str, store: Store) -> str:
    return "row locks are for threads here" if store.guarantees is None and colour != "sync" else ""


def _between_processes(store: Store, plan: Plan) -> str:
    return _anything(store, plan) or ("" if store.is_shared else "its locks are those of one process")


def _leased(store: Store, plan: Plan) -> str:
    return _between_processes(store, plan) or ("row locks have no lease" if store.guarantees is None else "")


@dataclass(frozen=True, slots=True)
class Workload:
    """The first of its metrics is that by which stores are compared, and that has a ratio to the floor."""

    name: str
    what: str
    metrics: tuple[Metric, ...]
    measure: Callable[[Turn], Measured]
    unfit: Callable[[Store, Plan], str] = _anything
    """Why a store is left out, if it is."""
    varied: bool = False
    """By the number of contenders."""
    has_floor: bool = True
    processes: Callable[[Plan], int] = field(default=lambda plan: 1)
    """How many it takes."""


def _uncontended(turn: Turn) -> Measured:
    pairs = _some(turn.fight(turn.plan.colour, [turn.key("alone")])[0].pairs)
    return Measured({"latency": median(pairs) * 1e6, "p99": percentile(pairs, 0.99) * 1e6}, pairs)


def _some(found: Sequence[Any]) -> Sequence[Any]:
    if not found:
        raise NothingDone("nothing was done in time: give it more --seconds")
    return found


def _hand_off(turn: Turn) -> Measured:
    jobs = [Duel(turn.store.way(), turn.plan.colour, turn.key("handed"), me) for me in (0, 1)]
    outcomes, _ = turn.run(jobs)
    spans = sorted((left, entered, me) for me, found in enumerate(outcomes) for left, entered in found)
    times = [(entered - left) / 1e9 for left, entered, _ in _some(spans)]
    figures = {"latency": median(times) * 1e6, "p99": percentile(times, 0.99) * 1e6}
    return Measured(figures, times, [(me, left, entered) for left, entered, me in spans])


def _throughput(turn: Turn, tallies: Sequence[Tally]) -> Measured:
    counts = [len(tally.pairs) for tally in tallies]
    waits = _some([wait for tally in tallies for wait in tally.waits])
    figures = {
        "rate": sum(counts) / turn.plan.seconds,
        "fairness": max(counts) / (min(counts) or 0.5),
        "wait": median(waits) * 1e6,
    }
    return Measured(figures, waits)


def _processes(turn: Turn) -> Measured:
    return _throughput(turn, turn.fight(turn.plan.colour, *[[turn.key("wanted")]] * turn.at))


def _threads(turn: Turn) -> Measured:
    return _throughput(turn, turn.fight("sync", [turn.key("wanted")] * turn.at))


def _tasks(turn: Turn) -> Measured:
    return _throughput(turn, turn.fight(_task_colour(turn.plan), [turn.key("wanted")] * turn.at))


def _task_colour(plan: Plan) -> str:
    return "asyncio" if plan.colour == "sync" else plan.colour


def _many_keys(turn: Turn) -> Measured:
    return _throughput(turn, turn.fight(turn.plan.colour, [turn.key(f"own/{one}") for one in range(turn.plan.keys)]))


def _waiting(turn: Turn) -> Measured:
    store, plan, key = turn.store, turn.plan, turn.key("kept")
    holder = Hold(store.way(LEASE, renew=False), "sync", (key,))
    return _cost(turn, [holder, Wait(store.way(store.ttl), plan.colour, key, plan.waiters)])


def _renewal(turn: Turn) -> Measured:
    keys = tuple(turn.key(f"held/{one}") for one in range(turn.plan.held))
    return _cost(turn, [Hold(turn.store.way(turn.store.ttl), turn.plan.colour, keys)])


def _cost(turn: Turn, jobs: Sequence[Job]) -> Measured:
    """What the last of the jobs costs, over a whole ttl at least, so that all that recurs is in it."""
    length = max(turn.plan.seconds, turn.store.ttl)
    done, (first, last, seconds) = turn.run(jobs, length, lambda window: turn.during(window, turn.store.requests))
    return Measured({"requests": _change(first, last, seconds), "client": 100 * done[-1] / length})


def _change(first: float | Unknown, last: float | Unknown, seconds: float) -> float | Unknown:
    if isinstance(first, Unknown) or isinstance(last, Unknown):
        return first if isinstance(first, Unknown) else last
    return max(0.0, last - first) / seconds


def _recovery(turn: Turn) -> Measured:
    store, key = turn.store, turn.key(KILLED)
    waits = Enter(store.way(), turn.plan.colour, key, store.ttl + 20)
    found = turn.crew.entered_after_kill(Hold(store.way(store.ttl), turn.plan.colour, (key,)), waits, SURELY_WAITS)
    if found is None:
        raise DistLockError("nobody got in after the holder was killed")
    return Measured({"recovery": found / 1e9})


def _capacity(turn: Turn) -> Measured:
    plan, number = turn.plan, max(turn.plan.contenders)
    processes = min(number, MOST) if turn.store.is_shared else 1
    keys = [turn.key("wanted")] * (number // processes)
    jobs = [Fight(turn.store.way(), plan.colour, tuple(keys), plan.timeout, plan.work)] * processes
    found, (first, last, seconds) = turn.run(jobs, 0.0, lambda window: turn.during(window, turn.store.usage))
    tallies = [tally for each in found for tally in each]
    waits = [wait for tally in tallies for wait in tally.waits]
    failed = sum(tally.failed for tally in tallies)
    _some(waits or range(failed))
    cpu = _change(first.cpu, last.cpu, seconds)
    figures: Figures = {
        "rate": len(waits) / plan.seconds,
        "failed": 100 * failed / (failed + len(waits)),
        "wait": mean(waits) * 1e3 if waits else Unknown("all acquires have failed"),
        "server CPU": cpu if isinstance(cpu, Unknown) else 100 * cpu,
        "memory": last.memory if isinstance(last.memory, Unknown) else last.memory / 2**20,
        "connections": first.connections,  # at the end some have gone already
    }
    return Measured(figures, waits)


LATENCY = (Metric("latency", "µs", "less"), Metric("p99", "µs", "less"))
THROUGHPUT = (Metric("rate", "/s", "more"), Metric("fairness", "most/least", "less"), Metric("wait", "µs", "less"))
COST = (Metric("requests", "/s", "less"), Metric("client", "% CPU", "less"))
CAPACITY = (
    Metric("rate", "/s", "more"),
    Metric("failed", "%", "less"),
    Metric("wait", "ms", "less"),
    Metric("server CPU", "%", "less"),
    Metric("memory", "MiB", "less"),
    Metric("connections", "", "less"),
)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("uncontended", "one acquire and release of a lock that nobody else wants", LATENCY, _uncontended),
        Workload(
            "hand-off",
            "from the release to the waiter of another process being in",
            LATENCY,
            _hand_off,
            _between_processes,
            processes=lambda plan: 2,
        ),
        Workload(
            "processes",
            "acquisitions of one lock by processes that ask again at once",
            THROUGHPUT,
            _processes,
            _between_processes,
            varied=True,
            processes=lambda plan: max(plan.contenders),
        ),
        Workload(
            "threads",
            "acquisitions of one lock by threads of one process",
            THROUGHPUT,
            _threads,
            lambda store, plan: "measured for capacity alone" if store.tiered else "",
            varied=True,
        ),
        Workload(
            "tasks",
            "acquisitions of one lock by tasks of one event loop",
            THROUGHPUT,
            _tasks,
            lambda store, plan: _anything(store, plan) or _for_threads(_task_colour(plan), store),
            varied=True,
        ),
        Workload("many-keys", "acquisitions by contenders with a lock each", THROUGHPUT, _many_keys),
        Workload(
            "waiting",
            "what waiters of one process cost",
            COST,
            _waiting,
            _between_processes,
            has_floor=False,
            processes=lambda plan: 2,
        ),
        Workload("renewal", "what held locks cost that are renewed", COST, _renewal, _leased, has_floor=False),
        Workload(
            "recovery",
            "from kill -9 of the holder to a waiter being in",
            (Metric("recovery", "s", "less"),),
            _recovery,
            _between_processes,
            has_floor=False,
        ),
        Workload(
            "capacity",
            "one lock held for a moment, and not waited for for long",
            CAPACITY,
            _capacity,
            lambda store, plan: _for_threads(plan.colour, store),
            has_floor=False,
            processes=lambda plan: min(MOST, max(plan.contenders)),
        ),
    )
}
