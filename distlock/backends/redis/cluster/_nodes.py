"""Which node of a Cluster has which slot, and requests that follow it there.

A slot may move at any time: by resharding (``MOVED``; ``ASK`` and ``TRYAGAIN`` while it is under way) or by a
failover, during which nobody has it for about the cluster's node timeout. A request is sent again until its deadline,
which is safe because each may be repeated. (Redis Cluster Specification, redis.io.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import ResponseError

from ..._dice import DICE
from ...base import BackendError, BackendUnavailable, ConfigurationError, now
from .._connect import Server, shown
from .._errors import mapped
from .._pool import Reply
from .._routes import Route
from .._scripts import CLUSTER, SHARD, Dialect, Script, command
from .._slots import SLOTS
from .._trail import Address, Trail, host_of, share_of

__all__ = ("Address", "Cluster", "Parcel")

ASKING = command(b"ASKING")
CLUSTER_SLOTS = command(b"CLUSTER", b"SLOTS")
HAS_SHARDS = command(b"COMMAND", b"INFO", b"SSUBSCRIBE")


class Cluster(Route):
    """The nodes of a cluster and links to them. Thread-safe."""

    def __init__(
        self,
        seeds: Sequence[Server],
        slot_of: Callable[[str], int],
        route_to: Callable[[Server], Route],
        op_timeout: float,
    ) -> None:
        self._route_to = route_to
        self.slot_of = slot_of
        self._seeds = [_address(seed) for seed in seeds]
        self._like = seeds[0]
        self.op_timeout = op_timeout
        scheme = "rediss+cluster" if self._like.kind == "tls" else "redis+cluster"
        self.address: str = f"{scheme}://{','.join(map(shown, self._seeds))}"
        self._owners: list[Address | None] = [None] * SLOTS
        self._helpful: Address | None = None
        self.dialect: Dialect = SHARD
        self._reset()

    def _reset(self) -> None:
        self._routes: dict[Address, Route] = {}
        self._mutex = threading.Lock()
        self._discovering = threading.Lock()
        self._closed = False
        self.discoveries: int = 0

    def send(
        self, frame: bytes, deadline: float, key: str | None = None, script: Script | None = None, replies: int = 1
    ) -> Reply:
        """The reply of whoever has the slot of ``key``; of several replies the first one tells whether it does."""
        slot, trail = self.slot_of(key or ""), Trail(deadline)
        while True:
            seen, node, parcel = self.discoveries, trail.ask_at, Parcel(frame, replies, trail)
            try:
                node = node or self.owner(slot, deadline)
                link = self.route(node)
                return parcel.opened(
                    link.send(parcel.frame, trail.limit(), key, script, parcel.replies), self, node, key
                )
            except BackendError as error:
                pause = trail.after(error, node)
            self.note(slot, trail)
            if pause:
                time.sleep(pause)
            if trail.lost:
                self.look_again(deadline, seen, slot)

    def note(self, slot: int, trail: Trail) -> None:
        """Remembers what a request has learnt."""
        if trail.moved_to is not None:
            self._owners[slot] = trail.moved_to

    def look_again(self, deadline: float, seen: int, slot: int) -> None:
        """Asks for the map, for the sake of ``slot``, unless that was done since it was ``seen`` last."""
        with suppress(BackendUnavailable):  # then what we know has to do
            self._discover(deadline, seen, slot)

    # Who has what.

    @property
    def known(self) -> bool:
        """`look` has been done."""
        return self.discoveries > 0

    def look(self, deadline: float) -> None:
        """Finds out about the cluster, unless that was done before."""
        if not self.discoveries:
            self._discover(deadline, 0)

    def known_owner(self, slot: int) -> Address | None:
        """The node that has ``slot``, if we know; asks nobody."""
        return self._owners[slot]

    def owner(self, slot: int, deadline: float) -> Address:
        """The node that has ``slot``, as far as we know."""
        owner = self._owners[slot]
        if owner is None:
            self._discover(deadline, self.discoveries, slot)
            owner = self._owners[slot]
        if owner is None:
            raise BackendUnavailable(
                f"no node has slot {slot}; is the cluster complete? see CLUSTER INFO [{self.address}]",
                backend=self.address,
            )
        return owner

    def primaries(self, deadline: float) -> set[Address]:
        """All nodes that have slots."""
        self._discover(deadline, self.discoveries)
        return {owner for owner in self._owners if owner is not None}

    def _discover(self, deadline: float, seen: int, slot: int | None = None) -> None:
        """Asks any node for the map, unless that was done since ``seen``. ``slot``: of which we know no owner that
        answers."""
        if not self._discovering.acquire(timeout=max(0.0, deadline - now())):
            raise mapped(TimeoutError(), self.address, sent=False)
        try:
            if self.discoveries == seen:
                self._learn(self._slots(deadline, slot))
                self.discoveries += 1
        finally:
            self._discovering.release()

    def _slots(self, deadline: float, slot: int | None) -> list[Any]:
        last: BackendError | None = None
        partial: tuple[Address, Any] | None = None
        for node in self._to_ask(slot):
            try:
                value = self.route(node).send(CLUSTER_SLOTS, share_of(deadline)).value
            except BackendError as error:
                if "cluster support disabled" in str(error.__cause__):
                    raise ConfigurationError(
                        f"this server is not a cluster; use redis:// for it [{self.server(node).address}]"
                    ) from error
                last = error
                continue
            if value:
                partial = partial or (node, value)
            covered = bool(value) if slot is None else any(first <= slot <= end for first, end, *_ in value)
            if covered:
                return self._believed(node, value, deadline)
        if partial is not None:
            return self._believed(*partial, deadline)
        raise BackendUnavailable(
            f"no node of the cluster tells who has which slot ({last}) [{self.address}]", backend=self.address
        ) from last

    def _to_ask(self, slot: int | None) -> list[Address]:
        """The nodes that may know the map, the one that told it last time first; if that was no good, last but for the
        one that does not answer."""
        known = list({owner for owner in self._owners if owner is not None} - set(self._seeds))
        DICE.shuffle(known)
        nodes = [*self._seeds, *known]
        helpful = self._helpful
        if slot is None or not self.discoveries:
            return nodes if helpful is None else [helpful, *[node for node in nodes if node != helpful]]
        after = nodes.index(helpful) + 1 if helpful in nodes else 0  # in turns, that all are asked
        silent = self._owners[slot]
        return sorted([*nodes[after:], *nodes[:after]], key=lambda node: node == silent)

    def _believed(self, node: Address, value: Any, deadline: float) -> list[Any]:
        self._helpful = node
        self.dialect = self._dialect_of(node, deadline)
        return [(part, node) for part in value]

    def _dialect_of(self, node: Address, deadline: float) -> Dialect:
        """Sharded pub/sub came with Redis 7."""
        if self.discoveries:
            return self.dialect
        return SHARD if self.route(node).send(HAS_SHARDS, deadline).value[0] else CLUSTER

    def _learn(self, ranges: Iterable[Any]) -> None:
        owners: list[Address | None] = [None] * SLOTS
        for (first, last, (host, port, *_), *_), asked in ranges:
            node = host_of((host or b"").decode(), asked), port
            owners[first : last + 1] = [node] * (last + 1 - first)
        self._owners = owners
        used = {*owners, *self._seeds}
        with self._mutex:
            gone = [self._routes.pop(node) for node in [*self._routes] if node not in used]
        for route in gone:
            route.close()

    # Links.

    def route(self, node: Address) -> Route:
        """To one node."""
        route = self._routes.get(node)
        if route is None:
            with self._mutex:
                route = self._routes.setdefault(node, self._route_to(self.server(node)))
                if self._closed:  # its connections end with their last caller
                    route.close()
        return route

    def server(self, node: Address) -> Server:
        """How to reach a node."""
        return self._like.at(*node)

    def close(self) -> None:
        """Drops all connections."""
        with self._mutex:
            self._closed = True
            for route in self._routes.values():
                route.close()

    def after_fork(self) -> None:
        """In a forked child: drops what was inherited without a word to the servers."""
        for route in self._routes.values():
            route.after_fork()
        self._reset()


class Parcel:
    """A request for a node, behind ``ASKING`` if the node has the key already but not yet the slot."""

    __slots__ = ("_again", "_ahead", "_asked_for", "frame", "replies")

    def __init__(self, frame: bytes, replies: int, trail: Trail) -> None:
        self._again = trail.sent
        self._ahead = 0 if trail.ask_at is None else 1
        self._asked_for = replies
        self.frame = ASKING + frame if self._ahead else frame
        self.replies = replies + self._ahead

    def opened(self, reply: Reply, cluster: Cluster, node: Address, key: str | None) -> Reply:
        """What it brought, but for the reply to ``ASKING``."""
        if self.replies == 1:
            return Reply(reply.value, reply.again or self._again)
        values = reply.value[self._ahead :]
        if isinstance(values[0], ResponseError):
            raise mapped(values[0], cluster.server(node).address, key=key) from values[0]
        return Reply(values[0] if self._asked_for == 1 else values, reply.again or self._again)


def _address(server: Server) -> Address:
    return server.settings.get("host", "localhost"), int(server.settings.get("port", 6379))
