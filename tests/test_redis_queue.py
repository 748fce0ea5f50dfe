"""Who is next: in order of arrival, by one message, and past those that are dead, stopped or deaf."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import redis

import distlock
from distlock import AcquireTimeout, BackendError, BackendUnavailable, LockLost, Manager
from distlock.backends.base import Busy, Claim, Grant, Subscription, Wake, now
from distlock.backends.redis import RedisBackend
from distlock.backends.redis._scripts import SERVER
from distlock.testing.proxy import FaultProxy

from .blocking import may_block
from .redis_tools import Child, Colour, Connect, Probe, in_colours, until
from .servers import RedisServer

LONG = 60.0
"""A ttl that no test outlasts: who is served by it, and not by a message, fails."""
SOON = 15.0


async def _take_turns(colour: Colour, locks: Manager, key: str, turns: list[int], turn: int, ttl: float = LONG) -> int:
    lease = await colour.acquire(locks.lock(key, ttl=ttl))
    turns.append(turn)
    await colour.release(lease)
    return lease.token


@in_colours()
async def test_it_goes_round_in_order_of_arrival(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redisson, RedissonFairLock: first come, first served, whichever process the waiter is in."""
    probe = Probe(redis_server)
    turns: list[int] = []
    managers = [connect(redis_server.url) for _ in range(3)]
    holder = await colour.acquire(managers[0].lock(key))
    running = []
    for turn in range(12):
        running.append(colour.start(partial(_take_turns, colour, managers[turn % 3], key, turns, turn)))
        await colour.until(lambda: probe.queued(key) == len(running))
    await colour.release(holder)
    tokens = [await each.result() for each in running]
    assert turns == list(range(12))
    assert tokens == sorted(set(tokens))
    assert tokens[0] > holder.token
    assert probe.keys() == set()


