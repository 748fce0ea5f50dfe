"""Locks on a Redis Cluster: each in one slot, followed wherever that moves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import closing, suppress
from functools import partial
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import given, strategies as st

import distlock
from distlock import BackendUnavailable, ConfigurationError, LeaseState, LockLost
from distlock.backends.base import now
from distlock.backends.redis._connect import Server
from distlock.backends.redis._ear import Ear
from distlock.backends.redis._errors import mapped
from distlock.backends.redis._inbox import Inbox
from distlock.backends.redis._pool import Pool, Reply
from distlock.backends.redis._scripts import CLUSTER
from distlock.backends.redis._slots import SLOTS, slot_of, tag_of
from distlock.backends.redis._trail import Trail
from distlock.backends.redis.cluster import ClusterBackend
from distlock.backends.redis.cluster._nodes import CLUSTER_SLOTS, Cluster

from .clusters import ClusterSetup
from .redis_tools import Colour, Connect, Probe, in_colours, until
from .servers import RedisServer

LONG = 60.0
AWKWARD = ["a", "{", "}", "{}", "{a}b", "}{", "a}b", "{{x}}", "snow ☃", "a:q", "\n", "\0"]


def name_of(key: str) -> str:
    return f"distlock:{{default:{key}}}"


def _has_queue(node: RedisServer, key: str, length: int) -> bool:
    return Probe(node).queued(key) == length


def other_than(cluster: ClusterSetup, node: RedisServer) -> RedisServer:
    return next(each for each in cluster.primaries if each is not node)


def key_on(cluster: ClusterSetup, node: RedisServer, stem: str) -> str:
    """A lock's name whose slot is that node's."""
    return next(f"{stem}{n}" for n in range(1000) if cluster.node_of_key(name_of(f"{stem}{n}")) is node)


@given(st.text())
def test_a_slot_is_reckoned_as_the_specification_says(name: str) -> None:
    """Redis Cluster Specification, "Hash tags"."""
    assert slot_of(name.encode()) == redis.crc.key_slot(name.encode())


def test_every_slot_has_a_tag() -> None:
    assert all(slot_of(b"x{%b}y" % tag_of(slot)) == slot for slot in range(SLOTS))


@in_colours()
async def test_whatever_belongs_to_a_lock_lies_in_its_slot(
    colour: Colour, connect: Connect, shared_cluster: ClusterSetup
) -> None:
    """Redis Cluster Specification: the keys of a script are in one slot. With a queue, for all of them to be there."""
    locks = connect(shared_cluster.url)
    for key in AWKWARD:
        lease = await colour.acquire(locks.lock(key, ttl=LONG))
        waiter = colour.start(partial(colour.acquire, locks.lock(key, ttl=LONG)))
        probe = Probe(shared_cluster.node_of_key(name_of(key)))
        await colour.until(partial(probe.queued, key))
        await colour.release(lease)
        served = await waiter.result()
        assert served.token > lease.token
        await colour.release(served)


@in_colours()
async def test_a_slot_that_has_moved_is_followed(
    colour: Colour, connect: Connect, shared_cluster: ClusterSetup, key: str
) -> None:
    """MOVED, with a holder and a queue: both go on where the slot is now."""
    locks, slot = connect(shared_cluster.url), slot_of(name_of(key).encode())
    source = shared_cluster.node_of(slot)
    target = other_than(shared_cluster, source)
    lease = await colour.acquire(locks.lock(key, ttl=LONG))
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: Probe(source).queued(key) == 1)
    await colour.aside(lambda: shared_cluster.migrate(slot, target))
    await colour.extend(lease)
    await colour.until(lambda: any(b"inbox" in name for name in target.command("PUBSUB", "SHARDCHANNELS")))  # type: ignore[operator, union-attr]
    await colour.release(lease)
    served = await waiter.result()
    assert served.token > lease.token
    await colour.release(served)
    await colour.until(lambda: all(name.endswith(b":clock") for name in Probe(target).ask("KEYS", "*")))


@in_colours()
async def test_who_waits_moves_on_although_nobody_can_listen_at_the_new_node_at_first(
    colour: Colour, connect: Connect, shared_cluster: ClusterSetup, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How it is to be woken is not lost with the attempt."""
    locks, slot = connect(shared_cluster.url), slot_of(name_of(key).encode())
    source = shared_cluster.node_of(slot)
    target = other_than(shared_cluster, source)
    lease = await colour.acquire(locks.lock(key, ttl=LONG))
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: Probe(source).queued(key) == 1)
    failures, subscribe = [BackendUnavailable("not yet")], Inbox._subscribe

    def failing_once(inbox: Inbox, timeout: float) -> Ear:
        if failures:
            raise failures.pop()
        return subscribe(inbox, timeout)

    monkeypatch.setattr(Inbox, "_subscribe", failing_once)
    await colour.aside(lambda: shared_cluster.migrate(slot, target))
    await colour.until(lambda: not failures)
    await colour.until(lambda: any(b"inbox" in name for name in target.command("PUBSUB", "SHARDCHANNELS")))  # type: ignore[operator, union-attr]
    await colour.release(lease)
    served = await waiter.result()
    assert served.token > lease.token
    await colour.release(served)


