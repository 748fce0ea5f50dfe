"""Logs like those of real runs, made up in no time: a store of first come, first served, and who contends for it."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from distlock.testing.torture._events import Event, What
from distlock.testing.torture._plan import Plan

__all__ = ("Made", "made")

START = 5000.0


@dataclass
class Actor:
    """A thread or task of a worker process, in one of its lives."""

    worker: str
    who: str
    tries: itertools.count[int]


@dataclass
class Held:
    """What the store says of a key."""

    actor: Actor
    number: int
    expires: float


@dataclass
class Made:
    """A simulation: ``at`` has things happen, ``run`` gives the log."""

    plan: Plan
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = START
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.dead: set[str] = set()
        self.names = (f"w{number}" for number in itertools.count())
        self.stopped: dict[str, float] = {}
        self.held: dict[str, Held] = {}
        self.queues: dict[str, list[tuple[Actor, int]]] = defaultdict(list)
        self.tokens = itertools.count(1_763_786_500_004_217)
        self.out = False
        self.say("run", What.STARTED, plan=asdict(self.plan))
        for number in range(self.plan.workers):
            self.begin(self.plan.colours[number % len(self.plan.colours)])

    def say(self, who: str, what: What, key: str | None = None, /, **more: Any) -> None:
        self.events.append(Event(self.now, who, what, key, more))

    def at(self, t: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (t, next(self.order), do))

    def does(self, actor: Actor, delay: float, do: Callable[[], None]) -> None:
        """What an actor does if it lives then, and as soon as it is not stopped."""

        def attempt() -> None:
            if actor.worker not in self.dead:
                later = self.stopped.get(actor.worker, 0.0)
                self.at(later, attempt) if later > self.now else do()

        self.at(self.now + delay, attempt)

    def begin(self, colour: str) -> None:
        worker, tries = next(self.names), itertools.count()
        self.say(worker, What.BEGINS, pid=4000 + int(worker[1:]), colour=colour, counts={})
        for index in range(self.plan.actors):
            actor = Actor(worker, f"{worker}.{index}", tries)
            self.does(actor, self.dice.uniform(0, 0.02), lambda actor=actor: self.want(actor))  # type: ignore[misc]

    def want(self, actor: Actor) -> None:
        key, number = f"key-{self.dice.randrange(self.plan.keys)}", next(actor.tries)
        self.say(actor.who, What.WANTS, key, **{"try": number, "timeout": self.plan.timeout})
        if self.out:
            self.does(actor, 0.4, lambda: self.fail(actor, key, number))
            return
        self.queues[key].append((actor, number))
        self.serve(key)

    def fail(self, actor: Actor, key: str, number: int) -> None:
        self.say(actor.who, What.FAILED, key, **{"try": number, "error": "BackendUnavailable: no answer"})
        self.does(actor, 0.1, lambda: self.want(actor))

    def serve(self, key: str) -> None:
        held = self.held.get(key)
        if self.out or (held is not None and held.expires > self.now):
            return
        self.held.pop(key, None)
        queue = self.queues[key]
        queue[:] = [(actor, number) for actor, number in queue if actor.worker not in self.dead]
        for place, (actor, number) in enumerate(queue):
            if self.stopped.get(actor.worker, 0.0) <= self.now:
                del queue[place]
                self.give(actor, number, key)
                return

    def serve_all(self) -> None:
        for key in sorted(self.queues):
            self.serve(key)

    def give(self, actor: Actor, number: int, key: str) -> None:
        ttl = self.plan.ttl
        self.held[key] = held = Held(actor, number, self.now + ttl)
        self.at(held.expires + 1e-6, lambda: self.serve(key))
        until, token = self.now + 0.97 * ttl, next(self.tokens)
        self.say(actor.who, What.GOT, key, **{"try": number, "token": token, "until": until})
        self.does(actor, self.dice.uniform(0.1, 1) * self.plan.work, lambda: self.leave(actor, number, key, until))

    def leave(self, actor: Actor, number: int, key: str, until: float) -> None:
        if self.now > until:
            self.say("register", What.TURNED_DOWN, key, **{"by": actor.who, "try": number})
            self.say(actor.who, What.REFUSED, key, **{"try": number})
            self.say(actor.who, What.LOST, key, **{"try": number})
            self.say(actor.who, What.LEFT, key, **{"try": number, "how": "lost"})
        else:
            self.say(actor.who, What.WROTE, key, **{"try": number, "version": number})
            self.say(actor.who, What.LEAVES, key, **{"try": number})
            self.say(actor.who, What.LEFT, key, **{"try": number, "how": "no answer" if self.out else "released"})
            if not self.out and self.held.get(key) and self.held[key].actor is actor:
                self.held[key].expires = 0.0
                self.serve(key)
        self.does(actor, self.dice.uniform(0, 0.3) * self.plan.work, lambda: self.want(actor))

    # What the nemesis does

    def blow(self, name: str, on: str, began: float, ended: float, excused: tuple[str, ...] = ()) -> None:
        """Only its words. Whom it struck is known once it has."""
        for t, what in ((began, What.STRIKES), (began, What.STRUCK), (ended, What.HEALS), (ended, What.HEALED)):
            more: dict[str, Any] = {"fault": name, "on": on}
            if what is What.STRIKES:
                more |= {"on": "", "excused": list(excused)}
            self.at(START + t, lambda what=what, more=more: self.say("nemesis", what, **more))  # type: ignore[misc]

    def kill(self, worker: str, began: float, ended: float) -> None:
        colour = self.plan.colours[int(worker[1:]) % len(self.plan.colours)]
        self.blow("kill -9 of a worker", worker, began, ended)
        self.at(START + began, lambda: self.dead.add(worker))
        self.at(START + ended - 1e-6, lambda: self.begin(colour))

    def stop(self, worker: str, began: float, ended: float) -> None:
        self.blow("SIGSTOP of a worker", worker, began, ended)
        self.at(START + began, lambda: self.stopped.update({worker: START + ended}))
        self.at(START + ended + 0.001, self.serve_all)

    def cut(
        self, began: float, ended: float, name: str = "the store is cut off", excused: tuple[str, ...] = ()
    ) -> None:
        def turn(*, out: bool) -> None:
            self.out = out
            self.serve_all()

        self.blow(name, "store", began, ended, excused)
        self.at(START + began, lambda: turn(out=True))
        self.at(START + ended, lambda: turn(out=False))

    def forget(self, t: float, until: float) -> None:
        """The store restarts empty: whoever waits gets in beside who holds."""

        def forgets() -> None:
            self.held.clear()
            self.serve_all()

        self.blow("restart without data", "store", t, until, ("EMPTY_RESTART",))
        self.at(START + t, forgets)

    def run(self) -> list[Event]:
        """All that happens until the end of the plan."""
        while self.agenda and self.agenda[0][0] < START + self.plan.seconds:
            self.now, _, do = heapq.heappop(self.agenda)
            do()
        self.now = START + self.plan.seconds
        self.say("run", What.STOPS)
        self.say("run", What.FINAL, found={})
        for number in range(int(next(self.names)[1:])):
            if f"w{number}" not in self.dead:
                self.say(f"w{number}", What.ENDS, counts={})
        return self.events


def made(plan: Plan, *, faults: bool = True) -> list[Event]:
    """A log of the plan, with some of all that can happen in it."""
    run = Made(plan)
    if faults:
        sixth = plan.seconds / 8
        run.kill("w0", 0.8 * sixth, 1.6 * sixth)
        run.stop("w1", 2.2 * sixth, 2.2 * sixth + 1.6 * plan.ttl)
        run.cut(3.8 * sixth, 4.6 * sixth)
        run.forget(5.5 * sixth, 5.7 * sixth)
        run.stop("w2", 6.3 * sixth, 6.3 * sixth + 0.4 * plan.ttl)
        run.kill("w1", 6.8 * sixth, 7.2 * sixth)
    return run.run()
