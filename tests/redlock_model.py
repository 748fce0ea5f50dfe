"""Redlock without servers: nodes, clients, a network and clocks, all as bad as they may be, around the real `Ballot`.

Not in here is what `guarantees` excepts, but for one thing: a node may forget a vote of a claim that was not granted
yet. Without that the checks of the second round would never be needed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distlock import LeaseState
from distlock.backends.base import proven_until
from distlock.backends.redis.redlock._votes import Ballot, Refusal, Verdict, Vote, tally

__all__ = ("ModelNode", "Violation", "World")

TTL = 100.0
CALM = 0.95


class Violation(AssertionError):
    """What must never be."""


@dataclass
class Held:
    claim: str
    attempt: int
    sealed: bool
    token: int
    expires: float


@dataclass
class ModelNode:
    """What the scripts do. ``rate`` is how fast its clock runs; ``wall`` is where it stands, and may be set at will."""

    rate: float = 1.0
    wall: int = 1000
    lock: Held | None = None
    clock: int = 0
    tombs: set[str] = field(default_factory=set)
    # Ways to be wrong, for the tests of the tests.
    seals_anything: bool = False
    seals_too_low: bool = False
    writes_back: bool = True
    undoes_any_attempt: bool = False

    def held(self, t: float) -> Held | None:
        if self.lock is not None and self.lock.expires <= t:
            self.lock = None
        return self.lock

    def vote(self, t: float, claim: str, attempt: int, ttl: float) -> Vote | Refusal | None:
        if claim in self.tombs:
            return None
        lock, expires = self.held(t), t + ttl / self.rate
        if lock is None:
            token = max(self.wall, self.clock + 1)
            self.lock = Held(claim, attempt, False, token, expires)
            return Vote(token)
        if lock.claim != claim:
            return Refusal(lock.claim, lock.sealed, lock.expires - t)
        if lock.attempt <= attempt:
            lock.attempt, lock.expires = attempt, max(lock.expires, expires)
        return Vote(lock.token, lock.sealed)

    def seal(self, t: float, claim: str, attempt: int, token: int) -> int:
        lock = self.held(t)
        if self.seals_anything:
            self.lock = lock = Held(claim, attempt, False, 0, t + TTL)
        if lock is None or (lock.claim, lock.attempt) != (claim, attempt):
            return -1
        if token < lock.token and not self.seals_too_low:
            return lock.token
        lock.sealed, lock.token = True, token
        if self.writes_back:
            self.clock = max(self.clock, token)
        return 0

    def end(self, t: float, claim: str, attempt: int | None, remember: bool) -> int:
        lock = self.held(t)
        if remember:
            self.tombs.add(claim)
        any_attempt = attempt is None or self.undoes_any_attempt
        if lock is not None and lock.claim == claim and (any_attempt or lock.attempt == attempt):
            self.lock = None
            return 1
        return 0

    def renew(self, t: float, claim: str, ttl: float) -> int:
        lock = self.held(t)
        if lock is None or lock.claim != claim:
            return 0
        lock.expires = max(lock.expires, t + ttl / self.rate)
        return 1


@dataclass
class Lease:
    """What a client believes."""

    claim: str
    token: int
    until: float


Request = Callable[[ModelNode, float], Any]
Hear = Callable[[int, Any], object]


class Line:
    """One connection: requests and replies in order, each as late as it likes."""

    def __init__(self) -> None:
        self.requests: deque[tuple[Request, Hear]] = deque()
        self.replies: deque[tuple[Any, Hear]] = deque()


class Client:
    """What the backend does, with one lock."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.claims = self.attempt = 0
        self.claim = ""
        self.asked_at = 0.0
        self.ballot: Ballot | None = None
        self.sealing = False
        self.lease: Lease | None = None

    def step(self, dice: random.Random) -> None:
        if self.lease is not None:
            dice.choice([self.release, self.renew, lambda: None])()
        elif self.ballot is None:
            self.ask(new=not self.claim or dice.random() < 0.3)
        elif dice.random() < 0.1:
            self.decide(final=True)

    def ask(self, *, new: bool) -> None:
        if new:
            if self.claim:  # given up, with a word to each node that holds for late requests too
                given_up = self.claim
                self.tell(lambda node, t: node.end(t, given_up, None, True))
            self.claims += 1
            self.claim = f"{self.name}{self.claims}"
        self.attempt += 1
        self.asked_at, self.sealing = self.world.t, False
        self.ballot = ballot = Ballot(len(self.world.nodes))
        claim, attempt = self.claim, self.attempt

        def hear(node: int, answer: Any) -> None:
            if self.ballot is ballot and not self.sealing:
                ballot.hear(node, answer)
                self.decide(final=False)

        self.tell(lambda node, t: node.vote(t, claim, attempt, TTL), hear)

    def decide(self, *, final: bool) -> None:
        ballot = self.ballot
        assert ballot is not None
        verdict = ballot.sealing(final=final) if self.sealing else ballot.voting(final=final)
        if verdict is Verdict.SEAL:
            self.seal(ballot)
        elif verdict is Verdict.GRANTED:
            start = self.asked_at if self.world.counts_from_before else self.world.t
            self.ballot = None
            if self.world.t < proven_until(start, TTL):
                self.lease = Lease(self.claim, ballot.token, proven_until(start, TTL))
                self.world.granted(self)
            else:
                self.take_back()
        elif verdict is not Verdict.OPEN:
            self.take_back()

    def seal(self, ballot: Ballot) -> None:
        self.sealing = True
        nodes, claim, attempt, token = ballot.seal(), self.claim, self.attempt, ballot.token

        def hear(node: int, answer: Any) -> None:
            if self.ballot is ballot and ballot.token == token:
                ballot.hear_seal(node, answer)
                self.decide(final=False)

        self.tell(lambda node, t: node.seal(t, claim, attempt, token), hear, nodes)

    def take_back(self) -> None:
        self.ballot = None
        claim, attempt = self.claim, self.attempt
        self.tell(lambda node, t: node.end(t, claim, attempt, False))

    def release(self) -> None:
        assert self.lease is not None
        self.lease, claim = None, self.claim
        self.claim = ""
        self.tell(lambda node, t: node.end(t, claim, None, True))

    def renew(self) -> None:
        lease, asked_at, held, gone = self.lease, self.world.t, 0, 0
        assert lease is not None
        claim = lease.claim

        def hear(node: int, answer: Any) -> None:
            nonlocal held, gone
            held, gone = held + answer, gone + 1 - answer
            state = tally(held, gone, len(self.world.nodes))
            if self.lease is lease and state is LeaseState.HELD and self.world.t < lease.until:
                lease.until = max(lease.until, proven_until(asked_at, TTL))

        self.tell(lambda node, t: node.renew(t, claim, TTL), hear)

    def tell(self, request: Request, hear: Hear = lambda node, answer: None, nodes: Any = None) -> None:
        for node in range(len(self.world.nodes)) if nodes is None else nodes:
            self.world.lines[self.name, node][-1].requests.append((request, hear))


