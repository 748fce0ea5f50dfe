"""Where each backend proves itself: its servers, what can happen to them, and what cannot, and why."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from distlock import Fault
from distlock.testing.proxy import FaultProxy
from distlock.testing.torture._faults import Arena, Hurt
from distlock.testing.torture._proxy_faults import proxy_faults
from distlock.testing.torture._server_faults import (
    Server,
    again_and_again,
    clock_jumps,
    kills,
    once,
    stops,
    swaps,
)

from .clocks import WallClock
from .clusters import ClusterSetup
from .etcd_servers import EtcdCluster
from .etcd_tools import ROOT
from .redlock_tools import Nodes
from .sentinels import SentinelSetup
from .servers import RedisServer, start_all
from .zookeeper_servers import ZooKeeperEnsemble

__all__ = ("ARENAS", "FAULTS", "SLOW", "Ground", "keys_left", "why_not")

T = TypeVar("T")

SETTLING = 30.0
"""Seconds in which a store forgets what it keeps for a while: tombstones, sessions of those that were killed."""

# Names that stores have in common, so that they stand in one line of the matrix.
EMPTIED = "data deleted"
EVICTED = "memory full, keys are evicted"
KILLED = "server killed, comes back with its data"
KILLED_EMPTY = "server killed, comes back empty"
ALL_KILLED = "all servers killed, come back with their data"
ALL_KILLED_EMPTY = "all servers killed, come back empty"
TAIL_LOST = "server killed, comes back without its last writes"
HANDED_OVER = "leader or primary hands over in order"
PRIMARY_KILLED = "primary killed, a replica takes over"
PRIMARY_STOPPED = "primary stopped, a replica takes over"
LEADER_CUT = "leader cut off from the others"
FOLLOWER_CUT = "follower cut off from the others"


@dataclass(frozen=True, slots=True)
class Ground:
    """A store that runs."""

    url: str
    hurts: Sequence[Hurt]
    """What can happen to it and to the network before it; what happens to clients comes on top."""
    left: Callable[[], Sequence[str]] = lambda: ()
    """What it keeps of locks that are free."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """What is else to be in a plan."""


# One process, one machine


@contextmanager
def _memory() -> Iterator[Ground]:
    yield Ground("memory://", [], plan={"workers": 1, "actors": 12})


@contextmanager
def _file() -> Iterator[Ground]:
    with tempfile.TemporaryDirectory(prefix="distlock-proof-") as name:
        folder = Path(name)

        def locks() -> list[Path]:
            return [*folder.glob("*/*.lock")]

        def delete(_: Arena) -> str:
            for path in locks():
                path.unlink(missing_ok=True)
            return "the files of all locks"

        hurts = [once(EMPTIED, delete, Fault.DELETED)]
        yield Ground(f"file://{folder}", hurts, lambda: _settled(lambda: [path.name for path in locks()]))


# Redis


@contextmanager
def _redis() -> Iterator[Ground]:
    with (
        RedisServer(appendonly=True, clock=WallClock()) as server,
        FaultProxy(server.address) as proxy,
    ):
        hurts = [
            *proxy_faults(proxy),
            *stops("server", lambda: [server]),
            kills(KILLED, lambda: [server]),
            kills(KILLED_EMPTY, lambda: [server], Fault.EMPTY_RESTART, meanwhile=_forget),
            kills(TAIL_LOST, lambda: [server], Fault.LOST_WRITES, meanwhile=_forget_tail),
            *_of_redis(lambda: [server], lambda: [server]),
        ]
        yield Ground(server.url_at(proxy.port), hurts, lambda: keys_left([server]))


@contextmanager
def _redlock() -> Iterator[Ground]:
    nodes = Nodes([RedisServer(appendonly=True, clock=WallClock()) for _ in range(5)])
    with ExitStack() as stack:
        for server in nodes.servers:
            stack.callback(server.discard)
        start_all(nodes.servers)
        proxies = [stack.enter_context(FaultProxy(server.address)) for server in nodes.servers]
        hurts = [
            *proxy_faults(*proxies),
            *stops("server", lambda: nodes.servers),
            kills(KILLED, lambda: nodes.servers),
            kills(ALL_KILLED, lambda: nodes.servers, all_of_them=True),
            kills(KILLED_EMPTY, lambda: nodes.servers, Fault.EMPTY_RESTART, meanwhile=_forget),
            kills(TAIL_LOST, lambda: nodes.servers, Fault.LOST_WRITES, meanwhile=_forget_tail),
            *_of_redis(lambda: nodes.servers, lambda: nodes.servers),
        ]
        url = nodes.url_at(*(proxy.port for proxy in proxies))
        yield Ground(url, hurts, lambda: keys_left(nodes.servers))


@contextmanager
def _sentinel() -> Iterator[Ground]:
    setup = SentinelSetup()
    clock = _share_clock(setup.nodes)
    with setup:

        def lose(how: Callable[[], object]) -> tuple[Callable[[Arena], str], Callable[[], None]]:
            return _losing(lambda: setup.primary, how, setup.revive)

        hurts = [
            *stops("server", lambda: setup.nodes),
            kills("sentinel killed", lambda: setup.sentinels),
            kills("replica killed", lambda: setup.replicas),
            swaps(PRIMARY_KILLED, *lose(setup.crash_primary), Fault.FAILOVER),
            swaps(PRIMARY_STOPPED, *lose(setup.freeze_primary), Fault.FAILOVER),
            once("failover asked for", lambda _: f"{setup.failover()!r} has taken over", Fault.FAILOVER),
            *_of_redis(lambda: [setup.primary], lambda: setup.nodes, clock),
        ]
        yield Ground(setup.url, hurts, lambda: keys_left([setup.primary]))


@contextmanager
def _cluster() -> Iterator[Ground]:
    setup = ClusterSetup()
    clock = _share_clock(setup.nodes)
    with setup:
        struck: list[RedisServer] = []

        def chosen(arena: Arena) -> RedisServer:
            return setup.node_of_key(_name_of(arena, arena.dice.randrange(arena.plan.keys)))

        def lose(how: Callable[[RedisServer], object]) -> Callable[[Arena], str]:
            def act(arena: Arena) -> str:
                struck.append(chosen(arena))
                return f"{struck[-1]!r}, {how(struck[-1])!r} has taken over"

            return act

        def revive() -> None:
            while struck:
                setup.revive(struck.pop())

        hurts = [
            *stops("server", lambda: setup.nodes),
            kills("replica killed", lambda: setup.replicas_of(setup.primaries[0])),
            swaps(PRIMARY_KILLED, lose(setup.crash), revive, Fault.FAILOVER),
            swaps(PRIMARY_STOPPED, lose(setup.freeze), revive, Fault.FAILOVER),
            once(HANDED_OVER, lambda arena: f"to {setup.failover(chosen(arena))!r}"),
            _migration(setup),
            *_of_redis(lambda: setup.primaries, lambda: setup.nodes, clock),
        ]
        yield Ground(setup.url, hurts, lambda: keys_left(setup.primaries))


def _of_redis(
    primaries: Callable[[], Sequence[RedisServer]],
    nodes: Callable[[], Sequence[RedisServer]],
    clock: WallClock | None = None,
) -> Iterator[Hurt]:
    """What can happen to Redis in each topology. Without ``clock``, the first node's is moved."""

    def flush_scripts() -> None:
        for node in primaries():
            node.command("SCRIPT", "FLUSH")

    def flush(_: Arena) -> str:
        for node in primaries():
            node.command("FLUSHALL")
        return "all keys"

    def configure(name: str, value: str | int) -> None:
        for node in nodes():
            if node.up:
                node.command("CONFIG", "SET", name, value)

    def fill(_: Arena) -> str:
        configure("maxmemory-policy", "allkeys-random")
        configure("maxmemory", 1)  # all keys go, and what would write another is refused
        return "all servers"

    yield again_and_again("SCRIPT FLUSH", "all servers", flush_scripts)
    yield once(EMPTIED, flush, Fault.DELETED)
    yield swaps(EVICTED, fill, lambda: configure("maxmemory", 0), Fault.EVICTION)
    clock = clock or nodes()[0].clock
    assert clock is not None
    yield from clock_jumps(clock)


