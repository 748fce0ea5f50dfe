"""Redlock: one lock on a majority of several Redis servers that know nothing of each other.

The algorithm is that of redis.io, "Distributed Locks with Redis", with a second round that makes tokens rise.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..._dice import DICE
from ...base import (
    BackendError,
    BackendUnavailable,
    Busy,
    Claim,
    ConfigurationError,
    Grant,
    Guarantees,
    Holder,
    Inspection,
    LeaseState,
    Renewal,
    Subscription,
    SyncBackend,
    Unsupported,
    Waiter,
    Wake,
    now,
    proven_until,
)
from .._backend import GUARANTEES
from .._connect import Server
from .._scripts import INSPECT, Script
from ._fan import Call, Fan
from ._node import Debt, Node, Slot
from ._url import servers_of
from ._votes import Ballot, Refusal, Verdict, Vote, majority, tally
from ._waiting import Watcher
from ._wire import RENEW, SEAL, VOTE, Found, Requests, found_at

__all__ = ("RedlockBackend", "open_url")

# The faults of each node are those of a single server.
REDLOCK = replace(GUARANTEES, backend="redlock", fair=False, owner_reentrant=False)

BATCH = 256
UNKNOWN = Renewal(LeaseState.UNKNOWN)
MY_OWN: Mapping[int, int] = {}
TRIES = 10
"""Attempts of one call, when several clients split the votes among them."""
SEALS = 4
FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.1
"""Seconds at most between two of them: the random pause doubles."""
LONGEST_SPLIT = 1.0
"""Seconds after which a waiter tries again when all of these were for nothing."""


class RedlockBackend(SyncBackend):
    """Thread-safe. Connects when it is first asked."""

    guarantees: Guarantees = REDLOCK

    def __init__(self, servers: Sequence[Server], address: str, namespace: str, op_timeout: float) -> None:
        self.address: str = address
        self.namespace = namespace
        self.op_timeout = op_timeout
        # A vote that is late gets no second chance, so that a node should know the scripts from the start.
        greeting = [script.load for script in (VOTE, SEAL, RENEW)]
        self.nodes: Sequence[Node] = [Node(index, one, op_timeout, greeting) for index, one in enumerate(servers)]
        self.needed: int = majority(len(servers))
        self._fan = Fan(self.nodes)
        self._requests = Requests(namespace, op_timeout)
        self._watcher = Watcher(servers, self._requests, op_timeout)
        self._attempts = itertools.count(1)
        self._late: dict[str, list[Slot]] = {}
        """By claim: requests for votes without an answer, for as long as the claim is not ended."""
        self._unasked: set[str] = set()
        """Claims that wait, and of which no node has anything to forget."""
        self._closed = False

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy:
        if not claim.wait:
            return self._try(claim, deadline)
        if not self._watcher.begin(claim):
            if claim.id not in self._late:
                self._unasked.add(claim.id)
            return Busy(claim, self._watcher.holder(claim.key))
        self._unasked.discard(claim.id)
        try:
            return self._try(claim, deadline)
        except BaseException:
            self._watcher.failed(claim)
            raise

    def _try(self, claim: Claim, deadline: float) -> Grant | Busy:
        pause, started, outcome = FIRST_PAUSE, now(), None
        for tries in range(1, TRIES + 1):
            try:
                outcome = self._attempt(claim, deadline)
            except BackendUnavailable as error:
                if tries == 1 or now() < deadline:
                    raise
                # The nodes had answered; that they did not in what was left of the time is no outage.
                return Busy(claim, None, FIRST_PAUSE, in_flight=error.sent)
            if isinstance(outcome, Grant):
                self._watcher.won(claim)
                return outcome
            if outcome is not None:
                break
            wait = DICE.uniform(0, pause)  # two that met are not to meet again
            longest = 2 * (now() - started) / tries + wait
            if tries == TRIES or now() + longest >= deadline:  # one that is cut short would say nothing of the nodes
                break
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)
        if not claim.wait:  # nobody withdraws it: what was sent behind its requests does
            self._late.pop(claim.id, None)
        # Split for so long: most likely by those that died before they had a majority, or gave up. A release tells.
        return outcome or Busy(claim, None, DICE.uniform(0.3, 1) * min(LONGEST_SPLIT, claim.ttl / 3))

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        return self._watcher.watch(busy.claim, wake)

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        self._watcher.forget(claim.id)
        unasked = claim.id in self._unasked
        self._unasked.discard(claim.id)
        if in_flight or not unasked:
            self._end(claim, deadline, in_flight=in_flight)

    def release(self, grant: Grant, deadline: float) -> bool:
        held, gone = self._end(grant.claim, deadline, in_flight=grant.in_flight)
        # Where too few nodes have said it, the time that is proven says that it was ours.
        return tally(held, gone, len(self.nodes)) is not LeaseState.LOST

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        return self._renew([(grant.claim, ttl)], deadline, grant.claim.key)[0]

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        results: list[Renewal] = []
        for start in range(0, len(grants), BATCH):
            batch = [(grant.claim, grant.claim.ttl) for grant in grants[start : start + BATCH]]
            try:
                results += self._renew(batch, deadline)
            except BackendError:
                if not results:
                    raise
                return results + [UNKNOWN] * (len(grants) - len(results))  # what is proven is proven
        return results

    def revoke(self, key: str, token: int, deadline: float) -> bool:
        found = self._look(key, deadline)
        ids = {one.claim for one in found.values() if one.sealed and one.token == token and one.claim}
        for claim_id in ids:
            # The holder may have listed the nodes in another order.
            places = {node: one.place for node, one in found.items() if one.claim == claim_id}
            held, gone = self._end(Claim(claim_id, key, self.op_timeout, wait=False), deadline, places=places)
            return tally(held, gone, len(self.nodes)) is not LeaseState.LOST
        return False

    def inspect(self, key: str, deadline: float) -> Inspection:
        waiters = tuple(Waiter.read(claim.owner or claim.id, claim.about) for claim in self._watcher.claims(key))
        return Inspection(key, self._holder([*self._look(key, deadline).values()]), waiters)

    def list(self, prefix: str, deadline: float) -> Iterator[Inspection]:
        keys = self._scan(prefix) | {key for key in self._watcher.awaited() if key.startswith(prefix)}
        for key in sorted(keys):
            found = self.inspect(key, now() + self.op_timeout)  # there may be many of them
            if found.holder is not None or found.waiters:
                yield found

    def results(self) -> SyncBackend:
        raise Unsupported(
            "redlock keeps no results: nodes that know nothing of each other cannot record work and end its claim in"
            " one step, so that it might be done twice; use one server, Sentinel or a Cluster for that (redis://,"
            f" redis+sentinel://, redis+cluster://), or etcd [{self.address}]",
            backend=self.address,
        )

    def close(self) -> None:
        self._closed = True
        self._watcher.close()
        for node in self.nodes:
            node.close()

    def after_fork(self) -> None:
        self._late, self._unasked = {}, set()
        self._watcher.after_fork()
        for node in self.nodes:
            node.after_fork()

    # Acquiring.

    def _attempt(self, claim: Claim, deadline: float) -> Grant | Busy | None:
        """None: nobody has a majority."""
        if self._closed:
            raise BackendError(f"this manager was closed [{self.address}]", key=claim.key, backend=self.address)
        attempt, ballot, asked_at = next(self._attempts), Ballot(len(self.nodes)), now()
        with self._fan.call(deadline, claim.key) as call:
            try:
                verdict, holder = self._vote(call, ballot, claim, attempt)
                if verdict is Verdict.SEAL:
                    verdict = self._seal(call, ballot, claim, attempt)
            except Exception:
                self._take_back(call, claim, attempt)
                raise
            proven = proven_until(asked_at, claim.ttl)
            if verdict is Verdict.GRANTED and now() < proven:
                return Grant(claim, ballot.token, proven)
            self._take_back(call, claim, attempt)
            if verdict is Verdict.UNREACHED:
                raise call.unreached(self.address)
        if verdict is not Verdict.TAKEN:
            return None
        self._watcher.lost(claim, ballot.free_in, holder)
        return Busy(claim, holder)

    def _vote(self, call: Call, ballot: Ballot, claim: Claim, attempt: int) -> tuple[Verdict, Holder | None]:
        """And who holds it, if someone does."""
        holders: list[Holder] = []

        def heard(node: int, reply: Any) -> None:
            if isinstance(reply, BackendError):
                ballot.hear(node, None)
            elif reply[0]:
                ballot.hear(node, Vote(reply[1], reply[0] == 2))
            else:
                found = found_at(claim.key, reply[3], reply[1], reply[2])
                if found.claim == claim.id:
                    raise self._twice(node, claim.key)
                ballot.hear(node, Refusal(found.claim, found.sealed, found.free_in))
                if found.sealed and found.holder is not None:
                    holders.append(found.holder)

        frames = {node: self._requests.vote(claim, node, attempt) for node in range(len(self.nodes))}
        late = call.ask(frames, VOTE, heard, lambda: ballot.voting(final=False) is Verdict.OPEN, eager=True)
        if late:
            self._late.setdefault(claim.id, []).extend(late)
        return ballot.voting(final=True), holders[0] if holders else None

    def _seal(self, call: Call, ballot: Ballot, claim: Claim, attempt: int) -> Verdict:
        def heard(node: int, reply: Any) -> None:
            ballot.hear_seal(node, None if isinstance(reply, BackendError) else reply)

        for _ in range(SEALS):
            frames = {}
            for node in ballot.seal():
                if call.is_linked(node):
                    frames[node] = self._requests.seal(claim, node, attempt, ballot.token)
                else:  # it has not even been asked for its vote
                    ballot.hear_seal(node, None)
            call.ask(frames, SEAL, heard, lambda: ballot.sealing(final=False) is Verdict.OPEN)
            verdict = ballot.sealing(final=True)
            if verdict is not Verdict.SEAL:
                return verdict
        return Verdict.SPLIT

    def _take_back(self, call: Call, claim: Claim, attempt: int) -> None:
        """Withdraws an attempt everywhere, without waiting for any node."""
        until = now() + claim.ttl
        call.tell(
            {
                node: Debt((claim.id, str(attempt)), self._requests.undo(claim, node, attempt), until)
                for node in range(len(self.nodes))
            }
        )

    def _twice(self, node: int, key: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.nodes[node].address} is the same server as another node of the list, and would count twice"
            f" [{self.address}]",
            key=key,
            backend=self.address,
        )

    # Everything else.

    def _end(
        self, claim: Claim, deadline: float, *, in_flight: bool = False, places: Mapping[int, int] = MY_OWN
    ) -> tuple[int, int]:
        """Ends whatever the claim has anywhere: how many nodes had it, and how many had not.

        Returns when a majority has confirmed it; the others go on being told.
        """
        held = gone = 0

        def heard(node: int, reply: Any) -> None:
            nonlocal held, gone
            if not isinstance(reply, BackendError):
                held, gone = held + bool(reply), gone + (not reply)

        def is_open() -> bool:
            # Had or had not: that, too, is for a majority to say.
            return held + gone < self.needed or tally(held, gone, len(self.nodes)) is LeaseState.UNKNOWN

        until = now() + claim.ttl
        with self._fan.call(deadline, claim.key) as call:
            for node in range(len(self.nodes)):
                call.link(node)  # which reads what has come in the meantime
            in_flight = any(slot.is_lost for slot in self._late.pop(claim.id, ())) or in_flight
            frames, late = (
                {
                    node: self._requests.end(claim, places.get(node, node), in_flight=remembered)
                    for node in range(len(self.nodes))
                }
                for remembered in (in_flight, True)
            )
            debts = {node: Debt((claim.id,), frame, until) for node, frame in late.items()}
            call.ask(frames, None, heard, is_open, debts)
            if held + gone < self.needed:
                error = call.unreached(self.address)
                error.sent = True
                raise error
        return held, gone

    def _renew(
        self, claims: Sequence[tuple[Claim, float]], deadline: float, key: str | None = None
    ) -> Sequence[Renewal]:
        counts = [[0, 0] for _ in claims]
        total = len(self.nodes)

        def heard(node: int, reply: Any) -> None:
            if not isinstance(reply, BackendError):
                for count, had in zip(counts, reply, strict=True):
                    count[0 if had else 1] += 1

        def is_open() -> bool:
            return any(tally(yes, no, total) is LeaseState.UNKNOWN for yes, no in counts)

        asked_at = now()
        frames = {node: self._requests.renew(claims, node) for node in range(total)}
        with self._fan.call(deadline, key) as call:
            call.ask(frames, RENEW, heard, is_open)
            if max(sum(count) for count in counts) < self.needed:
                raise call.unreached(self.address)
        states = [tally(yes, no, total) for yes, no in counts]
        return [
            Renewal(state, proven_until(asked_at, ttl) if state is LeaseState.HELD else 0.0)
            for state, (_, ttl) in zip(states, claims, strict=True)
        ]

    def _ask_all(
        self, frames: Mapping[int, bytes], script: Script | None, deadline: float, key: str | None = None
    ) -> dict[int, Any]:
        """What every node says that answers in time; a majority does."""
        replies: dict[int, Any] = {}

        def heard(node: int, reply: Any) -> None:
            if not isinstance(reply, BackendError):
                replies[node] = reply

        with self._fan.call(deadline, key) as call:
            call.ask(frames, script, heard, lambda: len(replies) < len(frames))
            if len(replies) < self.needed:
                raise call.unreached(self.address)
        return replies

    def _look(self, key: str, deadline: float) -> dict[int, Found]:
        """What the nodes have of a lock; those that have none, or do not answer, are left out."""
        frames = dict.fromkeys(range(len(self.nodes)), self._requests.inspect(key))
        replies = self._ask_all(frames, INSPECT, deadline, key)
        return {node: found_at(key, value, pttl, us) for node, (value, pttl, us) in replies.items() if value}

    def _holder(self, found: Sequence[Found]) -> Holder | None:
        for one in found:
            same = sorted((other.free_in for other in found if other.claim == one.claim), reverse=True)
            if one.sealed and len(same) >= self.needed and one.holder is not None:
                ttl = same[self.needed - 1]  # until a majority does not have it any more
                return replace(one.holder, ttl=ttl if ttl < float("inf") else None)
        return None

    def _scan(self, prefix: str) -> set[str]:
        keys: set[str] = set()
        cursors = dict.fromkeys(range(len(self.nodes)), b"0")
        gone: set[int] = set()
        while cursors:
            frames = {node: self._requests.scan(cursor, prefix) for node, cursor in cursors.items()}
            replies: dict[int, Any] = {}

            def heard(node: int, reply: Any, replies: dict[int, Any] = replies) -> None:
                if not isinstance(reply, BackendError):
                    replies[node] = reply

            def is_open(replies: dict[int, Any] = replies, asked: int = len(frames)) -> bool:
                return len(replies) < asked

            with self._fan.call(now() + self.op_timeout) as call:
                call.ask(frames, None, heard, is_open)
                gone |= set(frames) - set(replies)
                if len(gone) > len(self.nodes) - self.needed:
                    raise call.unreached(self.address)
            for _, names in replies.values():
                keys.update(key for key in self._requests.keys_in(names) if key.startswith(prefix))
            cursors = {node: cursor for node, (cursor, _) in replies.items() if cursor != b"0"}
        return keys


def open_url(url: str, *, namespace: str, op_timeout: float) -> RedlockBackend:
    """``redlock://[user:password@]h1:p,h2:p,h3:p/db``, and ``redlock+tls://``."""
    servers, address = servers_of(url)
    return RedlockBackend(servers, address, namespace, op_timeout)
