"""The faults of servers hurt one that runs, and heal; each says what it is an excuse for."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from distlock import Fault
from distlock.testing.torture import Arena, Plan, Victim
from distlock.testing.torture._server_faults import again_and_again, clock_jumps, kills, once, stops, swaps

from .clocks import WallClock
from .servers import RedisServer, wait_until


@dataclass
class Ground:
    plan: Plan = field(default_factory=lambda: Plan("redis://", ttl=0.5))
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    workers: Sequence[Victim] = ()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(appendonly=True, clock=WallClock()) as server:
        yield server


def state_of(server: RedisServer) -> str:
    with open(f"/proc/{server.pid}/stat") as file:
        return file.read().rpartition(") ")[2][0]


@pytest.mark.parametrize("place", [0, 1])
def test_a_stopped_server_goes_on(server, place):
    with stops("server", lambda: [server])[place].strike(Ground()) as whom:
        wait_until(lambda: state_of(server) == "T", "the server to stand still")
    assert server.command("PING") == "PONG"
    assert whom == f"127.0.0.1:{server.port} (pid {server.pid})"


def test_a_stop_is_shorter_or_longer_than_the_ttl():
    shorter, longer = stops("server", list)
    assert shorter.lasts[1] < 1 < longer.lasts[0]


def test_a_killed_server_comes_back_with_its_data(server):
    server.command("SET", "a", 1)
    with kills("killed", lambda: [server]).strike(Ground()):
        assert not server.running
    assert server.command("GET", "a") == b"1"


def test_or_without_it(server):
    server.command("SET", "a", 1)
    hurt = kills("killed", lambda: [server], Fault.EMPTY_RESTART, meanwhile=lambda dead: dead.forget())
    with hurt.strike(Ground()):
        pass
    assert server.command("GET", "a") is None
    assert hurt.excused == {Fault.EMPTY_RESTART}


def test_all_are_killed_at_once(server):
    with RedisServer() as other:
        with kills("killed", lambda: [server, other], all_of_them=True).strike(Ground()) as whom:
            assert not server.running
            assert not other.running
            assert str(server.port) in whom
            assert str(other.port) in whom
        assert server.command("PING") == other.command("PING") == "PONG"


def test_a_clock_jumps_by_less_than_three_ttls_and_stays_there(server):
    clock = server.clock
    assert clock is not None
    forwards, backwards, _ = clock_jumps(clock)
    with forwards.strike(Ground()):
        assert 0 < clock.ahead <= 1.5
    ahead = clock.ahead
    with backwards.strike(Ground()):
        assert clock.ahead < ahead
    assert forwards.excused == backwards.excused == {Fault.STORE_CLOCK_JUMP}


def test_a_clock_that_stood_still_goes_on(server):
    clock = server.clock
    assert clock is not None
    with clock_jumps(clock)[2].strike(Ground()):
        assert clock.now == clock.now
    assert clock.now < clock.now


def test_what_happens_is_undone_even_if_the_nemesis_fails():
    done: list[str] = []

    def cut(_: Arena) -> str:
        done.append("cut")
        return "it"

    hurt = swaps("cut", cut, lambda: done.append("healed"))
    with pytest.raises(ZeroDivisionError), hurt.strike(Ground()) as whom:
        raise ZeroDivisionError
    assert (whom, done) == ("it", ["cut", "healed"])


def test_what_happens_once_is_over_at_once():
    assert once("flush", lambda _: "all").lasts == (0.0, 0.0)


def test_small_things_happen_again_and_again_until_it_is_over():
    often = threading.Semaphore(0)

    def act() -> None:
        often.release()
        raise OSError("not this time")

    with again_and_again("compaction", "all", act).strike(Ground()):
        assert all(often.acquire(timeout=30) for _ in range(3))
    assert "again-and-again" not in [thread.name for thread in threading.enumerate()]
