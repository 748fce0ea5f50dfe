"""A real Redis Cluster for the tests, and what happens to one: failovers, crashes, slots that move."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from .servers import RedisServer, start_all, wait_until

__all__ = ("SLOTS", "ClusterSetup")

SLOTS = 16384

# Seconds, while something is to be noticed: nodes ask each other every half of it, and tell the news. At other
# times a node may be silent for long, so that none is taken for dead on a loaded machine.
_FAST = 1.0
# Redis remembers the votes of an election for max(4 node timeouts, 4 s), and a replica that stands again sooner
# "wins" by the old ones at once, in an epoch that nobody believes.
_VOTES_LAST = 4.2


@dataclass(frozen=True)
class _Member:
    """A node as a node knows it (a line of CLUSTER NODES)."""

    id: str
    port: int
    flags: frozenset[str]
    primary: str
    slots: tuple[range, ...]
    moving: bool

    @classmethod
    def parse(cls, line: str) -> _Member:
        id_, address, flags, primary, _ping, _pong, _epoch, _link, *slots = line.split()
        return cls(
            id=id_,
            port=int(address.partition("@")[0].rpartition(":")[2]),
            flags=frozenset(flags.split(",")) - {"myself"},
            primary=primary,
            slots=tuple(_range(part) for part in slots if not part.startswith("[")),
            moving=any(part.startswith("[") for part in slots),
        )


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


class ClusterSetup:
    """A Redis Cluster of the test's own, as a context manager.

    Its first ``primaries`` nodes own equal parts of the slots, in order; the others are their ``replicas``. It takes
    three primaries to agree that one of them is dead. ``config`` are lines of redis.conf for each node.
    Every method returns when all nodes that are up agree, are linked, and serve every slot.
    """

    def __init__(
        self,
        *config: str,
        primaries: int = 3,
        replicas: int = 1,
        password: str | None = None,
        node_timeout: float = 15.0,
        binary: str | None = None,
    ) -> None:
        self.password = password
        self.node_timeout = node_timeout
        self._size = primaries
        self._elected: dict[int, float] = {}
        self.nodes = [
            RedisServer(
                "cluster-enabled yes",
                f"cluster-node-timeout {_FAST * 1000:.0f}",
                "cluster-replica-validity-factor 0",  # a replica may take over however late it is
                "cluster-allow-replica-migration no",
                "cluster-announce-ip 127.0.0.1",
                'save ""',
                "repl-diskless-sync yes",
                "repl-backlog-size 64kb",
                *config,
                requirepass=password,
                binary=binary,
            )
            for _ in range(primaries * (1 + replicas))
        ]

    def __enter__(self) -> ClusterSetup:
        try:
            start_all(self.nodes)
            self._join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.discard()

    # Where it is

    @property
    def url(self) -> str:
        return self.url_at(*(node.port for node in self.nodes))

    def url_at(self, *ports: int) -> str:
        """Its URL by way of some of the nodes, or of other ports (proxies')."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis+cluster://{login}" + ",".join(f"127.0.0.1:{port}" for port in ports)

    @property
    def servers(self) -> list[RedisServer]:
        return self.nodes

    @property
    def primaries(self) -> list[RedisServer]:
        """Those that own slots, in the order of their first one."""
        owners = sorted((m.slots[0].start, m.port) for m in self._view().values() if m.slots)
        return [self._at(port) for _, port in owners]

    def replicas_of(self, node: RedisServer) -> list[RedisServer]:
        view = self._view()
        return [n for n in self.nodes if n.up and view[n.port].primary == view[node.port].id]

    def slot_of(self, key: str | bytes) -> int:
        slot = next(n for n in self.nodes if n.up).command("CLUSTER", "KEYSLOT", key)
        assert isinstance(slot, int)
        return slot

    def node_of(self, slot: int) -> RedisServer:
        """The primary that owns a slot."""
        for member in self._view().values():
            if any(slot in part for part in member.slots):
                return self._at(member.port)
        raise RuntimeError(f"nobody owns slot {slot} at this moment")

    def node_of_key(self, key: str | bytes) -> RedisServer:
        return self.node_of(self.slot_of(key))

    # What happens to it

    def flush(self) -> None:
        for node in self.primaries:
            node.command("FLUSHALL")

    def failover(self, node: RedisServer) -> RedisServer:
        """Hands the slots of a primary over to its replica, in order and without loss. The new owner."""
        slot, heir = self._view()[node.port].slots[0].start, self.replicas_of(node)[0]

        def done() -> bool:
            # An attempt may run out of time (5 s); to begin it anew is an error while one is under way, or done.
            if heir.role() != "primary":
                _tolerant(heir, "CLUSTER", "FAILOVER")
            return self.node_of(slot) is heir and self.whole()  # in this order

        self._forget_votes(heir)
        with self._fast():
            wait_until(done, f"{heir!r} to take over from {node!r}")
        self._elected[heir.port] = time.monotonic()
        return heir

    def crash(self, node: RedisServer) -> RedisServer:
        """Kills a primary (SIGKILL). The replica that took over."""
        return self._lose(node, RedisServer.kill)

    def freeze(self, node: RedisServer) -> RedisServer:
        """Pauses a primary (SIGSTOP) until it has been replaced. The replica that took over; `revive` thaws."""
        return self._lose(node, RedisServer.pause)

    def revive(self, node: RedisServer) -> None:
        """Lets a node that was killed, stopped or paused come back (with no data, if not paused)."""
        if node.running:
            node.resume()
        else:
            node.start()
        self.settle()

    def settle(self) -> None:
        """Waits until all nodes that are up agree, are linked, and serve every slot."""
        with self._fast():
            wait_until(self.whole, "the cluster to be whole")

    def whole(self) -> bool:
        """Whether all nodes that are up agree, are linked, and serve every slot, none of which is on its way."""
        up = [node for node in self.nodes if node.up]
        views = [self._view(node) for node in up]
        return (
            all(view == views[0] for view in views)
            and all(not (view[n.port].flags - {"master", "slave"}) for view in views[:1] for n in up)
            and not any(member.moving for member in views[0].values())
            and all(b"cluster_state:ok" in _info(node) and node.linked for node in up)
        )

    # Slots that move

    def begin_migration(self, slot: int, to: RedisServer) -> None:
        """From here on the owner of the slot sends those that ask for a missing key to ``to`` (ASK)."""
        owner = self.node_of(slot)
        to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(owner))
        owner.command("CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(to))

    def move_keys(self, slot: int, to: RedisServer, *keys: str | bytes) -> None:
        """Moves these keys of a slot, or all that are there now."""
        self._move(slot, self.node_of(slot), to, keys)

    def finish_migration(self, slot: int, to: RedisServer) -> None:
        """Moves what keys are left and makes ``to`` the owner of the slot."""
        owner, new = self.node_of(slot), self._id(to)

        def owns() -> bool:
            self._move(slot, owner, to)
            for node in (to, owner):  # the new owner first, so that the slot always has one
                node.command("CLUSTER", "SETSLOT", slot, "NODE", new)
            return True

        wait_until(owns, f"slot {slot} to be empty")
        for node in self.primaries:
            node.command("CLUSTER", "SETSLOT", slot, "NODE", new)
        self.settle()

    def migrate(self, slot: int, to: RedisServer) -> None:
        """Moves a slot with its keys."""
        self.begin_migration(slot, to)
        self.finish_migration(slot, to)

    # Inside

    def _join(self) -> None:
        first, parts = self.nodes[0], self._size
        for epoch, node in enumerate(self.nodes, 1):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for part, node in enumerate(self.nodes[:parts]):
            node.command("CLUSTER", "ADDSLOTSRANGE", part * SLOTS // parts, (part + 1) * SLOTS // parts - 1)
        for node in self.nodes[1:]:
            first.command("CLUSTER", "MEET", *node.address)
        wait_until(self._acquainted, "the nodes to know each other")
        for number, node in enumerate(self.nodes[parts:]):
            node.command("CLUSTER", "REPLICATE", self._id(self.nodes[number % parts]))
        self.settle()

    def _acquainted(self) -> bool:
        views = [self._view(node) for node in self.nodes]
        return all(
            len(view) == len(self.nodes) and not any("handshake" in m.flags for m in view.values()) for view in views
        )

    def _move(self, slot: int, owner: RedisServer, to: RedisServer, keys: Sequence[str | bytes] = ()) -> None:
        found = keys or owner.command("CLUSTER", "GETKEYSINSLOT", slot, 10_000)
        assert isinstance(found, (list, tuple))
        names = [name for name in found if isinstance(name, (str, bytes))]
        if names:
            owner.command("MIGRATE", *to.address, "", 0, 10_000, "AUTH2", "harness", "-", "KEYS", *names)

    def _lose(self, node: RedisServer, how: Callable[[RedisServer], None]) -> RedisServer:
        slot = self._view()[node.port].slots[0].start
        self._forget_votes(*self.replicas_of(node))
        with self._fast():
            how(node)
            wait_until(lambda: self.node_of(slot) is not node and self.whole(), f"someone to take over from {node!r}")
        heir = self.node_of(slot)
        self._elected[heir.port] = time.monotonic()
        return heir

    def _forget_votes(self, *heirs: RedisServer) -> None:
        last = max((self._elected.get(heir.port, 0.0) for heir in heirs), default=0.0)
        time.sleep(max(0.0, last + _VOTES_LAST - time.monotonic()))

    @contextmanager
    def _fast(self) -> Iterator[None]:
        self._set_timeout(_FAST)
        try:
            yield
        finally:
            self._set_timeout(self.node_timeout)

    def _set_timeout(self, seconds: float) -> None:
        for node in self.nodes:
            if node.up:
                node.command("CONFIG", "SET", "cluster-node-timeout", round(seconds * 1000))

    def _at(self, port: int) -> RedisServer:
        return next(node for node in self.nodes if node.port == port)

    def _id(self, node: RedisServer) -> str:
        return self._view()[node.port].id

    def _view(self, viewer: RedisServer | None = None) -> dict[int, _Member]:
        viewer = viewer or next(node for node in self.nodes if node.up)
        lines = viewer.command("CLUSTER", "NODES")
        assert isinstance(lines, bytes)
        members = [_Member.parse(line) for line in lines.decode().splitlines()]
        return {member.port: member for member in members}


def _info(node: RedisServer) -> bytes:
    info = node.command("CLUSTER", "INFO")
    assert isinstance(info, bytes)
    return info


def _tolerant(node: RedisServer, *command: str) -> None:
    try:
        node.command(*command)
    except RuntimeError:
        return
