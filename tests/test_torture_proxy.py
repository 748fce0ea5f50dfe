"""The faults of a proxy hurt who goes through it, and heal without a trace."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

import distlock
from distlock.testing.proxy import FaultProxy
from distlock.testing.torture._faults import Victim
from distlock.testing.torture._plan import Plan
from distlock.testing.torture._proxy_faults import proxied, proxy_faults

PING = b"PING\r\n"
PONG = b"+PONG\r\n"


@dataclass
class Ground:
    plan: Plan = field(default_factory=lambda: Plan("redis://", ttl=0.5))
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    workers: Sequence[Victim] = ()


def talks(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=10) as link:
            link.sendall(PING)
            return link.recv(100) == PONG
    except ConnectionError:
        return False


@pytest.mark.parametrize("name", [hurt.name for hurt in proxy_faults()])
def test_it_heals(redis_proxy, name):
    hurt = next(hurt for hurt in proxy_faults(redis_proxy) if hurt.name == name)
    for _ in range(2):
        with hurt.strike(Ground()) as whom:
            assert whom == f"127.0.0.1:{redis_proxy.port}"
        assert talks(redis_proxy.address)


@pytest.mark.parametrize("name", ["replies dropped", "requests dropped", "connections refused"])
def test_it_hurts_as_long_as_it_lasts(redis_proxy, name):
    hurt = next(hurt for hurt in proxy_faults(redis_proxy) if hurt.name == name)
    with hurt.strike(Ground()):
        assert not talks(redis_proxy.address)


def test_they_strike_one_of_several_or_all(redis_url, redis_proxy):
    with FaultProxy(redis_proxy.address) as other:
        hurt = proxy_faults(redis_proxy, other)[0]
        ground, struck = Ground(), set()
        for _ in range(20):
            with hurt.strike(ground) as whom:
                struck.add(whom)
    one, two = (f"127.0.0.1:{port}" for port in (redis_proxy.port, other.port))
    assert struck == {one, two, f"{one}, {two}"}


def test_no_promise_excepts_them():
    assert {fault for hurt in proxy_faults() for fault in hurt.excused} == set()


def test_a_url_leads_through_the_proxy(redis_url, key):
    url, proxy = proxied(redis_url)
    with proxy, distlock.connect(url) as locks, locks.lock(key):
        assert proxy.traffic.connections > 0


@pytest.mark.parametrize(
    "url",
    ["etcd://me:p%40ss@localhost", "zookeeper://127.0.0.1/a/chroot?layout=kazoo&path=/x", "zk://localhost/a"],
)
def test_all_else_of_a_url_stays(url):
    through, proxy = proxied(url)
    with proxy:
        place = f"127.0.0.1:{proxy.port}"
        assert through == url.replace("localhost" if "localhost" in url else "127.0.0.1", place)


@pytest.mark.parametrize(
    "url", ["etcd://a,b,c", "rediss://localhost", "redis+sentinel://a/m", "memory://", "file:///x"]
)
def test_what_no_proxy_can_stand_before_is_refused(url):
    with pytest.raises(distlock.ConfigurationError, match="one address"):
        proxied(url)