def _migration(setup: ClusterSetup) -> Hurt:
    """The slot of a key is on its way for a while, its keys in part here and in part there."""
    under_way: list[tuple[int, RedisServer]] = []

    def act(arena: Arena) -> str:
        slot = setup.slot_of(_name_of(arena, arena.dice.randrange(arena.plan.keys)))
        owner = setup.node_of(slot)
        to = arena.dice.choice([node for node in setup.primaries if node is not owner])
        setup.begin_migration(slot, to)
        under_way.append((slot, to))
        return f"slot {slot} from {owner!r} to {to!r}"

    def undo() -> None:
        while under_way:
            setup.finish_migration(*under_way.pop())

    return swaps("slot migration", act, undo)


def _share_clock(nodes: Sequence[RedisServer]) -> WallClock:
    clock = WallClock()
    for node in nodes:
        node.clock = clock
    return clock


def _name_of(arena: Arena, number: int) -> str:
    return f"distlock:{{{arena.plan.namespace}:key-{number}}}"


def keys_left(servers: Sequence[RedisServer]) -> list[str]:
    """What stands there after a while, but for the clocks."""

    def keys() -> list[str]:
        found = [name.decode() for server in servers for name in cast("list[bytes]", server.command("KEYS", "*"))]
        return [name for name in found if not name.endswith(":clock")]

    return _settled(keys)


