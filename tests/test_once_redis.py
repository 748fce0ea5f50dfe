"""Work that is done once, on Redis: what it costs, where it lies, and what becomes of it when the server fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import redis
import redis.asyncio
from redis.crc import key_slot

import distlock
from distlock import BackendError, BackendUnavailable, Manager, ResultUnavailable, Unsupported
from distlock.backends.base import Claim, Grant, SyncBackend, now
from distlock.backends.redis import RedisResults
from distlock.backends.redis._scripts import CLUSTER
from distlock.backends.redis._slots import slot_of
from distlock.backends.redis.cluster._nodes import Cluster
from distlock.idempotency import Once
from distlock.testing.proxy import FaultProxy

from .clusters import ClusterSetup
from .redis_tools import Colour, Connect, Probe, in_colours, monitor, touching_its_keys, until
from .servers import RedisServer, redis_binary, require_valkey

TTL = 3600.0
LEASE = 600.0
"""Seconds. Nothing is refreshed or renewed while a test runs, so that only a push can have woken who waits."""


class Bytes:
    """Results that are bytes already."""

    def dumps(self, result: bytes) -> bytes:
        return result

    def loads(self, data: bytes) -> bytes:
        return data


def once(locks: Manager, key: str, **terms: Any) -> Once:
    return locks.once(key, ttl=TTL, lease=LEASE, **terms)


async def do(
    colour: Colour,
    locks: Manager,
    key: str,
    result: Any = "done",
    meanwhile: Callable[[], object] = lambda: None,
    **terms: Any,
) -> Any:
    """The result, and whether it is replayed."""
    async with colour.block(once(locks, key, **terms)) as work:
        if work.replayed:
            return work.result, True
        meanwhile()
        return await colour.complete(work, result), False


def results(server: RedisServer) -> Probe:
    return Probe(server, "default+once")


def left(server: RedisServer) -> set[str]:
    """All keys but the clocks."""
    return {name for name in results(server).keys() if not name.endswith(":clock")}  # noqa: SIM118 - no dict


def record_of(server: RedisServer, key: str) -> Any:
    return server.command("GET", results(server).name(key, ":r"))


# What it costs.


@in_colours()
async def test_the_first_is_two_requests_and_a_replay_one(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    with FaultProxy(redis_server.address) as proxy:
        locks = connect(proxy.url)
        await do(colour, locks, f"{key}: it connects, and the server learns the scripts")
        for replayed, requests in ((False, 2), (True, 1)):
            before = proxy.traffic
            assert (await do(colour, locks, key, "paid"))[1] is replayed
            spent = proxy.traffic - before
            assert (spent.commands, spent.connections) == (requests, 0), proxy.traffic_text()


@in_colours()
async def test_a_completion_wakes_all_who_wait_by_one_message_each_and_nobody_polls(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each manager listens as a process does. powertools and others have those who wait ask again and again."""
    monkeypatch.setattr("distlock._core.acquire.RECHECK", 0.1)
    probe, each = results(redis_server), 5
    others = [connect(redis_server.url) for _ in range(3)]
    async with colour.block(once(connect(redis_server.url), key)) as work:
        tasks = [colour.start(partial(do, colour, locks, key)) for locks in others for _ in range(each)]
        await colour.until(lambda: probe.queued(key) == len(tasks))
        await colour.until(lambda: probe.subscribers() == len(others))
        before = probe.calls()
        await colour.sleep(0.5)
        assert (probe.calls() - before)["evalsha"] == 0
        await colour.complete(work, {"id": 7})
        assert [await task.result() for task in tasks] == [({"id": 7}, True)] * len(tasks)
        spent = probe.calls() - before
        assert spent["publish"] == len(tasks)
        assert spent["evalsha"] + spent["eval"] <= len(tasks) + 2, "one each; the script is sent whole once"
    assert left(redis_server) == {probe.name(key, ":r")}


