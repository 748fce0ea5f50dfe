"""Work that is done once, on every store that keeps results, in every colour."""

from __future__ import annotations

import itertools
import uuid
from functools import partial
from typing import Any

import pytest

import distlock
from distlock.testing import OnceConformance, Store

from .etcd_servers import EtcdCluster, EtcdServer
from .etcd_tools import etcd_store


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
