"""How a process is told, by server, shard and cluster: the scripts' dialects, and the channels of an inbox."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from redis.crc import key_slot

from distlock.backends.base import Busy, Claim, now
from distlock.backends.redis._connect import Server
from distlock.backends.redis._inbox import Inbox
from distlock.backends.redis._pool import Pool
from distlock.backends.redis._scripts import CLUSTER, SHARD, Dialect, Script, bulk, bulks, lock_keys
from distlock.backends.redis._waiting import Kept

from .redis_tools import until
from .servers import RedisServer

SOON = 15.0
SLOTS = 16384


@pytest.fixture(scope="module")
def node() -> Iterator[RedisServer]:
    """A cluster of one node."""
    with RedisServer("cluster-enabled yes") as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        until(lambda: _up(server))
        yield server


def _up(node: RedisServer) -> bool:
    said: Any = node.command("CLUSTER", "INFO")
    return b"cluster_state:ok" in said


def _slot(key: str) -> int:
    return int(key_slot(f"distlock:{{default:{key}}}".encode()))


class _Locks:
    """The least of a backend: asks, and keeps places."""

    def __init__(self, server: RedisServer, dialect: Dialect) -> None:
        where = Server.from_url(server.url)
        self._pool = Pool(where, 5.0)
        self._dialect = dialect
        self.refreshes: list[bytes] = []
        self.inbox = Inbox(where, "default", 5.0, self._refresh, dialect)

    def ask(self, claim: Claim) -> Any:
        ttl = b"%d" % round(claim.ttl * 1000)
        return self._run("acquire", [claim.key], claim.id.encode(), ttl, b"-", b"{}", self.inbox.expect(claim))

    def release(self, claim: Claim) -> Any:
        return self._run("release", [claim.key], claim.id.encode(), b"0", b"0")

    def wait(self, claim: Claim) -> threading.Event:
        """Queues it; the event is set whenever it is told something."""
        woken = threading.Event()
        assert isinstance(self.ask(claim), list)
        self.inbox.watch(Busy(claim, None), woken.set, now() + 5)
        assert woken.wait(SOON), "as soon as it could be told"
        woken.clear()
        assert isinstance(self.ask(claim), list)
        return woken

    def _refresh(self, inbox: bytes, waiting: Mapping[str, Sequence[str]]) -> Kept:
        self.refreshes.append(inbox)
        args = [arg.encode() for ids in waiting.values() for arg in (str(len(ids)), *ids)]
        heard, *found = self._run("refresh", list(waiting), inbox, b"1", *args, clock_first=True)
        locks = {key: (pttl, [one.decode() for one in ids]) for key, (pttl, *ids) in zip(waiting, found, strict=True)}
        return Kept(locks, heard == 1)

    def _run(self, name: str, keys: Sequence[str], *args: bytes, clock_first: bool = False) -> Any:
        packed = b"".join(lock_keys("default", key) for key in keys)
        clock = bulk(f"distlock:{{default:{keys[0]}}}:clock".encode())
        script: Script = getattr(self._dialect, name)
        head = script.head(3 * len(keys) + 1, clock + packed if clock_first else packed + clock, len(args))
        return self._pool.send(head + bulks(args), now() + 5, script=script).value

    def close(self) -> None:
        self.inbox.close()
        self._pool.close()


@contextmanager
def _locks(server: RedisServer, dialect: Dialect) -> Iterator[_Locks]:
    locks = _Locks(server, dialect)
    try:
        yield locks
    finally:
        locks.close()


def _claim(name: str, key: str, ttl: float = 60.0) -> Claim:
    return Claim(name, key, ttl, wait=True)


def _subscribed(server: RedisServer) -> list[str]:
    """The connections that listen, and to how many channels."""
    said: Any = server.command("CLIENT", "LIST")
    lines = said.decode().splitlines()
    found = [dict(word.partition("=")[::2] for word in line.split()) for line in lines]
    return [f"{each['sub']}+{each['ssub']}" for each in found if each["sub"] != "0" or each["ssub"] != "0"]


@pytest.mark.parametrize("dialect", [SHARD, CLUSTER], ids=["shard", "cluster"])
def test_in_a_cluster_a_release_hands_over_and_tells(node: RedisServer, key: str, dialect: Dialect) -> None:
    """redis.io, "Sharded Pub/Sub": a shard channel lies in a slot, as keys do."""
    with _locks(node, dialect) as locks:
        holder, waiter = _claim("holder", key), _claim("waiter", key)
        assert isinstance(locks.ask(holder), int)
        locks.inbox.forget("holder")
        woken = locks.wait(waiter)
        assert locks.release(holder) == 1
        assert woken.wait(SOON)
        assert isinstance(locks.ask(waiter), int)
        assert locks.release(waiter) == 1


@pytest.mark.parametrize("dialect", [SHARD, CLUSTER], ids=["shard", "cluster"])
def test_in_a_cluster_many_slots_are_listened_to_on_one_connection(
    node: RedisServer, key: str, dialect: Dialect
) -> None:
    """redis.io, "SSUBSCRIBE": all the channels of one command have to lie in one slot."""
    with _locks(node, dialect) as locks:
        names = [f"{key}:{number}" for number in range(5)]
        waits = {}
        for name in names:
            holder = _claim(f"holder-{name}", name)
            locks.ask(holder)
            locks.inbox.forget(holder.id)
            waits[name] = locks.wait(_claim(f"waiter-{name}", name))
        until(lambda: _subscribed(node) == (["0+5"] if dialect is SHARD else ["5+0"]))
        for name in names:
            locks.release(_claim(f"holder-{name}", name))
            assert waits[name].wait(SOON)
            assert not any(waits[other].is_set() for other in names[names.index(name) + 1 :])
            locks.release(_claim(f"waiter-{name}", name))


def test_a_shard_counts_who_listens_and_passes_over_who_does_not(node: RedisServer, key: str) -> None:
    """redis.io, "PUBSUB SHARDNUMSUB": subscribers, of this node."""
    with _locks(node, SHARD) as holders, _locks(node, SHARD) as alive:
        holder, dead, waiter = _claim("holder", key), _claim("dead", key), _claim("waiter", key)
        holders.ask(holder)
        with _locks(node, SHARD) as mortal:
            mortal.wait(dead)
            woken = alive.wait(waiter)
        until(lambda: len(_subscribed(node)) == 1)
        holders.release(holder)
        assert woken.wait(SOON)
        assert isinstance(alive.ask(waiter), int)
        alive.release(waiter)


def test_who_waits_for_a_slot_that_moves_away_is_woken_and_may_come_back(node: RedisServer, key: str) -> None:
    """redis.io, "Sharded Pub/Sub": the server unsubscribes its clients when a slot goes to another node."""
    stays = next(f"{key}:{n}" for n in range(100) if _slot(f"{key}:{n}") != _slot(key))
    with _locks(node, SHARD) as locks:
        for name in (key, stays):
            locks.ask(_claim("holder", name))
            locks.inbox.forget("holder")
        moved, other = locks.wait(_claim("moved", key)), locks.wait(_claim("other", stays))
        node.command("CLUSTER", "DELSLOTS", _slot(key))
        assert moved.wait(SOON)
        assert not other.is_set()
        assert locks.inbox.expect(_claim("new", key)) == b"-"
        assert locks.inbox.expect(_claim("other", stays)) != b"-"
        # Nobody may listen there now, which costs the others nothing: they are on the same connection still.
        until(lambda: _subscribed(node) == ["0+1"])
        node.command("CLUSTER", "ADDSLOTS", _slot(key))
        until(lambda: _up(node))
        until(lambda: locks.inbox.expect(_claim("moved", key)) != b"-")
        assert isinstance(locks.ask(_claim("moved", key)), list)
        moved.clear()
        locks.release(_claim("holder", key))
        assert moved.wait(SOON)
        assert not other.is_set()
        for name, claim in ((key, "moved"), (stays, "holder")):
            locks.release(_claim(claim, name))


def test_a_claim_moves_from_one_inbox_to_another(node: RedisServer, key: str) -> None:
    """redis.io, "Cluster spec": after MOVED the client goes to another node, and so do those who wait."""
    with _locks(node, SHARD) as old, _locks(node, SHARD) as new:
        holder, waiter = _claim("holder", key), _claim("waiter", key)
        new.ask(holder)
        woken = old.wait(waiter)
        wake = old.inbox.forget(waiter.id)
        assert wake is not None
        new.inbox.watch(Busy(waiter, None), wake, now() + 5)
        assert woken.wait(SOON)
        woken.clear()
        assert isinstance(new.ask(waiter), list)
        old.inbox.close()
        new.release(holder)
        assert woken.wait(SOON)
        assert isinstance(new.ask(waiter), int)
        new.release(waiter)
