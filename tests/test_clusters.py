"""The Cluster that tests start is a real one, and answers as the manual says while it changes."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from redis.cluster import RedisCluster

from .clusters import SLOTS, ClusterSetup

KEY = "{tag}a"
OTHER = "{tag}b"


def elsewhere(cluster: ClusterSetup):
    """The slot of the keys, its owner, and a primary that does not own it."""
    slot = cluster.slot_of(KEY)
    owner = cluster.node_of(slot)
    return slot, owner, next(node for node in cluster.primaries if node is not owner)


def test_a_client_finds_its_way_from_any_node(shared_cluster):
    for node in shared_cluster.nodes:
        with RedisCluster.from_url(node.url) as client:
            client.set(KEY, "1")
            assert client.get(KEY) == b"1"


def test_every_slot_has_an_owner_and_every_owner_a_replica(shared_cluster):
    assert len({shared_cluster.node_of(slot).port for slot in range(0, SLOTS, 1000)}) == 3
    assert all(len(shared_cluster.replicas_of(node)) == 1 for node in shared_cluster.primaries)


def test_an_orderly_failover_changes_the_owner_and_loses_nothing(shared_cluster):
    old = shared_cluster.node_of_key(KEY)
    old.command("SET", KEY, 1)
    new = shared_cluster.failover(old)
    assert new is not old
    assert shared_cluster.node_of_key(KEY) is new
    assert (old.role(), new.role()) == ("replica", "primary")
    assert new.command("GET", KEY) == b"1"


def test_a_crash_makes_the_replica_the_owner_and_the_dead_comes_back_as_its_replica(redis_cluster):
    old = redis_cluster.node_of_key(KEY)
    new = redis_cluster.crash(old)
    assert not old.running
    assert redis_cluster.node_of_key(KEY) is new
    assert new.command("SET", KEY, 1) == "OK"
    redis_cluster.revive(old)
    assert redis_cluster.replicas_of(new) == [old]


def test_a_frozen_owner_is_replaced_and_learns_of_it_when_it_thaws(redis_cluster):
    old = redis_cluster.primaries[0]
    new = redis_cluster.freeze(old)
    redis_cluster.revive(old)
    assert (old.role(), new.role()) == ("replica", "primary")


def test_a_failover_right_after_others_is_won_too(redis_cluster):
    first = redis_cluster.primaries[0]
    second = redis_cluster.failover(first)
    assert redis_cluster.failover(second) is first
    assert redis_cluster.crash(first) is second


def test_another_node_answers_moved(shared_cluster):
    slot, owner, other = elsewhere(shared_cluster)
    with pytest.raises(RuntimeError, match=f"^MOVED {slot} 127.0.0.1:{owner.port}$"):
        other.command("GET", KEY)


def test_a_slot_on_its_way_answers_ask_for_what_is_gone_and_tryagain_for_what_is_split(shared_cluster):
    slot, owner, to = elsewhere(shared_cluster)
    for key in (KEY, OTHER):
        owner.command("SET", key, 1)
    shared_cluster.begin_migration(slot, to)
    assert owner.command("GET", KEY) == b"1"
    shared_cluster.move_keys(slot, to, KEY)
    with pytest.raises(RuntimeError, match=f"^ASK {slot} 127.0.0.1:{to.port}$"):
        owner.command("GET", KEY)
    with pytest.raises(RuntimeError, match=r"^TRYAGAIN "):
        owner.command("MGET", KEY, OTHER)
    with pytest.raises(RuntimeError, match=f"^MOVED {slot} 127.0.0.1:{owner.port}$"):
        to.command("GET", KEY)  # not without ASKING
    shared_cluster.finish_migration(slot, to)
    assert shared_cluster.node_of(slot) is to
    assert to.command("MGET", KEY, OTHER) == [b"1", b"1"]


def test_what_a_test_left_on_its_way_or_dead_is_replaced(redis_cluster):
    slot, _, to = elsewhere(redis_cluster)
    redis_cluster.begin_migration(slot, to)
    assert not redis_cluster.whole()
    redis_cluster.finish_migration(slot, to)
    assert redis_cluster.whole()


def test_a_password_is_asked_for_and_no_hindrance_to_what_happens():
    with ClusterSetup(password="s e/c@ret") as cluster:
        assert cluster.url.startswith("redis+cluster://:s%20e%2Fc%40ret@127.0.0.1:")
        slot, owner, to = elsewhere(cluster)
        owner.command("SET", KEY, 1)
        cluster.migrate(slot, to)
        assert cluster.failover(to).command("GET", KEY) == b"1"


def test_nothing_is_left_behind():
    with ClusterSetup(primaries=1, replicas=1) as cluster:
        left = [(node.pid, node.folder) for node in cluster.nodes]
    assert not any(psutil.pid_exists(pid) or folder.exists() for pid, folder in left)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
@pytest.mark.parametrize(
    "setup", ["tests.clusters.ClusterSetup(primaries=1)", "tests.sentinels.SentinelSetup(replicas=1, sentinels=1)"]
)
def test_it_dies_with_the_process_that_started_it(setup):
    code = (
        f"import sys, tests.clusters, tests.sentinels\n"
        f"with {setup} as setup:\n"
        "    print(*(server.pid for server in setup.servers), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        pids = [int(pid) for pid in child.stdout.readline().split()]
        folders = [Path(psutil.Process(pid).cwd()).parent for pid in pids]
        servers = [os.pidfd_open(pid) for pid in pids]
        child.kill()
        child.wait()
    for server, folder in zip(servers, folders, strict=True):
        try:
            assert select.select([server], [], [], 10)[0] == [server]
        finally:
            os.close(server)
            shutil.rmtree(folder)