@in_colours()
async def test_of_what_is_done_no_news_is_expected(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """A process that once waited listens to the end: what it finds done must not pile up there."""
    locks = connect(redis_server.url)
    async with colour.block(once(connect(redis_server.url), key)) as work:
        waiter = colour.start(partial(do, colour, locks, key))
        await colour.until(lambda: results(redis_server).queued(key) == 1)
        await colour.complete(work)
    await waiter.result()
    assert (await do(colour, locks, key))[1]
    backend: Any = locks.results_manager()._backend
    assert backend.inbox.connected
    assert not backend.inbox._waiting


@in_colours()
async def test_who_listened_on_a_connection_that_broke_finds_what_was_said_meanwhile(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redisson#5761: a message that nobody heard must not be waited for."""
    probe = results(redis_server)
    async with colour.block(once(connect(redis_server.url), key)) as work:
        waiter = colour.start(partial(do, colour, connect(redis_server.url), key))
        await colour.until(lambda: probe.queued(key) == 1 and probe.subscribers() == 1)
        probe.ask("CLIENT", "KILL", "TYPE", "pubsub")
        await colour.complete(work, "paid")
    assert await waiter.result() == ("paid", True)


@in_colours()
async def test_a_list_of_what_is_at_hand_does_not_ask_for_what_is_done(
    colour: Colour, connect: Connect, redis_server: RedisServer
) -> None:
    probe, locks = results(redis_server), connect(redis_server.url)
    for number in range(20):
        await do(colour, locks, f"k{number}")
    before = probe.requests()
    assert list(await colour.list(await colour.aside(locks.results_manager))) == []
    assert probe.requests() == before
    assert list(await colour.list(locks)) == []


# Where it lies.


@pytest.mark.parametrize("key", ["k", "{", "}", "{}", "a}", "a}:r", "a}:q", "}:r", ":r", "default+once:k", "☃"])
def test_a_record_lies_in_the_slot_of_its_lock_and_is_no_other_key(key: str, redis_server: RedisServer) -> None:
    """redis.io, "Cluster specification": a script's keys must hash to one slot, by what is in the first braces."""
    probe = results(redis_server)
    assert key_slot(probe.name(key, ":r").encode()) == key_slot(probe.name(key).encode())
    with distlock.connect(redis_server.url) as locks, once(locks, key) as work:
        work.complete()
        assert left(redis_server) == {probe.name(key, ":r")}
        assert [each.key for each in locks.results.list()] == [key]


def test_a_script_touches_only_the_keys_it_was_given(redis_server: RedisServer, key: str) -> None:
    """redis.io, "EVAL": a key that is not in KEYS breaks on a cluster, one day."""
    colour = Colour("sync")
    with monitor(redis_server) as lines, distlock.connect(redis_server.url) as locks:
        with once(locks, key) as work:
            waiter = colour.start(partial(do, colour, locks, key))
            until(lambda: results(redis_server).queued(key) == 1)
            work.complete()
        until(lambda: waiter.done)
        backend = locks.results_manager()._backend
        assert backend.complete(work.lease._hold.grant, b"", 1.0, now() + 5)
        locks.results.list()
    assert {"GET", "GETRANGE", "SET", "DEL", "PTTL", "PEXPIRE", "HGETALL"} <= touching_its_keys(lines)


@in_colours()
async def test_a_result_is_any_bytes(colour: Colour, connect: Connect, redis_server: RedisServer, key: str) -> None:
    """redis-py with decode_responses fails on what is no UTF-8."""
    locks, other = connect(redis_server.url), connect(redis_server.url)
    for number, payload in enumerate((b"", b"\n", b"\0\r\n$5\r\n\n\xff", bytes(range(256)) * 1000, b"\n" * 3_000_000)):
        terms: dict[str, Any] = {"serializer": Bytes(), "limit": 10_000_000}
        assert await do(colour, locks, f"{key}{number}", payload, **terms) == (payload, False)
        assert await do(colour, other, f"{key}{number}", b"", **terms) == (payload, True)


CLIENTS: dict[str, Callable[[RedisServer], Any]] = {
    "decoding": lambda server: redis.Redis(port=server.port, decode_responses=True),
    "RESP3": lambda server: redis.Redis(port=server.port, protocol=3, decode_responses=True),
    "asyncio": lambda server: redis.asyncio.Redis(port=server.port, protocol=3, decode_responses=True),
    "unix": lambda server: redis.Redis(unix_socket_path=server.socket_path, db=3),
}


@pytest.mark.parametrize("kind", CLIENTS)
@in_colours()
async def test_a_ready_client_will_do(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, kind: str
) -> None:
    client = CLIENTS[kind](redis_server)
    payload = b"\n\0\xff"
    assert await do(colour, connect(client), key, payload, serializer=Bytes()) == (payload, False)
    assert await do(colour, connect(client), key, b"", serializer=Bytes()) == (payload, True)
    if isinstance(client, redis.Redis):
        client.close()


# What goes wrong.


@in_colours()
async def test_scripts_may_be_forgotten_between_any_two_requests(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redlock-rb, redsync: after SCRIPT FLUSH every call fails until the program is started anew."""
    locks, forget = connect(redis_server.url), partial(redis_server.command, "SCRIPT", "FLUSH")
    forget()
    async with colour.block(once(locks, key)) as work:
        forget()
        waiter = colour.start(partial(do, colour, locks, key))
        await colour.until(lambda: results(redis_server).queued(key) == 1)
        forget()
        await colour.complete(work, "paid")
    assert await waiter.result() == ("paid", True)
    for _ in range(2):
        forget()
        found = await colour.aside(lambda: locks.results.get(key))
        assert found.state == "completed"
        forget()
        assert await do(colour, locks, key) == ("paid", True)


async def failing(
    colour: Colour, connect: Connect, server: RedisServer, key: str, fail: Callable[[], object], match: str
) -> Manager:
    """Work is done, but the server fails when it is to be recorded; nothing of it is written."""
    locks = connect(server.url)
    before: list[object] = []

    def note_and_fail() -> None:
        before.append(results(server).value(key))
        fail()

    with pytest.raises(ResultUnavailable, match=match) as caught:
        await do(colour, locks, key, "paid", note_and_fail)
    assert caught.value.result == "paid"
    assert left(server) == {results(server).name(key)}
    assert [results(server).value(key)] == before
    return locks


@in_colours()
async def test_a_full_server_keeps_nothing_or_all_of_it(colour: Colour, connect: Connect, key: str) -> None:
    """redis.io, "Key eviction": with noeviction a full server refuses to write. The result is kept as soon as there is
    room."""
    with RedisServer(maxmemory="100mb") as server:
        fill = partial(server.command, "CONFIG", "SET", "maxmemory", "1")
        locks = await failing(colour, connect, server, key, fill, "maxmemory")
        server.command("CONFIG", "SET", "maxmemory", "100mb")
        await colour.until(lambda: record_of(server, key))
        assert await do(colour, locks, key, "again") == ("paid", True)
        assert left(server) == {results(server).name(key, ":r")}


@in_colours()
async def test_a_server_that_became_a_replica_keeps_nothing_or_all_of_it(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.io, "Replication": READONLY."""
    demote = partial(redis_server.command, "REPLICAOF", "127.0.0.1", "1")
    locks = await failing(colour, connect, redis_server, key, demote, "in the background.*primary")
    redis_server.command("REPLICAOF", "NO", "ONE")
    assert await do(colour, locks, key, "again") == ("paid", True)
    assert left(redis_server) == {results(redis_server).name(key, ":r")}


UNREADABLE = (
    b"", b"1", b"1 ", b"1 x", b"1 x ", b"1 x {}", b'1 x {"v":2}\n{}', b"1 x [1]", b"\n\0\xff", b"[" * 9999,
    b'2 x {"v":1,"a":{},"t":1,"at":0,"took":0}\n1',
)  # fmt: skip


@pytest.mark.parametrize("record", UNREADABLE, ids=range(len(UNREADABLE)))
@in_colours()
async def test_work_with_a_record_that_nobody_can_read_is_not_done_again(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, record: bytes
) -> None:
    """Of a later version, say. What it gave is unknown; that it was done is not."""
    locks, name = connect(redis_server.url), results(redis_server).name(key, ":r")
    redis_server.command("SET", name, record)
    for expires in (False, True):
        async with colour.block(once(locks, key, fingerprint="f")) as work:
            assert work.replayed
            assert (work.operation.expires_in is not None) is expires
            with pytest.raises(ResultUnavailable, match="cannot be read"):
                work.result  # noqa: B018
        assert [each.state for each in await colour.aside(locks.results.list)] == ["completed"]
        redis_server.command("PEXPIRE", name, 1_000_000)
    assert redis_server.command("GET", name) == record
    assert left(redis_server) == {name}


@in_colours()
async def test_a_record_of_another_kind_is_an_error_and_not_overwritten(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    locks, name = connect(redis_server.url), results(redis_server).name(key, ":r")
    redis_server.command("LPUSH", name, "x")
    with pytest.raises(BackendError, match="another kind"):
        await do(colour, locks, key)
    assert left(redis_server) == {name}


def test_a_record_is_of_the_one_claim_that_held_the_work(redis_server: RedisServer, key: str) -> None:
    with distlock.connect(redis_server.url) as locks:
        backend = locks.results_manager()._backend
        mine, other = claimed(backend, key), claimed(backend, key + "2")
        never = mine._replace(claim=Claim("never", key, LEASE, wait=False))
        assert not complete(backend, never, b"of another")
        assert backend.recorded(key, now() + 5) is None
        assert list(backend.records("", now() + 5)) == []
        assert complete(backend, mine, b"mine")
        assert list(backend.records("", now() + 5)) == [key]
        for grant in (never, other._replace(claim=other.claim._replace(key=key))):
            assert not complete(backend, grant, b"of another")
        assert complete(backend, mine, b"asked again, the first one counts")
        found = backend.recorded(key, now() + 5)
        assert found is not None
        assert found[0] == b"mine"
        assert backend.forget(key, now() + 5)
        assert not complete(backend, mine, b"too late")


def test_a_request_that_comes_after_the_work_was_done_and_forgotten_comes_to_nothing(
    redis_server: RedisServer, key: str
) -> None:
    """One that was withdrawn before, and nobody knows whether it has arrived."""
    with distlock.connect(redis_server.url, op_timeout=4.0) as locks:
        backend, probe = cast("RedisResults", locks.results_manager()._backend), results(redis_server)
        mine, late = claimed(backend, key), Claim("late", key, LEASE, wait=False)
        waits = backend.asking(Claim("waits", key, LEASE, wait=True), b"distlock:dead")
        backend._pool.send(waits, now() + 5, script=backend.dialect.acquire)
        assert probe.queued(key) == 1
        backend.withdraw(late, now() + 5, in_flight=True)
        assert complete(backend, mine, b"mine")
        assert probe.queued(key) == 0
        assert backend.forget(key, now() + 5)
        for suffix in (":q", ":w"):
            assert 0 < probe.ask("PTTL", probe.name(key, suffix)) <= 4000, "no longer than the tombstone is needed"
        with pytest.raises(BackendError, match="withdrawn"):
            backend.acquire(late, now() + 5)
        assert isinstance(backend.acquire(Claim("next", key, LEASE, wait=False), now() + 5), Grant)


def claimed(backend: SyncBackend, key: str) -> Grant:
    grant = backend.acquire(Claim(f"claim-of-{len(key)}", key, LEASE, wait=False), now() + 5)
    assert isinstance(grant, Grant)
    return grant


def complete(backend: SyncBackend, grant: Grant, record: bytes, within: float = 5.0) -> bool:
    return backend.complete(grant, record, TTL, now() + within)


@in_colours("asyncio")
async def test_who_is_cancelled_while_it_is_recorded_has_recorded_it(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis-py#3847: cancelled in the middle, it is neither lost nor unknown for ever."""
    with FaultProxy(redis_server.address) as proxy:
        locks = connect(proxy.url)
        await do(colour, locks, f"{key}: the server learns the scripts")
        task = colour.start(partial(do, colour, locks, key, "paid", partial(proxy.pause, requests=False)))
        await colour.until(lambda: record_of(redis_server, key))
        assert task._scope is not None
        task._scope.cancel()
        await colour.sleep(0)
        proxy.resume()
        await colour.until(lambda: task.done)
        assert not locks.results_manager()._watchdog._chores, "its outcome was waited for"
    assert await do(colour, connect(redis_server.url), key) == ("paid", True)


# Replicas, clusters, and many servers.


@in_colours()
async def test_a_record_counts_when_the_replicas_have_it(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.io, WAIT: the number of replicas that acknowledged the writes of this connection."""
    with RedisServer(replica_of=redis_server.address) as replica:
        await colour.until(lambda: replica.linked)
        locks = connect(f"{redis_server.url}?wait_replicas=1", op_timeout=2.0)
        assert await do(colour, locks, f"{key} too") == ("done", False)
        assert record_of(replica, f"{key} too")
        with pytest.raises(ResultUnavailable, match=r"in the background.*0 of 1 replicas confirmed"):
            await do(colour, locks, key, "paid", replica.pause)
        chores = locks.results_manager()._watchdog._chores
        assert chores, "who has not heard that it is safe goes on"
        replica.resume()
        await colour.until(lambda: not chores)
        assert record_of(replica, key)
        assert await do(colour, locks, key) == ("paid", True)


@in_colours()
async def test_a_claim_counts_when_the_replicas_have_it(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    with RedisServer(replica_of=redis_server.address) as replica:
        await colour.until(lambda: replica.linked)
        locks = connect(f"{redis_server.url}?wait_replicas=1", op_timeout=2.0)
        replica.pause()
        with pytest.raises(BackendUnavailable, match="0 of 1 replicas confirmed"):
            await do(colour, locks, key)
        await colour.until(lambda: not left(redis_server))
        replica.resume()
        assert await do(colour, locks, key) == ("done", False)


@pytest.mark.parametrize("binary", [redis_binary, require_valkey], ids=["redis", "valkey"])
def test_a_record_asked_for_again_is_not_taken_for_confirmed(binary: Callable[[], str | None], key: str) -> None:
    """redis#11713: since 7.2 WAIT answers at once on a connection that has written nothing."""
    with (
        RedisServer(binary=binary()) as primary,
        RedisServer(binary=binary(), replica_of=primary.address) as replica,
    ):
        until(lambda: replica.linked)
        url = f"{primary.url}?wait_replicas=1"
        with distlock.connect(url) as locks, distlock.connect(url) as fresh:
            backend, again = locks.results_manager()._backend, fresh.results_manager()._backend
            grant = claimed(backend, key)
            replica.pause()
            for each in (backend, again):
                with pytest.raises(BackendUnavailable, match="0 of 1 replicas confirmed") as caught:
                    complete(each, grant, b"mine", within=1.0)
                assert caught.value.sent
            assert not complete(again, grant._replace(claim=Claim("x", key, LEASE, wait=False)), b"", within=1.0)
            replica.resume()
            assert complete(again, grant, b"mine")


@in_colours()
async def test_work_whose_slot_moves_is_completed_where_it_is(
    colour: Colour, connect: Connect, shared_cluster: ClusterSetup, key: str
) -> None:
    """MOVED: who waits moves on, and is told there."""
    locks = connect(shared_cluster.url)
    slot = slot_of(results(shared_cluster.primaries[0]).name(key).encode())
    source = shared_cluster.node_of(slot)
    target = next(each for each in shared_cluster.primaries if each is not source)
    async with colour.block(once(locks, key)) as work:
        waiter = colour.start(partial(do, colour, connect(shared_cluster.url), key))
        await colour.until(lambda: results(source).queued(key) == 1)
        await colour.aside(lambda: shared_cluster.migrate(slot, target))
        await colour.until(lambda: any(b"inbox" in name for name in target.command("PUBSUB", "SHARDCHANNELS")))  # type: ignore[operator, union-attr]
        await colour.complete(work, "paid")
    assert await waiter.result() == ("paid", True)
    assert left(target) == {results(target).name(key, ":r")}
    assert [each.key for each in await colour.aside(locks.results.list)] == [key]


@in_colours()
async def test_clusters_without_sharded_channels_tell_of_a_completion_too(
    colour: Colour, connect: Connect, shared_cluster: ClusterSetup, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Redis 7."""
    monkeypatch.setattr(Cluster, "_dialect_of", lambda *_: CLUSTER)
    node = shared_cluster.node_of_key(results(shared_cluster.primaries[0]).name(key))
    async with colour.block(once(connect(shared_cluster.url), key)) as work:
        waiter = colour.start(partial(do, colour, connect(shared_cluster.url), key))
        await colour.until(lambda: results(node).queued(key) == 1)
        await colour.complete(work, "paid")
    assert await waiter.result() == ("paid", True)


def test_redlock_keeps_no_results_and_says_why() -> None:
    """Records on nodes that know nothing of each other are not one step with the end of a claim."""
    with distlock.connect("redlock://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3/0") as locks:
        with pytest.raises(Unsupported, match=r"one step.*redis\+cluster://"):
            locks.once("k", ttl=TTL)
        with pytest.raises(Unsupported):
            locks.idempotent(ttl=TTL)
        with pytest.raises(Unsupported):
            locks.results  # noqa: B018
