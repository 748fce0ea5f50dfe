"""The Sentinels that tests start are real ones, and replace a primary."""

from __future__ import annotations

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from .sentinels import MASTER, SentinelSetup


def test_a_client_finds_the_primary(shared_sentinels):
    addresses = [sentinel.address for sentinel in shared_sentinels.sentinels]
    with Sentinel(addresses).master_for(MASTER) as client:
        assert client.set("k", "1")
    assert shared_sentinels.primary.command("GET", "k") == b"1"
    assert [node.role() for node in shared_sentinels.replicas] == ["replica", "replica"]


def test_an_orderly_failover_changes_the_primary(shared_sentinels):
    old = shared_sentinels.primary
    old.command("SET", "k", 1)
    old.command("WAIT", 2, 0)
    new = shared_sentinels.failover()
    assert new is not old
    assert shared_sentinels.primary is new
    assert (old.role(), new.role()) == ("replica", "primary")
    assert new.command("GET", "k") == b"1"
    assert new.command("SET", "k", 2) == "OK"


def test_a_crash_changes_the_primary_and_the_dead_comes_back_as_a_replica(redis_sentinels):
    old = redis_sentinels.primary
    new = redis_sentinels.crash_primary()
    assert new is not old
    assert not old.running
    assert all(sentinel.watched() == new.port for sentinel in redis_sentinels.sentinels)
    assert new.command("SET", "k", 1) == "OK"
    redis_sentinels.revive(old)
    assert (old.role(), redis_sentinels.primary) == ("replica", new)


def test_a_frozen_primary_is_replaced_and_a_replica_once_it_thaws(redis_sentinels):
    old = redis_sentinels.primary
    new = redis_sentinels.freeze_primary()
    redis_sentinels.revive(old)
    assert (old.role(), new.role()) == ("replica", "primary")


def test_a_sentinel_remembers_what_it_learned(redis_sentinels):
    new = redis_sentinels.failover()
    sentinel = redis_sentinels.sentinels[0]
    sentinel.restart(crash=True)
    assert sentinel.watched() == new.port


def test_passwords_are_asked_for_and_no_hindrance_to_what_happens():
    with SentinelSetup(password="s e/c@ret", sentinel_password="other one") as setup:
        for server in setup.servers:
            once = Retry(NoBackoff(), 0)
            with redis.Redis(port=server.port, retry=once) as client, pytest.raises(redis.AuthenticationError):
                client.ping()
        assert setup.url.startswith("redis+sentinel://:s%20e%2Fc%40ret@127.0.0.1:")
        assert setup.url.endswith(f"/{MASTER}/0?sentinel_password=other%20one")
        old = setup.primary
        assert setup.failover() is not old


def test_nothing_is_left_behind():
    with SentinelSetup(replicas=1, sentinels=1) as setup:
        left = [(server.pid, server.folder) for server in setup.servers]
    assert not any(psutil.pid_exists(pid) or folder.exists() for pid, folder in left)
