"""A server's wall clock does what it is told, and nothing else of the server does."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from .clocks import WallClock
from .servers import RedisServer, wait_until

HOUR = 3600.0


@pytest.fixture(scope="module")
def _shared() -> Iterator[RedisServer]:
    with RedisServer(clock=WallClock()) as server:
        yield server


@pytest.fixture
def clock(_shared: RedisServer) -> WallClock:
    assert _shared.clock is not None
    _shared.clock.set_right()
    return _shared.clock


@pytest.fixture
def server(_shared: RedisServer, clock: WallClock) -> RedisServer:
    _shared.command("FLUSHALL")
    return _shared


def time_of(server: RedisServer) -> float:
    reply = server.command("TIME")
    assert isinstance(reply, list)
    seconds, micros = (int(part) for part in reply if isinstance(part, bytes))
    return seconds + micros / 1e6


def test_it_is_that_of_the_machine_at_first(server):
    before = time.time()
    assert before <= time_of(server) + 1e-6 <= time.time() + 2e-6


@pytest.mark.parametrize("seconds", [HOUR, -HOUR, 0.25])
def test_it_jumps_while_the_server_runs(server, clock, seconds):
    before = time.time()
    clock.jump(seconds)
    assert before + seconds <= time_of(server) + 1e-6 <= time.time() + seconds + 2e-6
    assert clock.ahead == pytest.approx(seconds)


def test_it_stands_still_and_is_moved_by_hand(server, clock):
    clock.stop()
    first = time_of(server)
    assert time_of(server) == first == pytest.approx(clock.now, abs=1e-6)
    clock.jump(0.5)
    assert time_of(server) == pytest.approx(first + 0.5, abs=2e-6)


def test_it_goes_on_from_where_it_stood(server, clock):
    clock.stop()
    clock.jump(-HOUR)
    stood = time_of(server)
    clock.go_on()
    assert 0 <= time_of(server) - stood < HOUR / 2
    wait_until(lambda: time_of(server) > stood, "the clock to run")


def test_what_a_server_forgets_after_a_time_it_forgets_by_this_clock(server, clock):
    clock.stop()
    server.command("SET", "lease", "mine", "PX", 1000)
    clock.jump(0.999)
    assert server.command("PTTL", "lease") == 1
    clock.jump(0.002)
    assert server.command("GET", "lease") is None


def test_set_back_it_keeps_what_would_have_been_forgotten(server, clock):
    clock.stop()
    server.command("SET", "lease", "mine", "PX", 1000)
    clock.jump(-HOUR)
    assert server.command("PTTL", "lease") == 1000 + HOUR * 1000


def test_the_servers_own_timers_run_while_it_stands_still(server, clock):
    clock.stop()
    server.command("SET", "lease", "mine", "PX", 1000)
    clock.jump(HOUR)
    wait_until(lambda: server.command("DBSIZE") == 0, "the server to clean up what nobody asks for")


def test_it_outlives_a_restart_of_the_server(clock):
    with RedisServer(clock=clock) as server:
        clock.jump(HOUR)
        server.restart(crash=True)
        assert time_of(server) - time.time() == pytest.approx(HOUR, abs=30)
