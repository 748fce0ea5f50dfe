"""Servers, event loops and the rules that hold for every test."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis
from hypothesis import settings

from . import blocking
from .proxy import FaultProxy
from .servers import REDIS_URL, RedisServer, redis_binary

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


@pytest.fixture
def redis_proxy(redis_url: str) -> Iterator[FaultProxy]:
    """A faulty network in front of the shared Redis server."""
    parts = urlsplit(redis_url)
    with FaultProxy((parts.hostname or "127.0.0.1", parts.port or 6379)) as proxy:
        yield proxy


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
