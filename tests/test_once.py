"""Work that is done once, on every store that keeps results, in every colour."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import distlock
from distlock.testing import OnceConformance, Store, redis_store

from .clusters import ClusterSetup
from .etcd_servers import EtcdCluster, EtcdServer
from .etcd_tools import etcd_store
from .redis_tools import store_of, until
from .sentinels import SentinelSetup
from .servers import RedisServer
from .zookeeper_servers import ZooKeeperEnsemble, ZooKeeperServer
from .zookeeper_tools import zookeeper_store


@pytest.mark.may_block
class TestMemory(OnceConformance):
    @pytest.fixture
    def store(self) -> Store:
        url = f"memory://{uuid.uuid4()}"
        backend: Any = distlock.connect(url)._backend.results()
        return Store(
            connect=partial(distlock.connect, url),
            lose=lambda key: backend._locks.pop(key),
            left=lambda: [*backend._locks, *backend._wakes, *backend._records],
        )


class TestEtcd(OnceConformance):
    @pytest.fixture
    def store(self, shared_etcd: EtcdServer) -> Store:
        return etcd_store(shared_etcd.url, lambda: shared_etcd)


class TestZooKeeper(OnceConformance):
    @pytest.fixture
    def store(self, shared_zookeeper: ZooKeeperServer) -> Store:
        return zookeeper_store(shared_zookeeper.url, lambda: shared_zookeeper)


@pytest.mark.topology
class TestEtcdCluster(OnceConformance):
    """Three members, which lead in turn."""

    _turns = itertools.count(1)

    @pytest.fixture
    def store(self, shared_etcd_cluster: EtcdCluster) -> Store:
        turn = next(self._turns)
        if turn % 20 == 5:
            shared_etcd_cluster.lead(turn // 20 % 3)
        return etcd_store(shared_etcd_cluster.url, lambda: shared_etcd_cluster.any)


class TestRedis(OnceConformance):
    @pytest.fixture
    def store(self, redis_url: str) -> Store:
        return redis_store(redis_url)


@pytest.mark.topology
class TestValkey(OnceConformance):
    @pytest.fixture
    def store(self, valkey_url: str) -> Store:
        return redis_store(valkey_url)


@pytest.fixture(scope="module")
def replicated() -> Iterator[RedisServer]:
    """A primary with one replica."""
    with RedisServer() as primary, RedisServer(replica_of=primary.address) as replica:
        until(lambda: replica.linked)
        yield primary


@pytest.mark.topology
class TestRedisReplicas(OnceConformance):
    """A claim and a record count when a replica has them."""

    @pytest.fixture
    def store(self, replicated: RedisServer) -> Store:
        replicated.command("FLUSHALL")
        return store_of(f"{replicated.url}?wait_replicas=1", lambda name: replicated, [replicated])


@pytest.mark.topology
class TestRedisSentinel(OnceConformance):
    """The primary changes between the tests."""

    _turns = itertools.count(1)

    @pytest.fixture
    def store(self, shared_sentinels: SentinelSetup) -> Store:
        if next(self._turns) % 20 == 5:
            shared_sentinels.failover()
        return store_of(shared_sentinels.url, lambda name: shared_sentinels.primary, [shared_sentinels.primary])


@pytest.mark.topology
class TestRedisCluster(OnceConformance):
    """Between the tests all slots of a node change hands."""

    _turns = itertools.count(1)

    @pytest.fixture
    def store(self, shared_cluster: ClusterSetup) -> Store:
        turn, primaries = next(self._turns), shared_cluster.primaries
        if turn % 20 == 5:
            shared_cluster.failover(primaries[turn // 20 % len(primaries)])
        return store_of(shared_cluster.url, shared_cluster.node_of_key, shared_cluster.primaries)


@pytest.mark.topology
class TestZooKeeperEnsemble(OnceConformance):
    """Three members."""

    @pytest.fixture
    def store(self, shared_zookeeper_ensemble: ZooKeeperEnsemble) -> Store:
        return zookeeper_store(shared_zookeeper_ensemble.url, lambda: shared_zookeeper_ensemble.any)


class TestFile(OnceConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        url = f"file://{tmp_path}"
        backend: Any = distlock.connect(url)._backend.results()
        return Store(
            connect=partial(distlock.connect, url),
            lose=lambda key: Path(backend.path_of(key)).unlink(),
            url=url,
            left=lambda: [path for path in tmp_path.rglob("*.*") if not path.name.startswith(".clock-")],
        )
