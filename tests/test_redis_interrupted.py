"""Whatever ends a wait in its midst, nothing is held that nobody knows of, and nobody waits who is not told."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

import pytest
import redis

import distlock
from distlock import BackendError, BackendUnavailable
from distlock.backends.base import Claim, now

from .redis_tools import ASYNC, Colour, Connect, Probe, in_colours, until
from .servers import RedisServer

LONG = 60.0
FOREVER = 3600.0
"""A third of it is longer than any test: nobody is saved by keeping the place in the queue."""


def test_a_request_that_arrives_after_two_withdrawals_comes_to_nothing(redis_server: RedisServer, key: str) -> None:
    """Ctrl-C: withdrawn by the core and by the manager, the second time without a word that a request is on its way.

    redis-py: a request that is late takes a lock that nobody knows of.
    """
    with distlock.connect(redis_server.url) as locks:
        backend, claim = locks._backend, Claim("c1", key, LONG, wait=True)
        backend.withdraw(claim, now() + LONG, in_flight=True)
        backend.withdraw(claim, now() + LONG, in_flight=False)
        with pytest.raises(BackendError, match="withdrawn"):
            backend.acquire(claim, now() + LONG)
        assert Probe(redis_server).value(key) is None


def test_the_second_word_to_withdraw_takes_nothing_from_the_first(key: str) -> None:
    done: list[str] = []
    with distlock.connect("memory://chores") as locks:
        watchdog, claim = locks._watchdog, Claim("c1", key, LONG, wait=True)
        with watchdog._looking:  # so that none of it is done in between
            watchdog.give_up(claim, done=lambda: done.append("first"))
            watchdog.give_up(claim, in_flight=False, done=lambda: done.append("second"))
            assert watchdog._chores[claim.id].in_flight
        until(lambda: done == ["first", "second"])


@in_colours(*ASYNC)
async def test_a_thread_that_cannot_be_started_is_an_error_once(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLIMIT_NPROC: and who comes afterwards is told of the release all the same."""
    holders, locks = connect(redis_server.url), connect(redis_server.url)
    lease = await colour.acquire(holders.lock(key, ttl=LONG))
    start, failing = threading.Thread.start, ["once"]

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "distlock-inbox" and failing:
            failing.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(BackendUnavailable, match="nobody can listen"):
        await colour.acquire(locks.lock(key, ttl=LONG))
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: Probe(redis_server).queued(key) == 1)
    await colour.release(lease)
    await colour.release(await waiter.result())


class _Credentials(redis.CredentialProvider):
    failing = 0

    def get_credentials(self) -> tuple[str]:
        if self.failing:
            self.failing -= 1
            raise LookupError("the service that knows the password is away")
        return ("secret",)


@in_colours()
async def test_who_waits_outlives_an_error_of_another_kind_while_connecting_again(
    colour: Colour, connect: Connect, key: str
) -> None:
    """A credential provider raises what it likes."""
    credentials = _Credentials()
    with RedisServer(requirepass="secret") as server:
        client: Any = redis.Redis(port=server.port, credential_provider=credentials)
        locks, probe = connect(client), Probe(server)
        holders = connect(server.url)
        lease = await colour.acquire(holders.lock(key, ttl=LONG))
        waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
        await colour.until(lambda: probe.queued(key) == 1)
        credentials.failing = 1
        probe.ask("CLIENT", "KILL", "TYPE", "pubsub")
        await colour.until(lambda: not credentials.failing)
        await colour.until(lambda: probe.subscribers() == 1)
        await colour.release(lease)
        await colour.release(await waiter.result())


@pytest.mark.usefixtures("untraced")
def test_one_that_is_interrupted_as_it_stops_listening_is_not_taken_for_the_listener(
    redis_server: RedisServer, key: str
) -> None:
    """Ctrl-C at the first bytecode of the hand-over."""
    with distlock.connect(redis_server.url) as holders, distlock.connect(redis_server.url) as locks:
        first, second = holders.lock(f"{key} 1", ttl=FOREVER).acquire(), holders.lock(f"{key} 2", ttl=FOREVER).acquire()
        served: list[int] = []
        other = threading.Thread(target=lambda: served.append(_turn(locks, f"{key} 2")))
        other.start()
        until(lambda: Probe(redis_server).queued(f"{key} 2") == 1)
        once = ["once"]

        def trace(frame: FrameType, event: str, _: object) -> None:
            caller = frame.f_back
            if once and frame.f_code.co_name == "_pass_on" and caller and caller.f_code.co_name == "attend":
                once.pop()
                sys.settrace(None)
                raise KeyboardInterrupt

        sys.settrace(trace)
        try:
            with pytest.raises(KeyboardInterrupt):
                locks.lock(f"{key} 1", ttl=FOREVER).acquire(timeout=2.0)
        finally:
            sys.settrace(None)
        second.release()
        other.join(20)
        assert served
        first.release()


def _turn(locks: distlock.Manager, key: str) -> int:
    with locks.lock(key, ttl=FOREVER) as lease:
        return lease.token
