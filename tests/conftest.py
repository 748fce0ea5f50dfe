"""Servers, event loops and the rules that hold for every test."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import pytest
import redis
from hypothesis import settings

from distlock.testing.proxy import FaultProxy

from . import blocking
from .clusters import ClusterSetup
from .etcd_servers import EtcdCluster, EtcdServer
from .redlock_tools import Nodes, nodes_of
from .sentinels import SentinelSetup
from .servers import REDIS_URL, RedisServer, redis_binary, require_valkey
from .zookeeper_servers import JAR, ZooKeeperEnsemble, ZooKeeperServer

SetupT = TypeVar("SetupT", bound="ClusterSetup | SentinelSetup | EtcdCluster | ZooKeeperEnsemble")

settings.register_profile(
    "distlock",
    parent=settings.get_profile("ci" if os.environ.get("CI") else "default"),
    deadline=None,  # an example may wait for a server
)
settings.load_profile("distlock")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loops that an async test (``pytest.mark.anyio``) runs on."""
    return str(request.param)


@pytest.fixture(scope="session", autouse=True)
def _no_blocking() -> Iterator[None]:
    with blocking.no_blocking():
        yield


@pytest.fixture(autouse=True)
def _may_block(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("may_block"):
        with blocking.may_block():
            yield
    else:
        yield


@pytest.fixture(scope="session")
def _shared_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """The Redis server that all tests share; empty, unless it is the one that the environment names."""
    if REDIS_URL:
        return REDIS_URL
    server: RedisServer = request.getfixturevalue("_shared_redis")
    server.command("FLUSHALL")
    return server.url


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis server of this test's own, to stop, kill or fill."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def _shared_valkey() -> Iterator[RedisServer]:
    with RedisServer(binary=require_valkey()) as server:
        yield server


@pytest.fixture
def valkey_server(_shared_valkey: RedisServer) -> RedisServer:
    """The Valkey server that all tests share; empty. A test that stops it starts its own."""
    _shared_valkey.command("FLUSHALL")
    return _shared_valkey


@pytest.fixture
def valkey_url(valkey_server: RedisServer) -> str:
    return valkey_server.url


class _Shared(Generic[SetupT]):
    """A set-up that all tests share; once one of them has broken it, those after it get a fresh one."""

    def __init__(self, kind: type[SetupT]) -> None:
        self._kind = kind
        self._setup: SetupT | None = None

    def get(self) -> SetupT:
        if self._setup is not None and not self._intact(self._setup):
            self.close()
        if self._setup is None:
            fresh = self._kind()
            fresh.__enter__()
            self._setup = fresh
        self._setup.flush()
        return self._setup

    def close(self) -> None:
        if self._setup is not None:
            self._setup.__exit__()
            self._setup = None

    @staticmethod
    def _intact(setup: SetupT) -> bool:
        try:
            return all(node.up for node in setup.servers) and setup.whole()
        except (OSError, RuntimeError):
            return False


@pytest.fixture(scope="session")
def _shared_cluster() -> Iterator[_Shared[ClusterSetup]]:
    with closing(_Shared[ClusterSetup](ClusterSetup)) as shared:
        yield shared


@pytest.fixture(scope="session")
def _shared_sentinels() -> Iterator[_Shared[SentinelSetup]]:
    with closing(_Shared[SentinelSetup](SentinelSetup)) as shared:
        yield shared


@pytest.fixture
def shared_cluster(_shared_cluster: _Shared[ClusterSetup]) -> ClusterSetup:
    """The Redis Cluster that all tests share; empty. For tests that move its slots, or hand them over, in order."""
    return _shared_cluster.get()


@pytest.fixture
def shared_sentinels(_shared_sentinels: _Shared[SentinelSetup]) -> SentinelSetup:
    """The primary with Sentinels that all tests share; empty. For tests that fail it over in order."""
    return _shared_sentinels.get()


@pytest.fixture
def redis_cluster_url(shared_cluster: ClusterSetup) -> str:
    return shared_cluster.url


@pytest.fixture
def redis_sentinel_url(shared_sentinels: SentinelSetup) -> str:
    return shared_sentinels.url


@pytest.fixture
def redis_cluster() -> Iterator[ClusterSetup]:
    """A Redis Cluster of this test's own, to break."""
    with ClusterSetup() as cluster:
        yield cluster


@pytest.fixture
def redis_sentinels() -> Iterator[SentinelSetup]:
    """A primary with replicas and Sentinels of this test's own, to break."""
    with SentinelSetup() as setup:
        yield setup


@pytest.fixture(scope="session")
def _shared_nodes() -> Iterator[Nodes]:
    with nodes_of(5) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def _shared_nodes_but_one() -> Iterator[Nodes]:
    with nodes_of(5, dead=1) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def _shared_nodes_but_two() -> Iterator[Nodes]:
    with nodes_of(5, dead=2) as nodes:
        yield nodes


@pytest.fixture
def redlock_nodes(_shared_nodes: Nodes) -> Nodes:
    """Five servers that all tests share; empty. None of them is to be stopped."""
    _shared_nodes.flush()
    return _shared_nodes


@pytest.fixture
def redlock_nodes_but_one(_shared_nodes_but_one: Nodes) -> Nodes:
    """Of five, the last one is dead."""
    _shared_nodes_but_one.flush()
    return _shared_nodes_but_one


@pytest.fixture
def redlock_nodes_but_two(_shared_nodes_but_two: Nodes) -> Nodes:
    """Of five, the last two are dead."""
    _shared_nodes_but_two.flush()
    return _shared_nodes_but_two


@pytest.fixture
def redis_proxy(redis_url: str) -> Iterator[FaultProxy]:
    """A faulty network in front of the shared Redis server."""
    parts = urlsplit(redis_url)
    with FaultProxy((parts.hostname or "127.0.0.1", parts.port or 6379)) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def _shared_etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture
def shared_etcd(_shared_etcd: EtcdServer) -> EtcdServer:
    """The etcd server that all tests share; empty. For tests that look inside, and leave it whole."""
    _shared_etcd.flush()
    return _shared_etcd


@pytest.fixture
def etcd_url(shared_etcd: EtcdServer) -> str:
    return shared_etcd.url


@pytest.fixture
def etcd_server() -> Iterator[EtcdServer]:
    """An etcd server of this test's own, to stop, kill or fill."""
    with EtcdServer() as server:
        yield server


@pytest.fixture(scope="session")
def _shared_etcd_cluster() -> Iterator[_Shared[EtcdCluster]]:
    with closing(_Shared[EtcdCluster](EtcdCluster)) as shared:
        yield shared


@pytest.fixture
def shared_etcd_cluster(_shared_etcd_cluster: _Shared[EtcdCluster]) -> EtcdCluster:
    """The etcd cluster that all tests share; empty. For tests that heal what they do to it."""
    return _shared_etcd_cluster.get()


@pytest.fixture
def etcd_cluster() -> Iterator[EtcdCluster]:
    """An etcd cluster of this test's own, to break."""
    with EtcdCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _shared_zookeeper() -> Iterator[ZooKeeperServer]:
    with ZooKeeperServer() as server:
        yield server


@pytest.fixture
def shared_zookeeper(_shared_zookeeper: ZooKeeperServer) -> ZooKeeperServer:
    """The ZooKeeper server that all tests share; empty. For tests that look inside, and leave it whole."""
    _shared_zookeeper.flush()
    return _shared_zookeeper


@pytest.fixture
def zookeeper_server() -> Iterator[ZooKeeperServer]:
    """A ZooKeeper server of this test's own, to stop, kill or fill."""
    with ZooKeeperServer() as server:
        yield server


@pytest.fixture(scope="session")
def _shared_zookeeper_ensemble() -> Iterator[_Shared[ZooKeeperEnsemble]]:
    with closing(_Shared[ZooKeeperEnsemble](ZooKeeperEnsemble)) as shared:
        yield shared


@pytest.fixture
def shared_zookeeper_ensemble(_shared_zookeeper_ensemble: _Shared[ZooKeeperEnsemble]) -> ZooKeeperEnsemble:
    """The ZooKeeper ensemble that all tests share; empty. For tests that heal what they do to it."""
    return _shared_zookeeper_ensemble.get()


@pytest.fixture
def zookeeper_ensemble() -> Iterator[ZooKeeperEnsemble]:
    """A ZooKeeper ensemble of this test's own, to break."""
    with ZooKeeperEnsemble() as ensemble:
        yield ensemble


@pytest.fixture
def nobody_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late a test comes when it is its turn. For those that count requests: to be passed over is some."""
    for store in ("etcd", "zookeeper"):
        monkeypatch.setattr(f"distlock.backends.{store}._entrance.PROVISIONAL", 60.0)


@pytest.fixture
def untraced() -> Iterator[None]:
    """For a test that is interrupted anywhere: coverage has a lock in Python, which would stay locked."""
    before = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(before)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A lock name that no other test uses."""
    return f"{request.node.originalname}:{uuid.uuid4().hex}"


def pytest_configure(config: pytest.Config) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:  # under nohup or `&`; our children would inherit that
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    if redis.__version__.startswith("5.0."):  # it forgets to close a unix socket that it could not connect
        line = r"ignore:Exception ignored in. <socket\.socket.*AF_UNIX:pytest.PytestUnraisableExceptionWarning"
        config.addinivalue_line("filterwarnings", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if REDIS_URL is None and redis_binary() is None:
        terminalreporter.write_sep("!", "NO REDIS SERVER: its tests did NOT run", red=True, bold=True)
        terminalreporter.write_line("run scripts/install-servers, or set DISTLOCK_TEST_REDIS_URL")
    if shutil.which("etcd") is None:
        terminalreporter.write_sep("!", "NO ETCD SERVER: its tests did NOT run", red=True, bold=True)
        terminalreporter.write_line("run scripts/install-servers")
    if not JAR.exists() or shutil.which("java") is None:
        terminalreporter.write_sep("!", "NO ZOOKEEPER SERVER: its tests did NOT run", red=True, bold=True)
        terminalreporter.write_line("run scripts/install-servers")
