"""Every way to run Redis, etcd and ZooKeeper through the suite, in every colour."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

import pytest

import distlock
from distlock.testing import Conformance, Store, redis_store

from .clusters import ClusterSetup
from .etcd_servers import EtcdCluster
from .etcd_tools import ROOT, etcd_store
from .redlock_tools import Nodes, redlock_store
from .sentinels import SentinelSetup
from .servers import RedisServer
from .zookeeper_servers import ZooKeeperEnsemble
from .zookeeper_tools import zookeeper_store

pytestmark = pytest.mark.topology

# Each class is one worker's, in this order: those that take long come first, that none is left alone with one.


@pytest.fixture(scope="module")
def ailing_zookeeper() -> Iterator[ZooKeeperEnsemble]:
    with ZooKeeperEnsemble() as ensemble:
        yield ensemble


class TestZooKeeperLosingMembers(Conformance):
    """Of three members one is dead, frozen or cut off, the leader or another; then the next one is."""

    _turns = itertools.count(1)

    @pytest.fixture
    def store(self, ailing_zookeeper: ZooKeeperEnsemble) -> Store:
        ensemble, turn = ailing_zookeeper, next(self._turns)
        if turn % 10 == 1:
            ways = itertools.product(("kill", "pause", "partition"), ("leader", "follower"))
            how, whom = list(ways)[turn // 10 % 6]
            ensemble.heal()
            getattr(ensemble, how)(ensemble.leader() if whom == "leader" else ensemble.followers()[turn % 2])
        ensemble.flush()
        return zookeeper_store(ensemble.url, lambda: ensemble.any)


@pytest.fixture(scope="module")
def etcd_of_users() -> Iterator[EtcdCluster]:
    with EtcdCluster(client_certificates=True, users={"app": ("p/w:@ ", ROOT)}, token_ttl=2) as cluster:
        yield cluster


class TestEtcdTLS(Conformance):
    """By TLS with certificates of both sides, for a user with no more rights than needed and a short-lived token."""

    @pytest.fixture
    def store(self, etcd_of_users: EtcdCluster) -> Store:
        etcd_of_users.flush()
        return etcd_store(etcd_of_users.url, lambda: etcd_of_users.any)


class TestRedisSentinel(Conformance):
    """The primary changes between the tests, again and again."""

    _turns = itertools.count(1)

    @pytest.fixture
    def store(self, shared_sentinels: SentinelSetup) -> Store:
        if next(self._turns) % 20 == 5:
            shared_sentinels.failover()
        return _store(shared_sentinels.url, lambda name: shared_sentinels.primary, [shared_sentinels.primary])


class TestRedlock(Conformance):
    """Five nodes."""

    @pytest.fixture
    def store(self, redlock_nodes: Nodes) -> Store:
        return redlock_store(redlock_nodes)


@pytest.fixture(scope="module")
def ailing_etcd() -> Iterator[EtcdCluster]:
    with EtcdCluster() as cluster:
        yield cluster


class TestEtcdLosingMembers(Conformance):
    """Of three members one is dead, frozen or cut off, the leader or another; then the next one is."""

    _turns = itertools.count(1)

    @pytest.fixture
    def store(self, ailing_etcd: EtcdCluster) -> Store:
        cluster, turn = ailing_etcd, next(self._turns)
        if turn % 10 == 1:
            ways = itertools.product(("kill", "pause", "partition"), ("leader", "follower"))
            how, whom = list(ways)[turn // 10 % 6]
            cluster.heal()
            getattr(cluster, how)(cluster.leader() if whom == "leader" else cluster.followers()[turn % 2])
        cluster.flush()
        return etcd_store(cluster.url, lambda: cluster.any)


class TestZooKeeperEnsemble(Conformance):
    """Three members."""

    @pytest.fixture
    def store(self, shared_zookeeper_ensemble: ZooKeeperEnsemble) -> Store:
        return zookeeper_store(shared_zookeeper_ensemble.url, lambda: shared_zookeeper_ensemble.any)


class TestEtcdCluster(Conformance):
    """Three members, which lead in turn."""

    _turns = itertools.count(1)

    @pytest.fixture
    def store(self, shared_etcd_cluster: EtcdCluster) -> Store:
        turn = next(self._turns)
        if turn % 20 == 5:
            shared_etcd_cluster.lead(turn // 20 % 3)
        return etcd_store(shared_etcd_cluster.url, lambda: shared_etcd_cluster.any)


class TestRedlockWithoutTwo(Conformance):
    """Two of five are dead: as many as may be."""

    @pytest.fixture
    def store(self, redlock_nodes_but_two: Nodes) -> Store:
        return redlock_store(redlock_nodes_but_two)


class TestRedlockWithoutOne(Conformance):
    """One of five is dead."""

    @pytest.fixture
    def store(self, redlock_nodes_but_one: Nodes) -> Store:
        return redlock_store(redlock_nodes_but_one)


class TestRedisCluster(Conformance):
    """Between the tests slots change hands again and again: all of a node's by failover, single ones by migration."""

    _turns = itertools.count(1)

    @pytest.fixture
    def store(self, shared_cluster: ClusterSetup) -> Store:
        turn, primaries = next(self._turns), shared_cluster.primaries
        if turn % 20 == 5:
            shared_cluster.failover(primaries[turn // 20 % len(primaries)])
        if turn % 20 == 10:
            slot = turn % 16384
            shared_cluster.migrate(slot, next(each for each in primaries if each is not shared_cluster.node_of(slot)))
        return _store(shared_cluster.url, shared_cluster.node_of_key, shared_cluster.primaries)


class TestRedisUnix(Conformance):
    @pytest.fixture
    def store(self, _shared_redis: RedisServer) -> Store:
        _shared_redis.command("FLUSHALL")
        return redis_store(_shared_redis.unix_url)


@pytest.fixture(scope="module")
def tls_server() -> Iterator[RedisServer]:
    with RedisServer(tls=True) as server:
        yield server


class TestRedisTLS(Conformance):
    @pytest.fixture
    def store(self, tls_server: RedisServer) -> Store:
        tls_server.command("FLUSHALL")
        return redis_store(tls_server.url)


class TestValkey(Conformance):
    @pytest.fixture
    def store(self, valkey_url: str) -> Store:
        return redis_store(valkey_url)


def _store(url: str, node_of: Callable[[str], RedisServer], nodes: Sequence[RedisServer]) -> Store:
    def lose(key: str) -> None:
        name = f"distlock:{{default:{key}}}"
        node_of(name).command("DEL", name)

    def left() -> list[bytes]:
        names = [name for node in nodes for name in cast("list[bytes]", node.command("KEYS", "distlock:*"))]
        return [name for name in names if not name.endswith(b":clock")]

    return Store(connect=partial(distlock.connect, url), lose=lose, url=url, left=left)
