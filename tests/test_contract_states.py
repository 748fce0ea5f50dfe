"""Any order of requests leads where a queue on paper leads: one holder, first come, first served, rising tokens."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import DataObject, booleans, data, sampled_from

import distlock
from distlock import BackendError, LeaseState
from distlock._who import new_claim_id
from distlock.backends.base import PROVISIONAL, Busy, Claim, Done, Grant, Subscription, SyncBackend, now

TTL = 60.0
"""Longer than any of this takes: nothing here ends by itself."""
SOON = 20.0
KEYS = ("a", "a:q")


@dataclass
class Waiting:
    """One that is in the queue."""

    claim: Claim
    busy: Busy
    woken: threading.Event = field(default_factory=threading.Event)
    subscription: Subscription | None = None


class Requests(RuleBasedStateMachine):
    """What clients send to a fair store, in any order, each perhaps twice; and what has to come of it."""

    backend: SyncBackend
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.prefix = f"states{next(self.numbers)}:"
        self.holder: dict[str, Grant] = {}
        self.queue: dict[str, list[Waiting]] = {key: [] for key in KEYS}
        self.token: dict[str, int] = dict.fromkeys(KEYS, 0)
        self.ended: list[Grant] = []

    gone: Bundle[Claim] = Bundle("gone")

    def key(self, claim: Claim) -> str:
        return claim.key.removeprefix(self.prefix)

    def ask(self, claim: Claim) -> Grant | Busy:
        outcome = self.backend.acquire(claim, now() + SOON)
        assert not isinstance(outcome, Done)
        return outcome

    def entered(self, key: str, outcome: Grant | Busy) -> None:
        assert isinstance(outcome, Grant)
        assert outcome.token > self.token[key], "tokens rise"
        assert outcome.deadline > now()
        self.holder[key], self.token[key] = outcome, outcome.token

    def hand_over(self, key: str, since: float) -> None:
        """The lock was given up, not before ``since``: the first in the queue is woken, and confirms."""
        del self.holder[key]
        if self.queue[key]:
            first, *others = self.queue[key]
            assert first.woken.wait(SOON)
            early = [self.ask(other.claim) for other in others]
            outcome = self.ask(first.claim)
            assume(now() < since + PROVISIONAL)  # else its chance may have gone to the next one
            assert all(isinstance(each, Busy) for each in early), "not before its turn"
            del self.queue[key][0]
            self.entered(key, outcome)
            assert first.subscription is not None
            first.subscription.close()

    @rule(key=sampled_from(KEYS), wait=booleans(), twice=booleans(), initial=sampled_from("abc"))
    def arrive(self, key: str, wait: bool, twice: bool, initial: str) -> None:
        claim = Claim(initial + new_claim_id(), self.prefix + key, TTL, wait)  # ids do not come in order
        outcome = self.ask(claim)
        if twice:  # as after a lost reply
            again = self.ask(claim)
            assert (type(again), getattr(again, "token", 0)) == (type(outcome), getattr(outcome, "token", 0))
        if key not in self.holder:
            self.entered(key, outcome)
            return
        assert isinstance(outcome, Busy)
        assert outcome.holder is not None
        assert outcome.holder.token == self.token[key]
        if wait:
            waiting = Waiting(claim, outcome)
            waiting.subscription = self.backend.watch(outcome, waiting.woken.set, now() + SOON)
            if waiting.woken.wait(0):  # it was not in the queue yet; now it is
                waiting.woken.clear()
                assert isinstance(self.ask(claim), Busy)
            self.queue[key].append(waiting)

    def some_held(self, data: DataObject) -> str:
        return data.draw(sampled_from(sorted(self.holder)))

    def some_awaited(self, data: DataObject) -> str:
        return data.draw(sampled_from([key for key in KEYS if self.queue[key]]))

    @precondition(lambda self: self.holder)
    @rule(data=data(), twice=booleans())
    def leave(self, data: DataObject, twice: bool) -> None:
        key = self.some_held(data)
        grant, since = self.holder[key], now()
        assert self.backend.release(grant, now() + SOON)
        if twice:
            assert not self.backend.release(grant, now() + SOON)
        self.ended.append(grant)
        self.hand_over(key, since)

    @precondition(lambda self: any(self.queue.values()))
    @rule(data=data(), last=booleans(), target=gone)
    def give_up_waiting(self, data: DataObject, last: bool) -> Claim:
        waiting = self.queue[self.some_awaited(data)].pop(-1 if last else 0)
        assert waiting.subscription is not None
        waiting.subscription.close()
        self.backend.withdraw(waiting.claim, now() + SOON, in_flight=True)
        return waiting.claim

    @precondition(lambda self: self.holder)
    @rule(data=data(), target=gone)
    def give_up_holding(self, data: DataObject) -> Claim:
        key = self.some_held(data)
        grant, since = self.holder[key], now()
        self.backend.withdraw(grant.claim, now() + SOON, in_flight=True)
        self.ended.append(grant)
        self.hand_over(key, since)
        return grant.claim

    @precondition(lambda self: self.holder)
    @rule(data=data())
    def take_away(self, data: DataObject) -> None:
        key = self.some_held(data)
        grant, since = self.holder[key], now()
        assert not self.backend.revoke(self.prefix + key, grant.token + 1, now() + SOON)
        assert self.backend.revoke(self.prefix + key, grant.token, now() + SOON)
        assert not self.backend.revoke(self.prefix + key, grant.token, now() + SOON)
        self.ended.append(grant)
        self.hand_over(key, since)

    @rule(claim=consumes(gone))
    def arrive_late(self, claim: Claim) -> None:
        """Given up before the request arrived."""
        if not self.remembers:
            return
        with pytest.raises(BackendError, match="withdrawn"):
            self.ask(claim)

    remembers = True
    """The store is told of late requests; where none can be late there is nothing to remember."""

    @precondition(lambda self: self.holder)
    @rule(data=data())
    def extend(self, data: DataObject) -> None:
        grant = self.holder[self.some_held(data)]
        renewal = self.backend.extend(grant, TTL, now() + SOON)
        assert renewal.state is LeaseState.HELD
        assert renewal.deadline > now()

    @invariant()
    def renewal_tells_who_holds(self) -> None:
        grants = [*self.ended[-5:], *self.holder.values()]
        states = [renewal.state for renewal in self.backend.renew(grants, now() + SOON)]
        assert states == [LeaseState.LOST] * len(self.ended[-5:]) + [LeaseState.HELD] * len(self.holder)

    @invariant()
    def the_store_says_the_same(self) -> None:
        for key in KEYS:
            found = self.backend.inspect(self.prefix + key, now() + SOON)
            grant = self.holder.get(key)
            assert (found.holder and found.holder.owner) == (grant and grant.claim.id)
            assert [waiter.owner for waiter in found.waiters] == [waiting.claim.id for waiting in self.queue[key]]

    def teardown(self) -> None:
        for key in KEYS:
            for waiting in self.queue[key]:
                assert waiting.subscription is not None
                waiting.subscription.close()
                self.backend.withdraw(waiting.claim, now() + SOON, in_flight=False)
            if key in self.holder:
                self.backend.release(self.holder[key], now() + SOON)
        assert [found.key for found in self.backend.list(self.prefix, now() + SOON)] == []


def check(backend: Any, **more: Any) -> None:
    machine = cast("type[Requests]", type("Machine", (Requests,), {"backend": backend, **more}))
    steps = settings(max_examples=40, stateful_step_count=30, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=steps)


def test_any_order_of_requests_in_memory() -> None:
    with distlock.connect("memory://") as locks:
        check(locks._backend, remembers=False)


def test_any_order_of_requests_on_redis(redis_url: str) -> None:
    with distlock.connect(redis_url) as locks:
        check(locks._backend)
