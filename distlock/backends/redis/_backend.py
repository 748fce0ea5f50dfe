"""Locks on one Redis server: a Lua script for every step."""

from __future__ import annotations

from asyncio.events import _get_running_loop
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from ..base import (
    AsyncBackend,
    BackendError,
    Busy,
    Claim,
    Confirmation,
    Done,
    Fault,
    Grant,
    Guarantees,
    Inspection,
    LeaseState,
    Renewal,
    Subscription,
    SyncBackend,
    Wake,
    now,
    proven_until,
)
from ._aio import AsyncRedisBackend
from ._connect import Target
from ._inbox import Inbox
from ._pool import Pool, Reply, released
from ._routes import Confirmed, Patient, Route
from ._scripts import (
    CONFIRM,
    INSPECT,
    RENEW,
    SERVER,
    Dialect,
    Script,
    beside,
    bulk,
    bulks,
    clock_key,
    command,
    lock_keys,
    own_keys,
)
from ._values import NO_INBOX, acquired, inspection, milliseconds, renewals, terms
from ._waiting import Inboxes, Kept, epoch

__all__ = ("RedisBackend",)

GUARANTEES = Guarantees(
    backend="redis",
    scope="network",
    fenced=True,
    fair=True,
    dead_holder="ttl",
    owner_reentrant=True,
    extend=True,
    excepted=frozenset(
        {
            Fault.LOST_WRITES,
            Fault.EMPTY_RESTART,
            Fault.FAILOVER,
            Fault.EVICTION,
            Fault.DELETED,
            Fault.STORE_CLOCK_JUMP,
        }
    ),
)

BATCH = 256
"""Locks a script. It keeps the server for 1 ms then; more would save hardly anything here."""
UNKNOWN = Renewal(LeaseState.UNKNOWN)
NOTHING_LEFT = bulks((b"0", b"0"))
"""Neither queued nor on its way."""


