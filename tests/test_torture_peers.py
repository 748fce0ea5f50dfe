"""Other libraries' locks can be put through the torture kit. What comes of it is for people to judge: no test does."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import distlock
from distlock import ConfigurationError, LockLost
from distlock._core.drive import drive
from distlock.testing.torture import Plan, What, read_logs, torture
from distlock.testing.torture._party import party_of

from .servers import RedisServer
from .zookeeper_servers import ZooKeeperServer

ROOT = Path(distlock.__file__).parent.parent

needs_redis_lock = pytest.mark.skipif(find_spec("redis_lock") is None, reason="python-redis-lock is not installed")
PEERS = [
    pytest.param("RedisPy", ("sync", "asyncio"), "redis_server", id="redis-py"),
    pytest.param("PythonRedisLock", ("sync", "sync"), "redis_server", id="python-redis-lock", marks=needs_redis_lock),
    pytest.param("Kazoo", ("sync", "sync"), "zookeeper_server", id="kazoo"),
]


def plan_for(peer: str, url: str, **more: Any) -> Plan:
    # A machine may stand still for seconds, which is nobody's fault.
    given = {"ttl": 3.0, "seconds": 0.0, "workers": 2, "actors": 2, "keys": 1, "grace": 20.0, "timeout": 20.0, **more}
    return Plan(url, party=f"benchmarks.torture_peers:{peer}", **given)


@pytest.mark.parametrize(("peer", "colours", "server"), PEERS)
def test_a_peer_runs_through(
    peer: str,
    colours: tuple[str, str],
    server: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)  # from where the workers import it
    store: RedisServer | ZooKeeperServer = request.getfixturevalue(server)
    verdict = torture(plan_for(peer, store.url, colours=colours), tmp_path / "logs", [])
    events = read_logs(tmp_path / "logs")
    assert {event.who[:2] for event in events if event.what is What.GOT} == {"w0", "w1"}
    assert [event for event in events if event.what is What.FAILED] == []
    assert {event.more["how"] for event in events if event.what is What.LEFT} <= {"released", "lost", "cancelled"}
    assert verdict.figures.writes > 0
    assert (verdict.guarantees.fenced, verdict.figures.refused) == (False, 0)


@pytest.mark.parametrize("peer", ["RedisPy", pytest.param("PythonRedisLock", marks=needs_redis_lock)])
def test_a_peer_that_lost_its_lock_says_so_when_it_releases(peer: str, redis_server: RedisServer) -> None:
    party = party_of(plan_for(peer, redis_server.url, ttl=30.0), "sync")
    drive(party.open())
    held = drive(party.acquire("key", 0.0 if peer == "RedisPy" else 1.0, renew=False))
    assert held is not None
    redis_server.command("FLUSHALL")
    with pytest.raises(LockLost):
        drive(held.release())
    drive(party.close())


def test_a_peer_says_which_colours_it_does_not_have() -> None:
    with pytest.raises(ConfigurationError, match="trio"):
        party_of(plan_for("RedisPy", "redis://localhost"), "trio")
