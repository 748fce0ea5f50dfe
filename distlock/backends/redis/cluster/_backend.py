"""Locks on a Redis Cluster: each lies in one slot with all that belongs to it, and is followed wherever that moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from anyio.to_thread import run_sync
from redis.exceptions import ResponseError

from ...base import (
    BackendError,
    BackendUnavailable,
    Busy,
    Claim,
    Done,
    Grant,
    Guarantees,
    Renewal,
    SyncBackend,
    now,
)
from .._aio import AsyncRedisBackend
from .._backend import GUARANTEES, UNKNOWN, RedisBackend
from .._connect import Server
from .._inbox import Inbox
from .._routes import AsyncRoute, Route
from .._scripts import RENEW, Dialect, beside, bulk
from .._slots import slot_of, tag_of
from .._trail import share_of
from .._values import renewals
from .._waiting import Kept
from ._aio import AsyncCluster
from ._inboxes import ClusterInboxes
from ._nodes import Address, Cluster

__all__ = ("ClusterBackend",)


class ClusterBackend(RedisBackend):
    """Thread-safe. Connects when it is first asked, to the nodes that have the slots of the locks in use."""

    guarantees: Guarantees = replace(GUARANTEES, backend="redis+cluster")

    def __init__(self, seeds: Sequence[Server], namespace: str, op_timeout: float, wait_replicas: int = 0) -> None:
        self.cluster: Cluster = Cluster(seeds, self._slot_of, self._route_to, op_timeout)
        self._slow: set[Address] = set()
        self._seeds = seeds
        super().__init__(seeds[0], namespace, op_timeout, wait_replicas)
        self.address: str = self.cluster.address

    @property
    def dialect(self) -> Dialect:
        return self.cluster.dialect

    def _make_route(self) -> Route:
        return self.cluster

    def _make_inbox(self) -> ClusterInboxes:
        self._inboxes = ClusterInboxes(self.cluster, self._inbox_at)
        return self._inboxes

    def _inbox_at(self, node: Address) -> Inbox:
        refresh = partial(self._refresh_at, node)
        return Inbox(self.cluster.server(node), self.namespace, self.op_timeout, refresh, self.cluster.dialect)

    def _slot_of(self, key: str) -> int:
        return slot_of(f"distlock:{{{self.namespace}:{key}}}".encode())

    def clock_of(self, key: str) -> bytes:
        """The clock of the lock's slot."""
        return bulk(b"distlock:{%b}:%b:clock" % (tag_of(self._slot_of(key)), self.namespace.encode()))

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        if not self.is_prepared(claim):
            self.prepare(claim, deadline)
        return super().acquire(claim, deadline)

    def is_prepared(self, claim: Claim) -> bool:
        """The cluster is known, and if the claim waits, it does so at the node that has its slot."""
        return self.cluster.known and self._inboxes.is_settled(claim)

    def prepare(self, claim: Claim, deadline: float) -> None:
        """Sees to that."""
        self.cluster.look(deadline)
        self._inboxes.settle(claim, deadline)

    def revoke(self, key: str, token: int, deadline: float) -> bool:
        self.cluster.look(deadline)
        return super().revoke(key, token, deadline)

    def results(self) -> SyncBackend:
        from ._results import ClusterResults

        return ClusterResults(self._seeds, beside(self.namespace), self.op_timeout, self.replicas)

    def _twin(self) -> AsyncRedisBackend:
        return AsyncClusterBackend(self)

    # One request a lease, as while a slot moves some of its keys are here and others there; one write a node.

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        results = [UNKNOWN] * len(grants)
        seen = self.cluster.discoveries
        left = self._renew_round(grants, range(len(grants)), results, deadline)
        if left:  # of more rounds the core thinks by itself: meanwhile it has to know of those that were renewed
            self.cluster.look_again(share_of(deadline), seen, self._slot_of(grants[left[0]].claim.key))
            self._renew_round(grants, left, results, deadline)
        return results

    def _renew_round(
        self, grants: Sequence[Grant], positions: Sequence[int], results: list[Renewal], deadline: float
    ) -> list[int]:
        """Asks each node once. Those that another round may help."""
        by_node: dict[Address | None, list[int]] = {}
        for position in positions:
            owner = self.cluster.known_owner(self._slot_of(grants[position].claim.key))
            by_node.setdefault(owner, []).append(position)
        left = by_node.pop(None, [])  # nobody has their slots: the map is looked at once the others are renewed
        # Nodes that failed last time come last: none must wait for them.
        for node in sorted((node for node in by_node if node is not None), key=self._slow.__contains__):
            self._slow.add(node)
            failed = self._renew_at(node, grants, by_node[node], results, share_of(deadline))
            if not failed:
                self._slow.discard(node)
            left += failed
        return left

    def _renew_at(
        self, node: Address, grants: Sequence[Grant], positions: list[int], results: list[Renewal], deadline: float
    ) -> list[int]:
        """Asks one node, and of those that it has no more the next one. Those that could not be asked."""
        answers: Sequence[Any] = (None,)
        asked_at = now()
        if len(positions) > 1:
            claims = [grants[position].claim for position in positions]
            frames = b"".join([self.renewing([(claim, claim.ttl)]) for claim in claims])
            try:
                answers = self.cluster.route(node).send(frames, deadline, script=RENEW, replies=len(claims)).value
            except BackendError as error:
                return positions if isinstance(error, BackendUnavailable) else []
        failed: list[int] = []
        for position, answer in zip(positions, answers, strict=True):
            grant = grants[position]
            if answer is not None and not isinstance(answer, ResponseError):
                results[position] = renewals([grant.claim.ttl], asked_at, answer)[0]
                continue
            try:  # it is the only one, or elsewhere
                results[position] = self.extend(grant, grant.claim.ttl, deadline)
            except BackendError as error:
                if isinstance(error, BackendUnavailable):
                    failed.append(position)
        return failed

    def _names(self, prefix: str, deadline: float) -> Iterator[Sequence[bytes]]:
        for node in self.cluster.primaries(deadline):
            yield from self._scan(self.cluster.route(node), prefix)

    def _refresh_at(self, node: Address, inbox: bytes, waiting: Mapping[str, Sequence[str]]) -> Kept:
        """At the very node that the inbox listens to: if the slot is another's now, those who wait move there."""
        return self._refresh_by(self.cluster.route(node), inbox, waiting)


class AsyncClusterBackend(AsyncRedisBackend):
    """The same for one event loop of asyncio."""

    def __init__(self, sync: ClusterBackend) -> None:
        self._cluster_backend = sync
        super().__init__(sync)

    def _make_route(self) -> AsyncRoute:
        return AsyncCluster(self._cluster_backend.cluster)

    async def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        sync = self._cluster_backend
        if not sync.is_prepared(claim):
            await run_sync(sync.prepare, claim, deadline, limiter=self._connecting)
        return await super().acquire(claim, deadline)