@in_colours()
async def test_a_lease_is_kept_and_a_request_waits_while_the_slot_moves(
    colour: Colour, connect: Connect, shared_cluster: ClusterSetup, key: str
) -> None:
    """ASK for what has moved already; TRYAGAIN for a lock of which one half is here and the other there."""
    locks, slot = connect(shared_cluster.url, op_timeout=20), slot_of(name_of(key).encode())
    source = shared_cluster.node_of(slot)
    target = other_than(shared_cluster, source)
    lease = await colour.acquire(locks.lock(key, ttl=LONG))
    shared_cluster.begin_migration(slot, target)
    await colour.extend(lease)
    shared_cluster.move_keys(slot, target, name_of(key))
    await colour.extend(lease)
    assert lease.state is LeaseState.HELD
    release = colour.start(lambda: colour.release(lease))
    await colour.sleep(0.1)
    await colour.aside(lambda: shared_cluster.finish_migration(slot, target))
    await release.result()
    await colour.release(await colour.acquire(locks.lock(key, ttl=LONG)))


@in_colours()
async def test_a_lease_and_its_queue_outlive_a_failover(
    colour: Colour, connect: Connect, shared_cluster: ClusterSetup, key: str
) -> None:
    locks, node = connect(shared_cluster.url), shared_cluster.node_of_key(name_of(key))
    lease = await colour.acquire(locks.lock(key, ttl=LONG))
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: Probe(node).queued(key) == 1)
    await colour.aside(lambda: shared_cluster.failover(node))
    await colour.release(lease)
    served = await waiter.result()
    assert served.token > lease.token
    await colour.release(served)


def test_leases_of_a_node_that_hangs_are_renewed_by_its_successor(redis_cluster: ClusterSetup, key: str) -> None:
    """Several at once, which are asked for in one write."""
    node = redis_cluster.primaries[0]
    names = [key_on(redis_cluster, node, f"{key}{stem}") for stem in "ab"]
    names.append(key_on(redis_cluster, redis_cluster.primaries[1], key))
    with distlock.connect(redis_cluster.url, op_timeout=4) as locks:
        leases = [locks.lock(name, ttl=30.0).acquire() for name in names]
        heir = redis_cluster.freeze(node)
        before = {name: Probe(heir).pttl(name) for name in names[:2]}
        until(lambda: all(Probe(heir).pttl(name) > left for name, left in before.items()))
        assert {lease.state for lease in leases} == {LeaseState.HELD}
        for lease in leases:
            lease.release()
        redis_cluster.revive(node)


@pytest.mark.parametrize("fault", ["crash", "freeze"])
@in_colours()
async def test_who_asks_while_a_node_is_dead_gets_the_lock_from_its_successor(
    colour: Colour, connect: Connect, redis_cluster: ClusterSetup, key: str, fault: str
) -> None:
    """And leases on other nodes are kept meanwhile: none waits for the dead one."""
    locks = connect(redis_cluster.url, op_timeout=30)
    node = redis_cluster.node_of_key(name_of(key))
    elsewhere = key_on(redis_cluster, other_than(redis_cluster, node), key)
    kept = await colour.acquire(locks.lock(elsewhere, ttl=9.0))
    lost = await colour.acquire(locks.lock(key, ttl=3.0, renew=False))
    dying = colour.start(lambda: colour.aside(lambda: getattr(redis_cluster, fault)(node)))
    await colour.until(lambda: not node.up)
    after = await colour.acquire(locks.lock(key, ttl=LONG))
    assert after.token > lost.token
    await dying.result()
    # No node answers while a slot is nobody's, so that a renewal may have failed just now.
    await colour.until(lambda: kept.state is LeaseState.HELD and kept.remaining() > 6.0)
    for lease in (after, kept):
        await colour.release(lease)
    with suppress(LockLost):
        await colour.release(lost)


