"""What must hold in every moment, whatever happens: DESIGN's invariants, each a check with its name."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distlock import AcquireTimeout, BackendUnavailable, LeaseState
from distlock._core.acquire import FAIR
from distlock.backends.base import PROVISIONAL
from distlock.backends.redis._backend import RedisBackend
from distlock.backends.redis.redlock._backend import RedlockBackend

from .fibers import SIM
from .network import Server
from .store import Seen, script_of
from .world import OP_TIMEOUT, Call, Client, Held

__all__ = ("Properties", "Violation")

SOON = 0.2
"""Seconds within which a process that is well does what is due."""
PAUSE = 1.0
"""Seconds at most after which what could not be withdrawn is tried again."""
SETTLED = 10.0
"""Seconds after which nothing is left of what a process went through."""
NOTHING = Seen()


class Violation(AssertionError):
    """What must never be; it begins with the name of what was broken."""


class Properties:
    """Looks at everything after each event."""

    fair = True

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = servers
        self.needed = len(servers) // 2 + 1
        self.fair = len(servers) == 1
        self.clients: list[Client] = []
        self.calls: list[Call] = []
        self.held: list[Held] = []
        self.grants = 0
        self.tokens: dict[str, tuple[int, str]] = {}
        self.seen: list[dict[str, Seen]] = [{} for _ in servers]
        self.free_since: dict[str, float] = {}
        self.queued_at: dict[str, float] = {}
        self.by_claim: dict[str, Call] = {}
        self.disturbed_at = -1.0
        """When a request was last repeated behind everyone's back."""
        self.keys: list[str] = []
        self.highest: dict[str, int] = {}
        self.held_since: dict[str, float] = {}
        self.handed: set[str] = set()
        """Claims that were in the queue when they got the lock."""
        self.given_up: list[tuple[Call | Held, float]] = []
        self.broken = False
        for n, server in enumerate(servers):
            server.ran = lambda n=n: self._ran(n)  # type: ignore[misc]

    def look(self) -> None:
        """After each event."""
        for client in self.clients:
            client.look()
        try:
            self._gather()
            for held in self.held:
                self._check_held(held)
            self._check_waiting()
            for key in self.keys:
                self._check_moving(key)
            self._check_given_up()
        except BaseException:
            self.broken = True
            raise

    # Calls.

    def _gather(self) -> None:
        for call in [each for each in self.calls if each.fiber.done or each.client.dead]:
            self.calls.remove(call)
            if call.client.dead:
                continue
            if call.fiber.error is not None:
                raise call.fiber.error
            if call.lease is not None:
                self._granted(call)
                continue
            self.given_up.append((call, SIM.t))
            if call.error is not None and not call.cancelled:
                self._check_error(call, call.error)

    def _check_error(self, call: Call, error: BaseException) -> None:
        if isinstance(error, AcquireTimeout):
            waited = (SIM.t - call.began) * call.client.rate
            if call.timeout is None or waited < call.timeout - 0.001:
                raise Violation(f"timeout: {call.claim} gave up after {waited:.3f} s")
        elif not isinstance(error, BackendUnavailable):
            raise Violation(f"own grant found: {call.claim} met {error!r}") from error
        elif self._calm(call.client, call.began):
            raise Violation(f"no error without a fault: {call.claim} met {error!r}") from error

    def _granted(self, call: Call) -> None:
        assert call.lease is not None
        held = Held(call.client, call.lease)
        self.held.append(held)
        self.grants += 1
        if held.proven:
            token, claim = self.tokens.get(held.key, (0, ""))
            if held.lease.token <= token and claim != held.claim:
                raise Violation(f"tokens rise: {held.claim} got {held.lease.token} after {token} of {claim}")
            self.tokens[held.key] = held.lease.token, held.claim

    def released(self, held: Held) -> None:
        """Its owner is rid of it."""
        self.given_up.append((held, SIM.t))

    def _calm(self, client: Client, since: float) -> bool:
        """Nothing was wrong with that process for long before, and has not been since."""
        return max(client.hurt_at, self.disturbed_at) < max(0.0, since - SETTLED)

    # Leases.

    def _check_held(self, held: Held) -> None:
        if held.proven:
            if held.over:
                raise Violation(f"never revived: {held.claim} had ended and is {held.lease!r}")
            for other in self.held:
                if other is not held and other.key == held.key and other.claim != held.claim and other.proven:
                    raise Violation(f"exclusion: {held.claim} and {other.claim} both hold {held.key}")
            if (ends := self._ends(held)) < held.until:
                raise Violation(
                    f"early loss: {held.claim} has {held.key} until {ends}, and believes until {held.until}"
                )
        elif not held.over:
            held.over, held.over_at = True, SIM.t
        if held.told > 1:
            raise Violation(f"told once: {held.claim} was told {held.told} times")
        if held.over and not held.told:
            self._check_told(held)

    def _check_told(self, held: Held) -> None:
        hold, client = held.hold, held.client
        lost = not (held.given_back or client.dead or hold.giving_up or hold.ended is LeaseState.RELEASED)
        if lost and SIM.t > max(held.over_at, client.hurt_at) + SOON:
            raise Violation(f"loss is told: {held.claim} ended at {held.over_at}, and its owner was not told")

    def _ends(self, held: Held) -> float:
        """Until when a majority has it, if nobody does anything; what is proven is never more."""
        found = [seen.get(held.key, NOTHING) for seen in self.seen]
        return sorted([each.ends if each.holder == held.claim else -1.0 for each in found])[-self.needed]

    # Waiting.

    def _ran(self, n: int) -> None:
        """A server has done something."""
        for key in self.keys:
            before, after = self.seen[n].get(key, NOTHING), self.servers[n].store.see(key)
            if after == before:
                continue
            self.seen[n][key] = after
            for claim in after.queue:
                self.queued_at.setdefault(claim, SIM.t)
            if after.holder and (after.holder != before.holder or before.ends <= SIM.t):
                self._check_new(n, key, before, after)
                self.held_since[key] = SIM.t
                if after.holder in before.queue:
                    self.handed.add(after.holder)
                if self.fair:
                    self._check_order(before, after)
            elif not after.holder and self.fair and script_of(self.servers[n].past[-1]) == "release":
                self._check_passed_on(after)

    def look_again(self) -> None:
        """The clock of a server was set."""
        for n, server in enumerate(self.servers):
            self.seen[n].update({key: server.store.see(key) for key in self.keys})

    def _check_new(self, n: int, key: str, before: Seen, after: Seen) -> None:
        if not self.fair:
            return
        if after.token <= self.highest.get(key, 0):
            raise Violation(f"never revived: {after.holder} has {key} again, with {after.token}")
        self.highest[key] = after.token
        words = self.servers[n].past[-1]
        asker = words[3 + int(words[2])].decode()
        if after.holder in before.queue and asker != after.holder and after.ends > SIM.t + PROVISIONAL + 0.001:
            raise Violation(f"a hand-over moves on: {after.holder} was handed {key} until {after.ends}")

    def _check_order(self, before: Seen, after: Seen) -> None:
        for claim in before.queue:
            if claim == after.holder:
                return
            call = next((each for each in self.calls if each.claim == claim), None)
            if call is not None and call.waits and self._calm(call.client, self.queued_at[claim]):
                raise Violation(f"first come, first served: {after.holder} got it before {claim}")

    def _check_passed_on(self, after: Seen) -> None:
        for call in self.calls:
            if call.claim in after.queue and call.waits and self._calm(call.client, self.queued_at[call.claim]):
                raise Violation(f"a release hands over: {call.key} was released and is free, and {call.claim} waits")

    def _check_moving(self, key: str) -> None:
        """It was handed to a process that stands still, and others wait."""
        for seen in self.seen:
            holder = seen.get(key, NOTHING).holder
            since = self.held_since.get(key, 0.0)
            if holder not in self.handed or SIM.t < since + PROVISIONAL + SOON or seen[key].ends <= SIM.t:
                continue
            client = next(each for each in self.clients if each.name == holder.partition(".")[0])
            if client.stood_since + 1.5 < since and any(call.key == key and call.waits for call in self.calls):
                raise Violation(f"a hand-over moves on: {holder} has {key} since {since} and stands still")

    def _check_given_up(self) -> None:
        """Whoever came back without the lock has left nothing in the store."""
        for call, ended in self.given_up:
            client = call.client
            # Neither is what arrives after so long, or twice, without the client's knowledge: it ends with its ttl.
            if client.dead or max(client.cut_at, self.disturbed_at) >= call.began or SIM.t > ended + 2 * SETTLED:
                continue
            if SIM.t > max(ended, client.hurt_at, self.disturbed_at) + PAUSE + SOON:
                for seen in self.seen:
                    there = seen.get(call.key, NOTHING)
                    if (there.holder == call.claim and there.ends > SIM.t) or call.claim in there.queue:
                        raise Violation(f"no orphan: {call.claim} was done with {call.key} at {ended}, and is there")

    def _is_free(self, key: str) -> bool:
        found = [seen.get(key, NOTHING) for seen in self.seen]
        return sum(not each.holder or each.ends <= SIM.t for each in found) >= self.needed

    def _check_waiting(self) -> None:
        t = SIM.t
        for key in self.keys:
            if not self._is_free(key):
                self.free_since.pop(key, None)
            else:
                self.free_since.setdefault(key, t)
        for call in self.calls:
            since = max(self.free_since.get(call.key, math.inf), call.began, call.client.hurt_at, self.disturbed_at)
            calm = self._calm(call.client, call.began)
            bound = call.ttl / 3 + SOON if calm else call.ttl + OP_TIMEOUT + 3
            if self.fair and call.waits and t - since > bound:
                raise Violation(f"no lost wake-up: {call.key} is free since {since}, and {call.claim} still waits")
            self._check_late(call)

    def _check_late(self, call: Call) -> None:
        if call.timeout is None or call.client.stopped:
            return
        most = max(call.timeout, FAIR) + FAIR if call.timeout else 2 * OP_TIMEOUT + 1
        again = 2 * FAIR
        if call.cancelled:  # better left with nothing behind
            most, again = most + OP_TIMEOUT, again + OP_TIMEOUT
        if SIM.t > max(call.began + most * 1.01, call.client.went_on_at + again * 1.01) + SOON:
            raise Violation(f"timeout: {call.claim} has not come back after {SIM.t - call.began:.3f} s")

    # The end.

    def check_left(self) -> None:
        """All is done, and the longest ttl is over."""
        left = [key for server in self.servers for key in server.store.left()]
        if left:
            raise Violation(f"nothing left behind: the store has {left}, {self.seen}")
        for client in [each for each in self.clients if not each.dead]:
            watchdog, backend = client.manager._watchdog, client.backend
            waiting: object = None
            if isinstance(backend, RedisBackend):
                waiting = backend.inbox._waiting  # type: ignore[attr-defined]
            elif isinstance(backend, RedlockBackend):
                waiting = backend._watcher.awaited()
            if watchdog.holds or watchdog._chores or waiting:
                raise Violation(f"nothing left behind: {client.name} has {watchdog.holds, watchdog._chores, waiting}")

    def check_ended(self) -> None:
        """All managers are closed."""
        for client in [each for each in self.clients if not each.dead]:
            if alive := [fiber.name for fiber in client.fibers if not fiber.done]:
                raise Violation(f"nothing left behind: {client.name} has threads {alive}")
