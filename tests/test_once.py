"""Work that is done once, on every store that keeps results, in every colour."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

import pytest

import distlock
from distlock.testing import OnceConformance, Store

from .zookeeper_servers import ZooKeeperServer
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


class TestZooKeeper(OnceConformance):
    @pytest.fixture
    def store(self, shared_zookeeper: ZooKeeperServer) -> Store:
        return zookeeper_store(shared_zookeeper.url, lambda: shared_zookeeper)