@in_colours()
async def test_who_waits_goes_on_with_the_successor_of_a_dead_node(
    colour: Colour, connect: Connect, redis_cluster: ClusterSetup, key: str
) -> None:
    locks = connect(redis_cluster.url, op_timeout=30)
    node = redis_cluster.node_of_key(name_of(key))
    holder = await colour.acquire(locks.lock(key, ttl=6.0, renew=False))
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: Probe(node).queued(key) == 1)
    await colour.aside(lambda: redis_cluster.crash(node))
    served = await waiter.result()
    assert served.token > holder.token
    await colour.release(served)
    with suppress(LockLost):
        await colour.release(holder)


@in_colours()
async def test_news_goes_through_the_slot_alone(
    colour: Colour, connect: Connect, shared_cluster: ClusterSetup, key: str
) -> None:
    """Redis 7, "Sharded Pub/Sub": no message to the nodes that have nothing to do with it."""
    locks, node = connect(shared_cluster.url), shared_cluster.node_of_key(name_of(key))
    lease = await colour.acquire(locks.lock(key, ttl=LONG))
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: Probe(node).queued(key) == 1)
    listening = [each for each in shared_cluster.nodes if each.command("PUBSUB", "SHARDCHANNELS")]
    assert listening == [node]
    assert not [each for each in shared_cluster.nodes if each.command("PUBSUB", "CHANNELS")]
    await colour.release(lease)
    await colour.release(await waiter.result())


