"""A lock that was handed over is entered on what the message proves, while its confirmation is on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from distlock import Lease, LeaseState, LockLost, Manager, connect
from distlock._core.hold import GONE, Hold
from distlock.backends.base import Claim, Grant, Renewal, now
from distlock.backends.redis._waiting import Waiting, epoch
from distlock.testing.proxy import FaultProxy

from .redis_tools import Probe, until
from .servers import RedisServer

LONG = 60.0


@contextmanager
def _handed_over(
    server: RedisServer, key: str, ttl: float = LONG, **options: Any
) -> Iterator[tuple[FaultProxy, Lease, Future[Any]]]:
    """One that holds, and one behind a proxy that waits for it."""
    with (
        FaultProxy(server.address) as proxy,
        connect(server.url) as holders,
        connect(proxy.url, op_timeout=2.0) as waiters,
        ThreadPoolExecutor(1) as pool,
    ):
        probe = Probe(server)
        _settle(holders, waiters, key, probe)
        holder = holders.lock(key, ttl=LONG).acquire()
        waiting = pool.submit(waiters.lock(key, ttl=ttl, **options).acquire)
        until(lambda: probe.queued(key) == 1)
        yield proxy, holder, waiting
        proxy.resume()


def _settle(holders: Manager, waiters: Manager, key: str, probe: Probe) -> None:
    """All is connected, and the server knows the scripts."""
    with ThreadPoolExecutor(1) as pool:
        holder = holders.lock(key).acquire()
        waiting = pool.submit(waiters.lock(key).acquire)
        until(lambda: probe.queued(key) == 1)
        holder.release()
        waiting.result().release()


def test_it_is_entered_before_the_confirmation_is_answered(
    redis_server: RedisServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distlock.backends.redis._inbox.ENOUGH", 0.0)  # the news may take its time
    # The watchdog has a second for it, which a machine with more to do may not give it: then the lease is lost.
    assert any(_is_entered_early(redis_server, f"{key}:{turn}") for turn in range(5))


def _is_entered_early(redis_server: RedisServer, key: str) -> bool:
    """False: it was lost, before its confirmation was asked for again."""
    probe = Probe(redis_server)
    with _handed_over(redis_server, key) as (proxy, holder, waiting):
        before = proxy.traffic
        proxy.drop_replies(to="EVAL", then="silence")
        holder.release()
        lease = waiting.result()
        assert lease.state is LeaseState.HELD
        assert lease.ensure_held() == lease.token
        assert 0 < lease._hold.remaining(0.0) < 1
        until(lambda: probe.pttl(key) > 1000)
        assert proxy.sent[before.commands] == "EVAL", "and did not ask"
        assert lease.token == int(probe.ask("GET", probe.clock))
        # The watchdog asks for what was never answered.
        until(lambda: lease._hold.remaining(0.0) > 1 or lost(lease))
        if lost(lease):
            return False
        lease.release()
    left = probe.keys()
    assert not [name for name in left if key in name]
    return True


def lost(lease: Lease) -> bool:
    return lease.state is LeaseState.LOST


def test_what_is_proven_grows_with_the_answer(redis_server: RedisServer, key: str) -> None:
    with _handed_over(redis_server, key) as (_, holder, waiting):
        holder.release()
        lease = waiting.result()
        assert lease.ensure_held(at_least=LONG / 2) == lease.token
        assert lease.remaining() > LONG / 2
        lease.release()


def test_a_confirmation_that_was_answered_is_not_repeated(redis_server: RedisServer, key: str) -> None:
    probe = Probe(redis_server)
    with _handed_over(redis_server, key, ttl=4.0) as (proxy, holder, waiting):
        holder.release()
        lease = waiting.result()
        until(lambda: probe.pttl(key) > 1000)
        before = proxy.traffic
        until(lambda: (proxy.traffic - before).commands > 0)  # the renewal, at a third of the ttl
        assert now() - lease.acquired_at > 1.0
        lease.release()


def test_news_that_was_long_on_its_way_proves_nothing(redis_server: RedisServer, key: str) -> None:
    """It is the server's clock that says since when: the lock may be another's by now."""
    probe = Probe(redis_server)
    with _handed_over(redis_server, key) as (proxy, holder, waiting), connect(redis_server.url) as others:
        proxy.pause(requests=False)
        holder.release()
        other = others.lock(key, ttl=LONG).acquire(timeout=20.0)  # when the second is over that it had to confirm it
        before = proxy.traffic
        proxy.resume()
        proxy.wait_for(lambda: (proxy.traffic - before).commands > 0)
        until(lambda: probe.queued(key) == 1)
        assert not waiting.done()
        assert other.ensure_held() == other.token
        other.release()
        waiting.result().release()


def test_a_short_provisional_grant_is_confirmed_before_it_is_entered(redis_server: RedisServer, key: str) -> None:
    with _handed_over(redis_server, key, ttl=0.4) as (_, holder, waiting):
        holder.release()
        lease = waiting.result()
        assert lease._hold.confirmation is None, "it asked"
        with suppress(LockLost):  # its time may be over
            lease.release()


class _Confirmation:
    def __init__(self, answer: Renewal | None) -> None:
        self.answer = answer

    def outcome(self, patience: float) -> Renewal | None:
        return self.answer


def _held() -> Renewal:
    return Renewal(LeaseState.HELD, now() + LONG)


def _hold(answer: Renewal | None, *, proven: float = 0.9, renew: bool = True, max_hold: float | None = None) -> Hold:
    grant = Grant(Claim("id", "k", LONG, True), 7, now() + proven, False, _Confirmation(answer))
    return Hold(grant, renew=renew, max_hold=max_hold, actor=None)


def test_what_was_proven_without_a_gap_is_held_though_nobody_looked_in_time() -> None:
    """A program that computes for seconds without letting another thread run."""
    hold = _hold(_held(), proven=-0.1)
    assert hold.state is LeaseState.HELD
    assert hold.remaining() > LONG / 2
    assert hold.enter_again()


@pytest.mark.parametrize("answer", [None, Renewal(LeaseState.UNKNOWN)])
def test_what_was_not_confirmed_ends_with_what_the_message_has_proven(answer: Renewal | None) -> None:
    assert _hold(answer).state is LeaseState.HELD
    assert _hold(answer).remaining() < 1
    hold = _hold(answer, proven=-0.1)
    assert not hold.enter_again()
    hold.confirmation = _Confirmation(_held())
    assert hold.state is LeaseState.HELD
    hold = _hold(answer, proven=-0.1)
    assert hold.state is LeaseState.LOST
    hold.confirmation = _Confirmation(_held())
    assert hold.remaining() == 0, "what has ended is never revived"


def test_what_was_said_to_be_over_is_not_said_to_be_held_later() -> None:
    hold = _hold(None, proven=-0.1)
    late = hold.confirmation
    assert hold.remaining() == 0
    assert isinstance(late, _Confirmation)
    late.answer = _held()
    assert hold.remaining() == 0


def test_a_refusal_is_a_loss_at_once() -> None:
    hold = _hold(Renewal(LeaseState.LOST))
    told: list[str] = []
    hold.on_lost(lambda: told.append(hold.reason))
    assert hold.remaining() == 0
    assert hold.state is LeaseState.LOST
    assert told == [GONE]


def test_what_is_confirmed_is_not_in_doubt_any_more() -> None:
    hold = _hold(_held())
    before = hold.deadline
    hold.in_doubt(before, now() + 1)
    assert hold.doubtful
    hold.settle(0.0)
    assert hold.state is LeaseState.HELD
    hold.in_doubt(before, now() + 1)  # of a renewal that was on its way meanwhile
    assert not hold.doubtful


def test_the_watchdog_comes_soon_to_what_is_unconfirmed_and_late_to_what_is_not() -> None:
    for renew in (True, False):
        hold = _hold(_held(), renew=renew)
        assert hold.renew_at < hold.acquired_at + 0.9
        hold.settle(0.0)
        assert hold.renew_at > hold.acquired_at + LONG / 4
        assert (hold.renew_at == math.inf) is not renew


def test_a_confirmation_does_not_outlast_max_hold_or_a_later_extension() -> None:
    hold = _hold(_held(), max_hold=5.0)
    assert 4 < hold.remaining() <= 5
    hold = _hold(_held())
    shorter = hold.grant._replace(claim=hold.grant.claim._replace(ttl=3.0))
    hold.shorten(shorter, now(), now() + 3.0)
    assert 2 < hold.remaining() <= 3
    hold = _hold(None)
    hold.shorten(shorter, now(), now() + 3.0)
    assert hold.confirmation is None, "it would prove more than what is asked for now"
    hold = _hold(None)
    hold.renewed(hold.grant, now(), now() + LONG)
    assert hold.confirmation is None, "it is of no use any more"


def test_more_than_is_proven_is_refused(redis_server: RedisServer, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distlock.backends.redis._inbox.ENOUGH", 0.0)  # the news may take its time
    with _handed_over(redis_server, key) as (proxy, holder, waiting):
        proxy.drop_replies(to="EVAL")
        holder.release()
        lease = waiting.result()
        lease._hold.renew_at = math.inf
        with pytest.raises(LockLost, match=r"proven for 0|lost"):
            lease.ensure_held(at_least=LONG / 2)


def test_an_answer_that_it_is_gone_is_believed_at_once(
    redis_server: RedisServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distlock.backends.redis._waiting.PROVISIONAL", LONG)  # the test may take its time
    probe = Probe(redis_server)
    with _handed_over(redis_server, key) as (proxy, holder, waiting), connect(redis_server.url) as others:
        proxy.pause(replies=False)
        holder.release()
        lease = waiting.result()
        lease._hold.renew_at = math.inf  # it is not the watchdog that finds out
        others.force_release(key, token=lease.token)  # nothing, if the second is over in which it is to be confirmed
        other = others.lock(key, ttl=LONG).acquire()
        proxy.resume()
        until(lambda: lease.remaining() == 0)
        assert lease._hold.reason == GONE
        assert probe.pttl(key) > 1000, "it confirmed nobody else's"
        other.release()


def test_who_joined_meanwhile_takes_nothing_away(
    redis_server: RedisServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distlock.backends.redis._waiting.PROVISIONAL", LONG)  # the test may take its time
    with (
        _handed_over(redis_server, key, owner="us", reentrant=True) as (proxy, holder, waiting),
        connect(redis_server.url) as others,
    ):
        others.inspect(key)  # it is connected
        proxy.pause(replies=False)
        holder.release()
        lease = waiting.result()
        joined = others.lock(key, ttl=LONG, owner="us", reentrant=True).acquire()
        proxy.resume()
        assert lease.remaining() > 1
        joined.release()
        lease.release()


def test_a_connection_that_was_made_anew_may_lead_to_a_server_with_another_clock(
    redis_server: RedisServer, key: str
) -> None:
    probe = Probe(redis_server)
    with _handed_over(redis_server, key) as (_, holder, waiting):
        probe.ask("CLIENT", "KILL", "TYPE", "pubsub")
        until(lambda: probe.subscribers() == 1)
        holder.release()
        lease = waiting.result()
        assert lease._hold.confirmation is None, "it asked"
        lease.release()


def _waiting_since(asked_at: float, *, server_us: int, ttl: float = LONG) -> Waiting:
    waiting = Waiting(Claim("id", "k", ttl, True), 0)
    held_us = 5_000_000
    waiting.epoch = epoch(asked_at, held_us, b"1 other %d - {}" % (server_us - held_us))
    return waiting


def test_the_second_is_counted_by_the_servers_clock_and_a_little_less() -> None:
    t = now()
    waiting = _waiting_since(t - 10.0, server_us=1_000_000_000)
    waiting.hear("7 1009500000")  # 9.5 s later
    assert waiting.given is not None
    assert waiting.given[0] == 7
    assert waiting.given[1] == pytest.approx(t - 10.0 + 0.99 * 9.5 + 1.0 - 0.012)


def test_a_clock_that_was_set_forward_proves_no_more_than_that_it_was_heard() -> None:
    waiting = _waiting_since(now() - 10.0, server_us=1_000_000_000)
    waiting.hear("7 5000000000")
    assert waiting.given is not None
    assert waiting.given[1] <= now() + 1.0


def test_a_clock_that_was_set_back_proves_less() -> None:
    waiting = _waiting_since(now() - 10.0, server_us=1_000_000_000)
    waiting.hear("7 990000000")
    assert waiting.given is not None
    assert waiting.given[1] < now()


@pytest.mark.parametrize("value", [b"", b"1", b"1 id", b"1 id x - {}", b"2 id 7 - {}", b"foreign 1 2 3"])
def test_a_value_that_is_not_ours_says_nothing_of_the_time(value: bytes) -> None:
    assert epoch(now(), 0, value) is None