class RedisBackend(SyncBackend):
    """Thread-safe. Connects when it is first asked."""

    guarantees: Guarantees = GUARANTEES

    @property
    def dialect(self) -> Dialect:
        """How this kind of server is spoken to."""
        return SERVER

    def __init__(self, server: Target, namespace: str, op_timeout: float, wait_replicas: int = 0) -> None:
        self.server = server
        self.address: str = server.address
        self.namespace = namespace
        self.op_timeout = op_timeout
        self.replicas = wait_replicas
        self._closed = False
        self._head = lru_cache(maxsize=512)(self._make_head)
        self._confirming = lru_cache(maxsize=512)(self._make_confirming)
        self._pool = self._make_route()
        self.inbox: Inboxes = self._make_inbox()

    def _make_route(self) -> Route:
        route = self._route_to(self.server)
        return Patient(route) if self.server.moves else route

    def _route_to(self, server: Target) -> Route:
        pool = Pool(server, self.op_timeout)
        return Confirmed(pool, server, self.op_timeout, self.replicas) if self.replicas else pool

    def _make_inbox(self) -> Inboxes:
        return Inbox(self.server, self.namespace, self.op_timeout, self._refresh, confirm=self._confirm)

    def clock_of(self, key: str) -> bytes:
        """The name of the clock that gives this lock its tokens, packed."""
        return clock_key(self.namespace)

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        inbox = self.inbox.expect(claim) if claim.wait else NO_INBOX
        asked_at = now()
        try:
            reply = self._pool.send(self.asking(claim, inbox), deadline, claim.key, self.dialect.acquire)
        except BaseException:
            self.inbox.forget_unwatched(claim.id)
            raise
        return self.answered(claim, asked_at, reply, inbox)

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        return self.inbox.watch(busy, wake, deadline)

    def watch_here(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        return self.inbox.watch(busy, wake, deadline, here=True)

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        self.inbox.forget(claim.id)
        self._pool.send(
            self.leaving(claim, queued=True, in_flight=in_flight), deadline, claim.key, self.dialect.release
        )

    def release(self, grant: Grant, deadline: float) -> bool:
        frame = self.leaving(grant.claim, in_flight=grant.in_flight)
        return released(self._pool.send(frame, deadline, grant.claim.key, self.dialect.release))

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        asked_at = now()
        reply = self._pool.send(self.renewing([(grant.claim, ttl)]), deadline, grant.claim.key, RENEW)
        return renewals([ttl], asked_at, reply.value)[0]

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        results: list[Renewal] = []
        for start in range(0, len(grants), BATCH):
            claims = [grant.claim for grant in grants[start : start + BATCH]]
            asked_at = now()
            try:
                reply = self._pool.send(self.renewing([(claim, claim.ttl) for claim in claims]), deadline, script=RENEW)
            except BackendError:
                if not results:
                    raise
                return results + [UNKNOWN] * (len(grants) - len(results))  # what is proven is proven
            results += renewals([claim.ttl for claim in claims], asked_at, reply.value)
        return results

    def revoke(self, key: str, token: int, deadline: float) -> bool:
        return released(self._pool.send(self.revoking(key, token), deadline, key, self.dialect.revoke))

    def inspect(self, key: str, deadline: float) -> Inspection:
        reply = self._pool.send(self.inspecting(key), deadline, key, INSPECT)
        return inspection(key, reply.value)

    def list(self, prefix: str, deadline: float) -> Iterator[Inspection]:
        for key in self._keys(prefix, deadline, self.keys_in):
            found = self.inspect(key, now() + self.op_timeout)  # there may be many of them
            if found.holder is not None or found.waiters:  # else but a withdrawn claim is remembered
                yield found

    def _keys(self, prefix: str, deadline: float, keys_in: Callable[[Sequence[bytes]], Iterator[str]]) -> Iterator[str]:
        """Each of those that start with ``prefix`` once."""
        seen: set[str] = set()
        for names in self._names(prefix, deadline):
            for key in keys_in(names):
                if key not in seen and key.startswith(prefix):
                    seen.add(key)
                    yield key

    def _names(self, prefix: str, deadline: float) -> Iterator[Sequence[bytes]]:
        return self._scan(self._pool, prefix)

    def _scan(self, route: Route, prefix: str) -> Iterator[Sequence[bytes]]:
        cursor = b"0"
        while True:
            cursor, names = route.send(self.scanning(cursor, prefix), now() + self.op_timeout).value
            yield names
            if cursor == b"0":
                return

    def results(self) -> SyncBackend:
        from ._results import RedisResults

        return RedisResults(self.server, beside(self.namespace), self.op_timeout, self.replicas)

    def close(self) -> None:
        self._closed = True
        self.inbox.close()
        self._pool.close()

    def after_fork(self) -> None:
        self.inbox.after_fork()
        self._pool.after_fork()

    def native(self) -> AsyncBackend | None:
        on_asyncio = _get_running_loop() is not None  # trio has no redis driver
        # WAIT blocks its connection, which a loop has but one of.
        return self._twin() if on_asyncio and self.server.works_on_asyncio and not self.replicas else None

    def _twin(self) -> AsyncRedisBackend:
        return AsyncRedisBackend(self)

    # Requests and replies, shared by both colours.

    def _make_head(self, script: Script, key: str, arg_count: int) -> bytes:
        return script.head(4, lock_keys(self.namespace, key) + self.clock_of(key), arg_count)

    def _make_confirming(self, key: str, ttl: float, inbox: bytes) -> bytes:
        # Whole, as nobody may read the answer in time to send it again.
        head = CONFIRM.head(3, lock_keys(self.namespace, key), 3)
        return CONFIRM.whole(head + bulks((milliseconds(ttl), inbox)))

    def _confirm(self, claim: Claim, inbox: bytes) -> Confirmation | None:
        asked_at = now()
        frame = self._confirming(claim.key, claim.ttl, inbox) + bulk(claim.id.encode())
        return self._pool.post(frame, proven_until(asked_at, claim.ttl), asked_at + self.op_timeout)

    def asking(self, claim: Claim, inbox: bytes) -> bytes:
        """The request to acquire."""
        if self._closed:
            raise BackendError(f"this manager was closed [{self.address}]", key=claim.key, backend=self.address)
        head = self._head(self.dialect.acquire, claim.key, 5)
        return head + bulk(claim.id.encode()) + terms(claim.ttl, claim.owner, claim.reentrant, claim.about, inbox)

    def answered(self, claim: Claim, asked_at: float, reply: Reply, inbox: bytes) -> Grant | Busy | Done:
        """What came of `asking`; who has the lock need not wait for it."""
        outcome = acquired(claim, asked_at, reply.value, reply.again, inbox)
        if claim.wait:
            if isinstance(outcome, Busy):
                _, held_us, value = reply.value
                self.inbox.ends_in(outcome, epoch(asked_at, held_us, value))
            else:
                self.inbox.forget(claim.id)
        return outcome

    def leaving(self, claim: Claim, *, queued: bool = False, in_flight: bool = False) -> bytes:
        """The request to release or to withdraw."""
        head = self._head(self.dialect.release, claim.key, 3) + bulk(claim.id.encode())
        if not (queued or in_flight):
            return head + NOTHING_LEFT
        late = milliseconds(min(claim.ttl, self.op_timeout)) if in_flight else b"0"
        return head + bulks((b"1" if queued else b"0", late))

    def renewing(self, claims: Sequence[tuple[Claim, float]]) -> bytes:
        """The request to keep leases alive."""
        keys = own_keys(self.namespace, [claim.key for claim, _ in claims])
        packed = {ttl: bulk(milliseconds(ttl)).decode() for ttl in {ttl for _, ttl in claims}}
        # As text to the last, which is ASCII: a call and an encoding for each would take longer than all the rest.
        args = "".join([f"${len(claim.id)}\r\n{claim.id}\r\n{packed[ttl]}" for claim, ttl in claims])
        return RENEW.head(len(claims), keys, 2 * len(claims)) + args.encode()

    def revoking(self, key: str, token: int) -> bytes:
        """The request to end the lease of a token."""
        return self._head(self.dialect.revoke, key, 1) + bulk(b"%d" % token)

    def inspecting(self, key: str) -> bytes:
        """The request to look at a lock."""
        return INSPECT.head(3, lock_keys(self.namespace, key), 0)

    def scanning(self, cursor: bytes, prefix: str) -> bytes:
        """One step of looking for locks."""
        escaped = "".join(f"\\{c}" if c in "\\*?[]^-" else c for c in prefix)
        return command(
            b"SCAN", cursor, b"MATCH", f"distlock:{{{self.namespace}:{escaped}*}}*".encode(), b"COUNT", b"500"
        )

    def keys_in(self, names: Sequence[bytes]) -> Iterator[str]:
        """The lock names among keys of the server: of those held and of those only waited for."""
        start = f"distlock:{{{self.namespace}:".encode()
        for name in names:
            if name.startswith(start):
                stem = name[len(start) :]
                yield (stem[:-1] if stem.endswith(b"}") else stem[:-3]).decode(errors="replace")

    def _refresh(self, inbox: bytes, waiting: Mapping[str, Sequence[str]]) -> Kept:
        return self._refresh_by(self._pool, inbox, waiting)

    def _refresh_by(self, route: Route, inbox: bytes, waiting: Mapping[str, Sequence[str]]) -> Kept:
        deadline = now() + self.op_timeout
        claims = [(key, claim_id) for key, ids in waiting.items() for claim_id in ids]
        found: dict[str, tuple[int, list[str]]] = {}
        heard = True
        for start in range(0, len(claims), BATCH):
            batch: dict[str, list[str]] = {}
            for key, claim_id in claims[start : start + BATCH]:
                batch.setdefault(key, []).append(claim_id)
            keys = self.clock_of(next(iter(batch))) + b"".join([lock_keys(self.namespace, key) for key in batch])
            args = [inbox, b"0" if start else b"1"]
            args += [arg.encode() for ids in batch.values() for arg in (str(len(ids)), *ids)]
            frame = self.dialect.refresh.head(1 + 3 * len(batch), keys, len(args)) + bulks(args)
            reply = route.send(frame, deadline, script=self.dialect.refresh)
            heard = heard and reply.value[0] == 1
            for key, (pttl, *ids) in zip(batch, reply.value[1:], strict=True):
                _, before = found.get(key, (0, []))
                found[key] = pttl, before + [one.decode() for one in ids]
        return Kept(found, heard)