@in_colours()
async def test_clusters_without_sharded_channels_hand_over_too(
    colour: Colour, connect: Connect, shared_cluster: ClusterSetup, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Redis 7, messages go to all nodes."""
    monkeypatch.setattr(Cluster, "_dialect_of", lambda *_: CLUSTER)
    holders, locks = connect(shared_cluster.url), connect(shared_cluster.url)
    node = shared_cluster.node_of_key(name_of(key))
    lease = await colour.acquire(holders.lock(key, ttl=LONG))
    waiters = []
    for number in range(3):
        waiters.append(colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG))))
        await colour.until(partial(_has_queue, node, key, number + 1))
    assert node.command("PUBSUB", "CHANNELS")
    await colour.release(lease)
    for waiter in waiters:
        served = await waiter.result()
        assert served.token > lease.token
        lease = served
        await colour.release(served)


@in_colours()
async def test_leases_on_all_nodes_are_renewed_and_lost_ones_told(
    colour: Colour, connect: Connect, shared_cluster: ClusterSetup, key: str
) -> None:
    locks = connect(shared_cluster.url)
    leases = [await colour.acquire(locks.lock(f"{key}{n}", ttl=6.0)) for n in range(30)]
    gone = leases.pop()
    shared_cluster.node_of_key(name_of(gone.key)).command("DEL", name_of(gone.key))
    await colour.until(lambda: gone.state is LeaseState.LOST)
    proven = [lease._hold.deadline for lease in leases]
    await colour.until(lambda: all(each._hold.deadline > before for each, before in zip(leases, proven, strict=True)))
    for lease in leases:
        await colour.release(lease)


def test_a_lease_whose_slot_nobody_has_stops_no_other_one(
    shared_cluster: ClusterSetup, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    homeless, kept = f"{key}a", f"{key}b"
    learn = Cluster._learn

    def learn_not(cluster: Cluster, ranges: Iterable[Any]) -> None:
        learn(cluster, ranges)
        cluster._owners[cluster.slot_of(homeless)] = None

    with (
        distlock.connect(shared_cluster.url) as locks,
        locks.lock(homeless, ttl=LONG) as lease,
        locks.lock(kept, ttl=LONG) as other,
    ):
        backend = _backend_of(locks)
        grants = [each._hold.grant for each in (lease, other)]
        with monkeypatch.context() as patched:
            patched.setattr(Cluster, "_learn", learn_not)
            backend.cluster.look_again(now() + LONG, backend.cluster.discoveries, 0)
            found = [renewal.state for renewal in backend.renew(grants, now() + LONG)]
        assert found == [LeaseState.UNKNOWN, LeaseState.HELD]


def test_a_map_that_lacks_the_slot_is_not_the_last_word(
    shared_cluster: ClusterSetup, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a node that has forgotten the others, say. The one that told it is not asked first again either."""
    blind, send = shared_cluster.nodes[0].port, Pool.send
    seen: list[int] = []

    def sends(pool: Pool, frame: bytes, *args: Any, **kwargs: Any) -> Reply:
        reply = send(pool, frame, *args, **kwargs)
        if frame != CLUSTER_SLOTS:
            return reply
        assert isinstance(pool._server, Server)
        seen.append(pool._server.settings["port"])
        return Reply([], again=False) if seen[-1] == blind else reply

    monkeypatch.setattr(Pool, "send", sends)
    with distlock.connect(shared_cluster.url) as locks, locks.lock(key):
        cluster = _backend_of(locks).cluster
        assert seen[0] == blind
        for _ in range(2):
            cluster.look_again(now() + LONG, cluster.discoveries, cluster.slot_of(key))
        assert cluster.known_owner(cluster.slot_of(key)) is not None
        assert len({port for port in seen if port != blind}) == 3


def test_a_route_that_is_made_after_the_end_closes_itself(shared_cluster: ClusterSetup, key: str) -> None:
    with distlock.connect(shared_cluster.url) as locks, locks.lock(key):
        cluster = _backend_of(locks).cluster
    node = shared_cluster.nodes[-1]
    before = len(Probe(node).clients())
    cluster.route(("127.0.0.1", node.port)).send(CLUSTER_SLOTS, now() + LONG)
    until(lambda: len(Probe(node).clients()) <= before)


def _backend_of(locks: distlock.Manager) -> ClusterBackend:
    backend = locks._backend
    assert isinstance(backend, ClusterBackend)
    return backend


@in_colours()
async def test_all_nodes_are_listed(colour: Colour, connect: Connect, shared_cluster: ClusterSetup, key: str) -> None:
    locks = connect(shared_cluster.url)
    leases = [await colour.acquire(locks.lock(f"{key}{n}")) for n in range(12)]
    assert {found.key for found in await colour.list(locks, key)} == {lease.key for lease in leases}
    for lease in leases:
        await colour.release(lease)


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_a_client_at_hand_lends_what_it_knows(shared_cluster: ClusterSetup, key: str, kind: str) -> None:
    port = shared_cluster.nodes[0].port
    if kind == "sync":
        with closing(redis.RedisCluster(host="127.0.0.1", port=port)) as client:
            _hold(client, key)
    else:

        async def main() -> None:
            async with redis.asyncio.RedisCluster(host="127.0.0.1", port=port) as client:
                await asyncio.to_thread(_hold, client, key)

        asyncio.run(main())


def _hold(client: Any, key: str) -> None:
    with distlock.connect(client) as locks, locks.lock(key) as lease:
        assert locks.address.startswith("redis+cluster://127.0.0.1:")
        assert lease.state is LeaseState.HELD


def test_a_password_is_used_and_not_shown(key: str) -> None:
    with ClusterSetup(password="s3cret/1", replicas=0) as cluster, distlock.connect(cluster.url) as locks:
        with locks.lock(key):
            pass
        assert "s3cret" not in repr(locks) + locks.address


def test_a_server_that_is_no_cluster_is_named(redis_server: RedisServer, key: str) -> None:
    url = redis_server.url.replace("redis://", "redis+cluster://")
    with distlock.connect(url) as locks, pytest.raises(ConfigurationError, match="use redis:// for it"):
        locks.lock(key).acquire()


@in_colours()
async def test_a_cluster_that_cannot_be_reached_is_an_outage(colour: Colour, connect: Connect, key: str) -> None:
    locks = connect("redis+cluster://127.0.0.1:1,127.0.0.1:2", op_timeout=0.5)
    with pytest.raises(BackendUnavailable, match="no node of the cluster"):
        await colour.acquire(locks.lock(key))


@pytest.mark.parametrize("url", ["redis+cluster://h/1", "redis+cluster://h,,i", "redis+cluster://h/?cluster=yes"])
def test_a_url_that_means_nothing_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        distlock.connect(url)


def test_a_last_try_that_had_no_time_tells_what_came_of_those_before() -> None:
    trail = Trail(now() + LONG)
    hurried = mapped(TimeoutError(), "redis://h")
    hurried.__cause__ = TimeoutError()
    trail.after(mapped(ConnectionError("nobody there"), "redis://h"), None)
    trail.after(hurried, None)
    trail.deadline = now()
    with pytest.raises(BackendUnavailable, match=r"not answer in time \[redis://h\]; before that: .* \(nobody there\)"):
        trail.after(hurried, None)


@pytest.mark.parametrize("host", ["", "?"])
def test_a_node_that_does_not_know_its_own_address_sends_to_where_it_was_asked(host: str) -> None:
    """Redis Cluster, cluster-preferred-endpoint-type unknown-endpoint."""
    trail = Trail(now() + LONG)
    error = BackendUnavailable("moved")
    error.__cause__ = redis.ResponseError(f"MOVED 3999 {host}:6381")
    trail.after(error, ("example.org", 6380))
    assert trail.moved_to == ("example.org", 6381)
