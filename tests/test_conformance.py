"""Every backend through the suite, in every colour."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import distlock
from distlock._open import BUILT_IN
from distlock.testing import Conformance, Store, redis_store

from .etcd_servers import EtcdServer
from .etcd_tools import etcd_store
from .example_backend import SQLiteBackend
from .zookeeper_servers import ZooKeeperServer
from .zookeeper_tools import zookeeper_store

ROOT = Path(__file__).parent.parent


@pytest.mark.may_block
class TestMemory(Conformance):
    @pytest.fixture
    def store(self, request: pytest.FixtureRequest) -> Store:
        url = f"memory://{id(request)}"
        backend: Any = distlock.connect(url)._backend

        def lose(key: str) -> None:
            with backend._mutex:
                del backend._locks[key]

        return Store(connect=partial(distlock.connect, url), lose=lose, left=lambda: [*backend._locks, *backend._wakes])


class TestFile(Conformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        url = f"file://{tmp_path}"
        backend: Any = distlock.connect(url)._backend
        return Store(
            connect=partial(distlock.connect, url),
            lose=lambda key: Path(backend.path_of(key)).unlink(),
            url=url,
            left=lambda: [*tmp_path.glob("*/*.lock")],
        )


class TestRedis(Conformance):
    @pytest.fixture
    def store(self, redis_url: str) -> Store:
        return redis_store(redis_url)


class TestEtcd(Conformance):
    @pytest.fixture
    def store(self, shared_etcd: EtcdServer) -> Store:
        return etcd_store(shared_etcd.url, lambda: shared_etcd)


class TestZooKeeper(Conformance):
    @pytest.fixture
    def store(self, shared_zookeeper: ZooKeeperServer) -> Store:
        return zookeeper_store(shared_zookeeper.url, lambda: shared_zookeeper)


class TestExample(Conformance):
    """A backend as a third party has it: another package, which is found by its entry point."""

    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
        package = tmp_path / "example-1.dist-info"
        package.mkdir()
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1\n")
        (package / "entry_points.txt").write_text("[distlock.backends]\nsqlite = tests.example_backend:open_url\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
        url = f"sqlite://{tmp_path / 'locks'}"
        backend = SQLiteBackend(str(tmp_path / "locks"))
        return Store(connect=partial(distlock.connect, url), lose=backend.lose, url=url)


def test_every_backend_goes_through_the_suite() -> None:
    from . import test_topologies  # noqa: F401 - to have its classes

    suites = {cls.__name__.removeprefix("Test").lower() for cls in Conformance.__subclasses__()}
    # A package may have several backends: each of its modules is one.
    assert {module.rpartition(".")[2].strip("_") for module, _ in BUILT_IN.values()} <= suites