def _forget(server: Server) -> None:
    server.forget()


def _forget_tail(server: Server) -> None:
    """The last writes had not reached the disk."""
    assert isinstance(server, RedisServer)
    for path in server.folder.glob("data/appendonlydir/*.incr.aof"):
        with path.open("r+b") as file:
            file.truncate(max(0, path.stat().st_size - 4000))


# etcd and ZooKeeper


@contextmanager
def _etcd() -> Iterator[Ground]:
    with EtcdCluster() as cluster, ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy(server.address)) for server in cluster.servers]

        def flush(_: Arena) -> str:
            cluster.flush()
            return "all keys and leases"

        def lead(arena: Arena) -> str:
            follower = arena.dice.choice(cluster.followers())
            cluster.lead(follower)
            return f"to member {follower}"

        hurts = [
            *proxy_faults(*proxies),
            *stops("server", lambda: cluster.servers, Fault.STALE_LEADER),
            *_of_members(cluster, Fault.STALE_LEADER),
            once(HANDED_OVER, lead),
            once(EMPTIED, flush, Fault.DELETED),
            again_and_again("compaction", "the history", lambda: cluster.any.compact()),
        ]
        url = cluster.servers[0].url_at(*(proxy.port for proxy in proxies))
        yield Ground(url, hurts, lambda: _settled(lambda: _etcd_left(cluster)))


def _etcd_left(cluster: EtcdCluster) -> list[str]:
    return [*cluster.any.keys(ROOT), *(f"lease {lease}" for lease in cluster.any.leases())]


@contextmanager
def _zookeeper() -> Iterator[Ground]:
    with ZooKeeperEnsemble() as ensemble, ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy(server.address)) for server in ensemble.servers]

        def flush(_: Arena) -> str:
            ensemble.flush()
            return "all nodes"

        hurts = [
            *proxy_faults(*proxies),
            *stops("server", lambda: ensemble.servers),
            *_of_members(ensemble),
            once(EMPTIED, flush, Fault.DELETED),
        ]
        url = ensemble.servers[0].url_at(*(proxy.port for proxy in proxies))
        yield Ground(url, hurts, lambda: _settled(lambda: ensemble.any.nodes()))


def _of_members(cluster: EtcdCluster | ZooKeeperEnsemble, *stale: Fault) -> Iterator[Hurt]:
    """What can happen to the members of a cluster that agrees."""

    def cut(number: int) -> str:
        cluster.partition(number)
        return f"member {number}"

    yield kills(KILLED, lambda: cluster.servers)
    yield kills(ALL_KILLED, lambda: cluster.servers, all_of_them=True)
    yield kills(ALL_KILLED_EMPTY, lambda: cluster.servers, Fault.EMPTY_RESTART, all_of_them=True, meanwhile=_forget)
    yield swaps(LEADER_CUT, lambda _: cut(cluster.leader()), cluster.heal, *stale)
    yield swaps(FOLLOWER_CUT, lambda arena: cut(arena.dice.choice(cluster.followers())), cluster.heal)


def _losing(
    victim: Callable[[], T], how: Callable[[], object], revive: Callable[[T], object]
) -> tuple[Callable[[Arena], str], Callable[[], None]]:
    """How a primary goes, and comes back."""
    struck: list[T] = []

    def act(_: Arena) -> str:
        struck.append(victim())
        return f"{struck[-1]!r}, {how()!r} has taken over"

    def undo() -> None:
        while struck:
            revive(struck.pop())

    return act, undo