class World:
    """Takes one random step after another and looks whether all is well."""

    def __init__(
        self, seed: int, nodes: int, *, clients: int = 2, counts_from_before: bool = True, **wrong: Any
    ) -> None:
        self.dice = random.Random(seed)
        self.t = 0.0
        self.counts_from_before = counts_from_before
        self.nodes = [
            ModelNode(rate=self.dice.choice([0.992, 1.0, 1.008]), wall=self.dice.randrange(0, 3000, 500), **wrong)
            for _ in range(nodes)
        ]
        self.clients = [Client(self, name) for name in "abc"[:clients]]
        self.lines = {(client.name, node): [Line()] for client in self.clients for node in range(nodes)}
        self.slow: set[tuple[str, int]] = set()
        self.grants = 0
        self.last = ("", 0)

    def run(self, steps: int) -> World:
        for _ in range(steps):
            roll = self.dice.random()
            if roll < 0.15:
                self.dice.choice(self.clients).step(self.dice)
            elif roll < CALM:
                self.deliver()
            elif roll < CALM + 0.02:
                self.t += self.dice.choice([0.1, 1.0, 20.0, 60.0, 99.5])
                self.lapse()
            else:
                self.hurt(self.dice.choice(self.nodes))
        return self

    def deliver(self) -> None:
        if self.dice.random() < 0.05:  # some are slow for a while
            self.slow = {place for place in self.lines if self.dice.random() < 0.4}
        waiting = [
            (line, place[1])
            for place, lines in self.lines.items()
            for line in lines
            if place not in self.slow and (line.requests or line.replies)
        ]
        if not waiting:
            return
        line, node = self.dice.choice(waiting)
        if line.replies and (not line.requests or self.dice.random() < 0.5):
            answer, hear = line.replies.popleft()
            hear(node, answer)
        elif line.requests:
            request, hear = line.requests.popleft()
            line.replies.append((request(self.nodes[node], self.t), hear))

    def hurt(self, node: ModelNode) -> None:
        place = next(place for place, one in enumerate(self.nodes) if one is node)
        kind = self.dice.choice([0, 1, 1, 1, 2, 3, 3])
        if kind == 0:  # its clock is set
            node.wall = self.dice.randrange(0, 3000, 100)
        elif kind == 1 and node.lock is not None and not node.lock.sealed and not self.holds(node.lock.claim):
            node.lock = None  # a vote is forgotten
        else:  # a connection breaks; what was on its way may still arrive, in no order with what comes later
            lines = self.lines[self.dice.choice(self.clients).name, place]
            lines[-1].replies.clear()
            if kind == 2:
                lines[-1].requests.clear()
            lines.append(Line())
            del lines[:-3]

    def holds(self, claim: str) -> bool:
        return any(client.lease is not None and client.lease.claim == claim for client in self.clients)

    def lapse(self) -> None:
        for client in self.clients:
            if client.lease is not None and client.lease.until <= self.t:
                client.release()

    def granted(self, client: Client) -> None:
        lease = client.lease
        assert lease is not None
        self.grants += 1
        for other in self.clients:
            if other is not client and other.lease is not None and other.lease.until > self.t:
                raise Violation(f"{lease} beside {other.lease} at {self.t}")
        claim, token = self.last
        if lease.token <= token and claim != lease.claim:
            raise Violation(f"{lease} after {self.last}")
        self.last = lease.claim, lease.token