@in_colours()
async def test_who_comes_while_others_wait_does_not_barge_in(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """python-redis-lock, redis-py: whoever polls in the right moment wins. Also when the holder's time just ran out."""
    probe = Probe(redis_server)
    holders, waiters, late = (connect(redis_server.url) for _ in range(3))
    robbed = await colour.acquire(holders.lock(key, ttl=LONG, renew=False))
    waiter = colour.start(lambda: colour.acquire(waiters.lock(key)))
    await colour.until(lambda: probe.queued(key) == 1)
    probe.ask("DEL", probe.name(key))
    assert await colour.try_acquire(late.lock(key)) is None
    await colour.release(await waiter.result())
    lease = await colour.try_acquire(late.lock(key))
    assert lease is not None
    await colour.release(lease)
    with pytest.raises(LockLost):
        await colour.release(robbed)


@pytest.mark.parametrize("dead", [1, 5])
@in_colours()
async def test_waiters_that_were_killed_are_passed_over_at_once(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, dead: int
) -> None:
    """Redisson's fair lock waits 5 s for each dead waiter, one after the other (redisson#1104)."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    holder = await colour.acquire(locks.lock(key, ttl=LONG))
    with ExitStack() as children:
        heads = [children.enter_context(Child(redis_server.url, key, LONG)) for _ in range(dead)]
        await colour.until(lambda: probe.queued(key) == dead)
        running = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
        await colour.until(lambda: probe.queued(key) == dead + 1)
        for head in heads:
            head.kill()
        await colour.until(lambda: probe.subscribers() == 1)
        started = time.monotonic()
        await colour.release(holder)
        lease = await running.result()
        assert time.monotonic() - started < SOON
        await colour.release(lease)


@in_colours()
async def test_a_waiter_that_is_stopped_costs_a_second_and_gets_nothing_by_it(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """Kleppmann, "How to do distributed locking": a process may stop at any point, right before it is served too."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    holder = await colour.acquire(locks.lock(key, ttl=LONG))
    with Child(redis_server.url, key, LONG) as stopped:
        await colour.until(lambda: probe.queued(key) == 1)
        running = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
        await colour.until(lambda: probe.queued(key) == 2)
        stopped.signal(signal.SIGSTOP)
        started = time.monotonic()
        await colour.release(holder)
        lease = await running.result()
        assert 0.9 < time.monotonic() - started < SOON
        stopped.signal(signal.SIGCONT)
        await colour.until(lambda: probe.queued(key) == 1)
        assert stopped.says() == "ready"
        lease.ensure_held()
        await colour.release(lease)
        kind, token = stopped.says().split()
        assert kind == "got"
        assert int(token) > lease.token
        assert stopped.do("release") == "released"
    assert probe.keys() == set()


@in_colours()
async def test_a_stopped_process_costs_a_second_however_many_wait_in_it(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """Redisson's fair lock: a wait for each of the dead, one after the other (redisson#1104)."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    holder = await colour.acquire(locks.lock(key, ttl=LONG))
    with _stopped_process(redis_server, locks, key, waiters=20) as stopped:
        running = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
        await colour.until(lambda: probe.queued(key) == 21)
        started = time.monotonic()
        await colour.release(holder)
        lease = await running.result()
        assert 0.9 < time.monotonic() - started < SOON
        assert probe.queued(key) == 19, "but the one that got it keep their places"
        # It goes on: one of its threads asks.
        await colour.until(lambda: _ask(locks, stopped, 1, key))
        await colour.release(lease)
        assert (probe.value(key) or b"").split()[1] == b"c1"


@in_colours()
async def test_a_stopped_process_is_noticed_by_who_was_told_to_look_a_turn_ago(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """Kleppmann, as above. Who stands by looks once a second, and is not told again at every hand-over."""
    probe, locks, others = Probe(redis_server), connect(redis_server.url), connect(redis_server.url)
    holder = await colour.acquire(others.lock(key, ttl=LONG))
    first = colour.start(lambda: colour.acquire(others.lock(key, ttl=LONG)))
    await colour.until(lambda: probe.queued(key) == 1)
    with _stopped_process(redis_server, locks, key, waiters=1):
        heir = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
        await colour.until(lambda: probe.queued(key) == 3)
        before, started = probe.calls()["publish"], time.monotonic()
        await colour.release(holder)
        await colour.release(await first.result())
        told = probe.calls()["publish"] - before
        if time.monotonic() - started < 0.9:  # else one more may be told
            assert told == 3, "the first, who is to look, and the one that is stopped"
        lease = await heir.result()
        assert time.monotonic() - started < SOON
        await colour.release(lease)


@in_colours()
async def test_a_newcomer_waits_a_second_for_a_stopped_process(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """Kleppmann, "How to do distributed locking": the one that is stopped is first, and nobody else waits."""
    locks = connect(redis_server.url)
    holder = await colour.acquire(locks.lock(key, ttl=LONG))
    with _stopped_process(redis_server, locks, key, waiters=20):
        await colour.release(holder)
        started = time.monotonic()
        lease = await colour.acquire(locks.lock(key, ttl=LONG))
        assert time.monotonic() - started < SOON
        await colour.release(lease)


@in_colours()
async def test_a_waiter_behind_one_of_its_own_process_that_does_nothing_waits_a_second(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """Python, "Developing with asyncio": user code blocks the loop whose task is first. No other process waits."""
    probe, locks, others = Probe(redis_server), connect(redis_server.url), connect(redis_server.url)
    holder = await colour.acquire(others.lock(key, ttl=LONG))
    watch = await colour.aside(lambda: _queue(locks, _claim(1, key)))
    await colour.until(lambda: probe.queued(key) == 1)
    running = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: probe.queued(key) == 2)
    started = time.monotonic()
    await colour.release(holder)
    lease = await running.result()
    assert 0.9 < time.monotonic() - started < SOON
    await colour.release(lease)
    watch.close()


@in_colours()
async def test_who_listens_to_everything_makes_nobody_alive(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.io, PUBLISH: the number of clients that received the message, a monitor's PSUBSCRIBE included."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    holder = await colour.acquire(locks.lock(key, ttl=LONG))
    with redis.Redis(port=redis_server.port) as client, client.pubsub() as monitor:
        monitor.psubscribe("*")
        assert monitor.get_message(timeout=5)
        with Child(redis_server.url, key, LONG) as dead:
            await colour.until(lambda: probe.queued(key) == 1)
            running = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
            await colour.until(lambda: probe.queued(key) == 2)
            dead.kill()
        await colour.until(lambda: probe.subscribers() == 1)
        await colour.release(holder)
        inspection = await colour.inspect(locks, key)
        assert inspection.holder is not None
        assert inspection.holder.pid == os.getpid()
        await colour.release(await running.result())


@pytest.mark.parametrize("part", ["", ":w"])
@in_colours()
async def test_a_key_of_another_type_costs_its_own_waiters_alone(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, part: str
) -> None:
    """redis.io, WRONGTYPE: one such key in a script that keeps places in many queues is an error for all of them."""
    probe, locks, bad = Probe(redis_server), connect(redis_server.url), f"{key}:bad"
    holders = [await colour.acquire(locks.lock(name, ttl=LONG)) for name in (key, bad)]
    good_one = colour.start(lambda: colour.acquire(locks.lock(key, ttl=3.0)))
    bad_one = colour.start(lambda: colour.acquire(locks.lock(bad, ttl=3.0)))
    await colour.until(lambda: probe.queued(key) == probe.queued(bad) == 1)
    [before] = probe.ask("HVALS", probe.name(key, ":w"))
    probe.ask("DEL", probe.name(bad, part))
    probe.ask("SADD", probe.name(bad, part), "foreign")
    with pytest.raises(BackendError, match="another kind"):
        await bad_one.result()
    await colour.until(lambda: probe.ask("HVALS", probe.name(key, ":w")) > [before])
    await colour.release(holders[0])
    await colour.release(await good_one.result())
    probe.ask("DEL", probe.name(bad, part))
    with suppress(LockLost):
        await colour.release(holders[1])


@pytest.mark.parametrize("part", ["", ":w"])
def test_a_refresh_keeps_the_places_beside_a_key_of_another_type(
    redis_server: RedisServer, key: str, part: str
) -> None:
    """redis.io, WRONGTYPE. Whoever waits there is told when it asks; the others need not ask."""
    probe, bad = Probe(redis_server), f"{key}:bad"
    with distlock.connect(redis_server.url) as locks:
        for number, name in enumerate((bad, key)):
            probe.ask("SET", probe.name(name), f"1 holder{number} 5 - {{}}", "PX", 60_000)
            assert _ask(locks, b"distlock:dead", number, name)
        probe.ask("DEL", probe.name(bad, part))
        probe.ask("SADD", probe.name(bad, part), "foreign")
        found = locks._backend._refresh(b"distlock:dead", {bad: ["c0"], key: ["c1"]}).locks  # type: ignore[attr-defined]
        assert found[bad][1] == ["c0"]
        assert found[key][0] > 0
        assert found[key][1] == []


@in_colours()
async def test_a_waiter_that_cannot_subscribe_yet_is_back_in_its_own_time(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """python-redis-lock: timeout=0.5 that takes as long as whoever is before it."""
    holder = await colour.acquire(connect(redis_server.url).lock(key, ttl=LONG))
    with FaultProxy(redis_server.address) as proxy:
        locks = connect(proxy.url, op_timeout=8.0)
        proxy.drop_replies(to="SUBSCRIBE", then="silence")
        first = colour.start(lambda: colour.acquire(locks.lock(key)))
        await colour.until(lambda: "SUBSCRIBE" in proxy.sent)
        with pytest.raises(AcquireTimeout):
            await colour.acquire(locks.lock(key), timeout=1.5)
        assert not first.done
        with pytest.raises(BackendUnavailable, match="in time"):
            await first.result()
    await colour.release(holder)


@in_colours()
async def test_who_waits_gets_the_lock_of_a_killed_holder_when_its_time_is_up(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redisson#3730: the waiter must notice, and need not poll for it: it knows when."""
    probe, ttl = Probe(redis_server), 3.0
    with Child(redis_server.url, key, ttl) as holder:
        assert holder.says() == "ready"
        assert holder.says().startswith("got")
        locks = connect(redis_server.url)
        running = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
        await colour.until(lambda: probe.queued(key) == 1)
        holder.kill()
        started, before = time.monotonic(), probe.requests()
        lease = await running.result()
        assert time.monotonic() - started < ttl + SOON
        # A refresh when it ends, and one before if a renewal had come in between; then the confirmation, and on a slow
        # machine that once more. The first of each kind may be sent twice.
        assert probe.requests() - before <= 8
        await colour.release(lease)


@in_colours()
async def test_the_queue_of_a_killed_holder_is_served_in_order(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redisson#3730. It is the refresh that hands over then, and to one: the others know nothing of it."""
    probe = Probe(redis_server)
    turns: list[int] = []
    with Child(redis_server.url, key, 3.0) as holder:
        assert holder.says() == "ready"
        assert holder.says().startswith("got")
        managers = [connect(redis_server.url) for _ in range(2)]
        running = []
        for turn in range(4):
            running.append(colour.start(partial(_take_turns, colour, managers[turn % 2], key, turns, turn)))
            await colour.until(lambda: probe.queued(key) == len(running))
        holder.kill()
        for each in running:
            await each.result()
    assert turns == [0, 1, 2, 3]
    assert probe.keys() == set()


def _claim(number: int, key: str, ttl: float = LONG) -> Claim:
    return Claim(f"c{number}", key, ttl, wait=True)


def _queue(locks: Manager, claim: Claim, wake: Wake = lambda: None) -> Subscription:
    """Queues a claim that takes no notice of what it is told, unless by ``wake``."""
    backend = locks._backend
    busy = backend.acquire(claim, now() + 5)
    assert isinstance(busy, Busy)
    watch = backend.watch(busy, wake, now() + 5)
    assert isinstance(
        backend.acquire(claim, now() + 5), Busy
    )  # the first of a process asks again once it is subscribed
    return watch


def _ask(locks: Manager, inbox: bytes, number: int, key: str) -> bool:
    """As a process that listens to ``inbox``. True if it has to wait."""
    backend = locks._backend
    assert isinstance(backend, RedisBackend)
    return isinstance(
        backend._pool.send(backend.asking(_claim(number, key), inbox), now() + 5, script=SERVER.acquire).value, list
    )


@contextmanager
def _stopped_process(
    server: RedisServer, locks: Manager, key: str, waiters: int, name: str = "stopped"
) -> Iterator[bytes]:
    """A process that is subscribed to the inbox that this yields, waits for a lock several times, and does nothing."""
    inbox = f"distlock:default:inbox:{name}".encode()
    with redis.Redis(port=server.port) as client, client.pubsub() as subscription:
        subscription.subscribe(inbox)
        assert subscription.get_message(timeout=5)
        with may_block():
            assert all(_ask(locks, inbox, number, key) for number in range(waiters))
        yield inbox


@pytest.mark.parametrize("sign", ["none", "asks", "refreshes"])
def test_a_process_in_doubt_is_passed_over_until_anything_is_heard_of_it(
    redis_server: RedisServer, key: str, sign: str
) -> None:
    """redisson, RedissonFairLock: first come, first served, whoever is there; and nobody is forgotten."""
    probe = Probe(redis_server)

    def served() -> bytes:
        return (probe.value(key) or b"").split()[1]

    with ExitStack() as exits:
        locks = exits.enter_context(distlock.connect(redis_server.url))
        backend = locks._backend
        assert isinstance(backend, RedisBackend)
        holder = locks.lock(key).acquire()
        doubtful = exits.enter_context(_stopped_process(redis_server, locks, key, waiters=2))
        other = exits.enter_context(_stopped_process(redis_server, locks, key, waiters=0, name="other"))
        assert _ask(locks, other, 2, key)
        holder.release()
        assert served() == b"c0"
        probe.ask("PERSIST", probe.name(key))  # it ends when this test says so
        if sign == "asks":
            assert _ask(locks, doubtful, 1, key)
        elif sign == "refreshes":
            backend._refresh(doubtful, {key: ["c1"]})
        probe.ask("DEL", probe.name(key))
        backend._refresh(other, {key: ["c2"]})
        assert served() == (b"c2" if sign == "none" else b"c1")
        backend.withdraw(_claim(2, key), now() + 5, in_flight=False)
        assert served() == b"c1", "nobody else is left"


def test_a_withdrawal_that_crossed_a_grant_costs_its_process_no_turn(redis_server: RedisServer, key: str) -> None:
    """redisson, RedissonFairLock: first come, first served, also after one that was served had just timed out."""
    with ExitStack() as managers:
        one, two, holders = (managers.enter_context(distlock.connect(redis_server.url)) for _ in range(3))
        holder = holders.lock(key).acquire()
        events = [threading.Event() for _ in range(4)]
        turns = [one, two, one, two]
        watches = []
        for number, (locks, event) in enumerate(zip(turns, events, strict=True)):
            watches.append(_queue(locks, _claim(number, key), event.set))
            event.clear()
        holder.release()
        assert events[0].wait(SOON)
        one._backend.withdraw(_claim(0, key), now() + 5, in_flight=False)
        for number, (locks, event) in enumerate(zip(turns, events, strict=True)):
            if number:
                assert event.wait(SOON)
                assert not any(later.is_set() for later in events[number + 1 :])
                grant = locks._backend.acquire(_claim(number, key), now() + 5)
                assert isinstance(grant, Grant)
                assert locks._backend.release(grant, now() + 5)
        for watch in watches:
            watch.close()
    assert Probe(redis_server).keys() == set()


def test_who_came_while_a_refresh_was_under_way_knows_when_the_lock_ends(redis_server: RedisServer, key: str) -> None:
    """redisson#3730: the waiter must notice that the holder was killed. An answer on other locks says nothing of it."""
    probe, other = Probe(redis_server), f"{key}:other"
    asked, answer = threading.Event(), threading.Event()
    with distlock.connect(redis_server.url) as holders, distlock.connect(redis_server.url) as locks:
        holder = holders.lock(key, ttl=LONG).acquire()
        inbox = locks._backend.inbox  # type: ignore[attr-defined]
        refresh = inbox._refresh

        def slow(*args: Any) -> Any:
            found = refresh(*args)
            asked.set()
            assert answer.wait(SOON)
            return found

        watches = [_queue(locks, _claim(1, key, ttl=1.5))]
        inbox._refresh = slow
        assert asked.wait(SOON)
        probe.ask("SET", probe.name(other), "1 dead 5 - {}", "PX", 4000)
        woken = threading.Event()
        watches.append(_queue(locks, _claim(2, other), woken.set))
        watches[0].close()
        woken.clear()
        answer.set()
        assert woken.wait(SOON)
        for watch in watches:
            watch.close()
        holder.release()


def test_a_claim_is_not_queued_with_an_inbox_that_closes_at_that_moment(redis_server: RedisServer, key: str) -> None:
    """redisson#5761: a place in the queue, and nobody who would hear of it."""
    with distlock.connect(redis_server.url) as holders, distlock.connect(redis_server.url) as locks:
        holder = holders.lock(key).acquire()
        _queue(locks, _claim(1, key)).close()
        inbox = locks._backend.inbox  # type: ignore[attr-defined]
        found: list[bytes] = []
        with inbox._mutex:
            thread = threading.Thread(target=lambda: found.append(inbox.expect(_claim(2, key))))
            thread.start()
            time.sleep(0.1)  # it is at the mutex; if not, this shows nothing
            inbox._channels.clear()
        thread.join()
        assert found == [b"-"]
        assert "c2" not in inbox._waiting
        holder.release()


def test_a_release_between_the_failed_try_and_the_subscription_is_not_missed(
    redis_server: RedisServer, key: str
) -> None:
    """redisson#5761: asked, refused, released, subscribed: and asleep for ever."""
    with distlock.connect(redis_server.url) as holders, distlock.connect(redis_server.url) as waiters:
        holder = holders.lock(key).acquire()
        backend, claim, woken = waiters._backend, _claim(1, key), threading.Event()
        busy = backend.acquire(claim, now() + 5)
        assert isinstance(busy, Busy)
        holder.release()
        watch = backend.watch(busy, woken.set, now() + 5)
        assert woken.wait(SOON)
        grant = backend.acquire(claim, now() + 5)
        assert isinstance(grant, Grant)
        watch.close()
        assert backend.release(grant, now() + 5)


def test_a_grant_that_crossed_a_withdrawal_is_passed_on_at_once(redis_server: RedisServer, key: str) -> None:
    """Redisson's fair lock: the waiter that was served had just timed out, and the lock lies idle until its ttl."""
    probe = Probe(redis_server)
    with distlock.connect(redis_server.url) as holders, distlock.connect(redis_server.url) as waiters:
        holder = holders.lock(key).acquire()
        backend = waiters._backend
        claims = [_claim(number, key) for number in range(3)]
        events = [threading.Event() for _ in claims]
        watches = []
        for claim, event in zip(claims, events, strict=True):
            busy = backend.acquire(claim, now() + 5)
            assert isinstance(busy, Busy)
            watches.append(backend.watch(busy, event.set, now() + 5))
            if event.wait(0):  # the first of a process asks again once it is subscribed
                event.clear()
                backend.acquire(claim, now() + 5)
        until(lambda: probe.queued(key) == 3)
        holder.release()
        assert events[0].wait(SOON)
        backend.withdraw(claims[0], now() + 5, in_flight=False)
        assert (probe.value(key) or b"").split()[1] == b"c1"
        assert events[1].wait(SOON)
        grant = backend.acquire(claims[1], now() + 5)
        assert isinstance(grant, Grant)
        assert not events[2].is_set()
        backend.withdraw(claims[2], now() + 5, in_flight=False)
        assert backend.release(grant, now() + 5)
        for watch in watches:
            watch.close()
    assert probe.keys() == set()