def _settled(look: Callable[[], list[str]]) -> list[str]:
    """What is left when a store has had time to forget it."""
    until = time.monotonic() + SETTLING
    while (found := look()) and time.monotonic() < until:
        time.sleep(0.1)
    return found


ARENAS: Mapping[str, Callable[[], AbstractContextManager[Ground]]] = {
    "memory": _memory,
    "file": _file,
    "redis": _redis,
    "redlock": _redlock,
    "sentinel": _sentinel,
    "cluster": _cluster,
    "etcd": _etcd,
    "zookeeper": _zookeeper,
}


# What cannot happen

_LOCAL = ("memory", "file")
_AGREE = ("etcd", "zookeeper")
_ONE = ("memory", "file", "redis")
_PROXY = tuple(hurt.name for hurt in proxy_faults())
_STOPS = ("server stopped, less than the ttl", "server stopped, more than the ttl")
_CLOCK = ("clock jumps forwards", "clock jumps backwards", "clock stands still")
_REDIS = ("SCRIPT FLUSH", KILLED_EMPTY, TAIL_LOST)
_FAILOVER = (PRIMARY_KILLED, PRIMARY_STOPPED, "replica killed")

_NOT: Sequence[tuple[Sequence[str], Sequence[str], str]] = [
    (_LOCAL, (*_PROXY, *_STOPS, *_CLOCK, *_REDIS, KILLED), "there is no server"),
    (("memory",), (EMPTIED,), "nobody else can reach it"),
    (_ONE, (ALL_KILLED, ALL_KILLED_EMPTY), "there are not several servers"),
    (_ONE, (*_FAILOVER, HANDED_OVER), "nobody could take over"),
    (("redlock",), (*_FAILOVER, HANDED_OVER), "its nodes know nothing of each other"),
    (("redlock",), (ALL_KILLED_EMPTY,), "one empty node is bad enough"),
    (("sentinel", "cluster"), _PROXY, "the servers say themselves where they are, past any proxy"),
    (("sentinel", "cluster"), (KILLED, KILLED_EMPTY, TAIL_LOST), "a replica takes over first"),
    (("sentinel", "cluster"), (ALL_KILLED, ALL_KILLED_EMPTY), "that is one server, killed, several times"),
    (("sentinel",), (HANDED_OVER,), "Sentinels promote without asking the old primary"),
    (_AGREE, (*_CLOCK, TAIL_LOST), "no promise rests on its wall clock, or on one member's disk"),
    (_AGREE, (KILLED_EMPTY,), "a member without its data may not come back"),
    (_AGREE, _FAILOVER, "members vote, and lose nothing"),
    (("zookeeper",), (HANDED_OVER,), "its leader cannot be told to"),
]
_ONLY: Mapping[str, tuple[Sequence[str], str]] = {
    "SCRIPT FLUSH": (("redis", "redlock", "sentinel", "cluster"), "it has no scripts"),
    EVICTED: (("redis", "redlock", "sentinel", "cluster"), "it evicts nothing"),
    "slot migration": (("cluster",), "it has no slots"),
    "sentinel killed": (("sentinel",), "it has no Sentinels"),
    "failover asked for": (("sentinel",), "it has no Sentinels"),
    "compaction": (("etcd",), "it keeps no history"),
    LEADER_CUT: (_AGREE, "it has no members that agree"),
    FOLLOWER_CUT: (_AGREE, "it has no members that agree"),
}

FAULTS = tuple(dict.fromkeys([EMPTIED, *(fault for _, faults, _ in _NOT for fault in faults), *_ONLY]))
"""All that can happen to servers and to the network before them, somewhere."""
SLOW = frozenset({PRIMARY_KILLED, PRIMARY_STOPPED, ALL_KILLED, ALL_KILLED_EMPTY, LEADER_CUT})
"""Those that take seconds themselves."""


def why_not(backend: str, fault: str) -> str | None:
    """Why a fault of servers or of the network cannot happen to a backend; None if it can."""
    for backends, faults, reason in _NOT:
        if backend in backends and fault in faults:
            return reason
    backends, reason = _ONLY.get(fault, ((backend,), ""))
    return None if backend in backends else reason
