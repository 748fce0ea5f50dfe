"""Redlock on real servers: majorities, what is taken back, what a dead or frozen node costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import distlock
from distlock import BackendError, BackendUnavailable, ConfigurationError, LeaseState
from distlock._who import new_claim_id
from distlock.backends.base import Busy, Claim, Grant, now, proven_until
from distlock.backends.redis.redlock import RedlockBackend, open_url
from distlock.backends.redis.redlock._node import Debt, Link, Slot
from distlock.testing.proxy import FaultProxy

from .redis_tools import Colour, Connect, Probe, in_colours, until
from .redlock_tools import Nodes, nodes_of
from .servers import RedisServer

LONG = 60.0


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Three servers of the test's own."""
    with nodes_of(3) as three:
        yield three


@pytest.fixture
def five() -> Iterator[Nodes]:
    """Five of them."""
    with nodes_of(5) as nodes:
        yield nodes


def backend_of(url: str, *, op_timeout: float = 5.0) -> RedlockBackend:
    return open_url(url, namespace="default", op_timeout=op_timeout)


def claim_on(key: str, *, ttl: float = LONG, wait: bool = False) -> Claim:
    return Claim(new_claim_id(), key, ttl, wait)


def soon(seconds: float = 10.0) -> float:
    return now() + seconds


# Which nodes


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ("a:1", "odd number"),
        ("a:1,b:1", "odd number"),
        ("a:1,b:1,c:1,d:1", "odd number"),
        ("a:1,b:1,a:1", "twice"),
        ("a:1,b:1,A:1", "twice"),
        ("a,b,a:6379", "twice"),
        ("a:1,,c:1", "host is missing"),
        ("", "host is missing"),
        ("a:1,b:x,c:1", "port"),
    ],
)
def test_a_list_that_cannot_keep_a_promise_is_refused(hosts: str, said: str) -> None:
    for scheme in ("redlock", "redlock+tls"):
        with pytest.raises(ConfigurationError, match=said) as caught:
            distlock.connect(f"{scheme}://me:s3cret@{hosts}/0")
        assert "s3cret" not in str(caught.value)


def test_the_address_names_all_nodes_and_no_secret() -> None:
    with distlock.connect("redlock://me:s3cret@A:1,b,[::1]:3/2?client_name=x") as locks:
        assert locks.address == "redlock://A:1,b:6379,[::1]:3/2".replace("A", locks.address[10])
        assert "s3cret" not in repr(locks)
        backend = locks._backend
        assert isinstance(backend, RedlockBackend)
        assert "s3cret" not in repr(vars(backend))


@in_colours()
async def test_one_server_by_two_names_has_one_vote(colour: Colour, connect: Connect, nodes: Nodes) -> None:
    """Its vote would count twice: a majority of addresses would be none of servers."""
    port = nodes[0].port
    url = f"redlock://127.0.0.1:{port},localhost:{port},127.0.0.1:{nodes[1].port}/0"
    lock = connect(url).lock("k")
    nodes.kill(1)
    with pytest.raises((ConfigurationError, BackendUnavailable)):
        await colour.acquire(lock, timeout=0)
    nodes.start(1)


@in_colours()
async def test_tls(colour: Colour, connect: Connect, tmp_path: Path, key: str) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(RedisServer(tls=True, requirepass="s3cret")) for _ in range(3)]
        authorities = join_files([server.ca_file for server in servers], tmp_path / "ca.pem")
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        locks = connect(f"redlock+tls://:s3cret@{hosts}/0?ssl_ca_certs={authorities}")
        assert locks.address == f"redlock+tls://{hosts}/0"
        lease = await colour.acquire(locks.lock(key))
        task = colour.start(lambda: colour.acquire(locks.lock(key)))
        await colour.until(lambda: locks.inspect(key).waiters)
        await colour.release(lease)
        await colour.release(await task.result())


def join_files(paths: list[str], target: Path) -> Path:
    target.write_text("".join(Path(path).read_text() for path in paths))
    return target


# Majorities


@in_colours()
async def test_a_majority_is_enough_though_one_node_refuses(
    colour: Colour, connect: Connect, nodes: Nodes, key: str
) -> None:
    """redlock-py: one node refused, and the lock was called taken."""
    Probe(nodes[1]).ask("SET", Probe(nodes[1]).name(key), "1 other,0,1,s 5 - {}", "PX", 60_000)
    lease = await colour.acquire(connect(nodes.url).lock(key), timeout=0)
    await colour.release(lease)
    assert Probe(nodes[1]).value(key) is not None


@pytest.mark.parametrize("trouble", ["READONLY", "OOM", "NOAUTH", "WRONGTYPE", "NOPERM"])
@in_colours()
async def test_the_error_of_one_node_is_its_refusal_alone(
    colour: Colour, connect: Connect, nodes: Nodes, key: str, trouble: str
) -> None:
    upset(nodes[2], trouble, key)
    locks = connect(nodes.url)
    lease = await colour.acquire(locks.lock(key), timeout=0)
    await colour.extend(lease, 20)
    assert await colour.try_acquire(connect(nodes.url).lock(key)) is None
    await colour.release(lease)
    upset(nodes[1], trouble, key)
    with pytest.raises(BackendError) as caught:
        await colour.try_acquire(connect(nodes.url).lock(key))
    assert isinstance(caught.value, BackendUnavailable) == (trouble == "READONLY"), "a refusal would last"
    for node in nodes.servers[1:]:
        assert str(node.port) in str(caught.value)
    assert f"redis://127.0.0.1:{nodes[0].port}/0" not in str(caught.value)
    until(lambda: Probe(nodes[0]).value(key) is None)


def upset(server: RedisServer, trouble: str, key: str) -> None:
    probe = Probe(server)
    if trouble == "READONLY":
        probe.ask("REPLICAOF", "127.0.0.1", "1")
    elif trouble == "OOM":
        probe.ask("CONFIG", "SET", "maxmemory", "1")
    elif trouble == "NOAUTH":
        probe.ask("CONFIG", "SET", "requirepass", "other")
        probe.ask("CLIENT", "KILL", "TYPE", "normal")
    elif trouble == "NOPERM":
        probe.ask("ACL", "SETUSER", "default", "-evalsha", "-eval")
    else:
        probe.ask("SADD", probe.name(key), "foreign")


@pytest.mark.parametrize("trouble", ["NOAUTH", "NOPERM"])
@in_colours()
async def test_nodes_that_all_refuse_are_no_outage(
    colour: Colour, connect: Connect, nodes: Nodes, key: str, trouble: str
) -> None:
    """Who gave the wrong password is not to wait until it is right."""
    for node in nodes.servers:
        upset(node, trouble, key)
    with pytest.raises(BackendError, match="a majority of the nodes refused") as caught:
        await colour.acquire(connect(nodes.url).lock(key))
    assert not isinstance(caught.value, BackendUnavailable)


def test_what_one_batch_has_proven_outlives_the_failure_of_the_next(
    nodes: Nodes, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distlock.backends.redis.redlock._backend.BATCH", 1)
    backend = backend_of(nodes.url)
    grants = [backend.acquire(claim_on(f"{key} {number}"), soon()) for number in range(3)]
    held = [grant for grant in grants if isinstance(grant, Grant)]
    real, calls = backend._renew, iter((True, False))

    def failing(*args: Any) -> Any:
        if next(calls):
            return real(*args)
        raise BackendError("later")

    monkeypatch.setattr(backend, "_renew", failing)
    states = [one.state for one in backend.renew(held, soon())]
    assert states == [LeaseState.HELD, LeaseState.UNKNOWN, LeaseState.UNKNOWN]
    calls = iter((False,))
    with pytest.raises(BackendError, match="later"):
        backend.renew(held, soon())
    backend.close()


def test_a_connection_that_ends_when_the_script_is_sent_whole_is_an_error_of_that_node(
    nodes: Nodes, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No raw OSError, as its votes at the others are to be taken back."""
    backend = backend_of(nodes.url)
    first = backend.acquire(claim_on(key), soon())
    assert isinstance(first, Grant)
    assert backend.release(first, soon())
    for node in nodes.servers:
        node.command("SCRIPT", "FLUSH")
    send = Link.send

    def cut_off(link: Link, frame: bytes, debt: Debt | None = None) -> Slot:
        if b"EVAL\r\n" in frame[:20]:
            raise BrokenPipeError("cut off")
        return send(link, frame, debt)

    monkeypatch.setattr(Link, "send", cut_off)
    with pytest.raises(BackendUnavailable, match="cut off"):
        backend.acquire(claim_on(key), soon())
    backend.close()


@in_colours()
async def test_no_majority_is_an_outage_that_names_the_nodes(
    colour: Colour, connect: Connect, five: Nodes, key: str
) -> None:
    """tooz: an error of the store is never "taken"."""
    for place in (1, 3, 4):
        five.kill(place)
    for lock in (connect(five.url).lock(key), connect(five.url).lock(key, timeout=0.05)):
        with pytest.raises(BackendUnavailable) as caught:
            await colour.try_acquire(lock)
        for place in (1, 3, 4):
            assert str(five[place].port) in str(caught.value)
    until(lambda: not Probe(five[0]).keys() | Probe(five[2]).keys())


@in_colours()
async def test_a_lease_outlives_the_death_of_a_minority(
    colour: Colour, connect: Connect, five: Nodes, key: str
) -> None:
    locks = connect(five.url)
    await colour.release(await colour.acquire(locks.lock("warm")))
    await colour.until(lambda: all(thread.name != "distlock-dial" for thread in threading.enumerate()))
    lease = await colour.acquire(locks.lock(key, ttl=6.0))
    await colour.until(lambda: all(probe.value(key) for probe in five.probes()))  # all are connected to now
    five.kill(0)
    five[4].pause()
    proven = lease._hold.deadline
    await colour.until(lambda: lease._hold.deadline > proven)
    lease.ensure_held()
    assert await colour.try_acquire(connect(five.url).lock(key)) is None
    await colour.release(lease)
    five[4].resume()
    until(lambda: Probe(five[4]).value(key) is None)


@in_colours()
async def test_a_lease_without_a_majority_is_lost_in_time(
    colour: Colour, connect: Connect, five: Nodes, key: str
) -> None:
    """Two nodes have it still; three that do not know it would let another in."""
    lease = await colour.acquire(connect(five.url).lock(key, ttl=1.5))
    for place in range(3):
        Probe(five[place]).ask("DEL", Probe(five[place]).name(key))
    await colour.until(lambda: lease.state is LeaseState.LOST)
    until(lambda: not five.keys())  # what was left is taken back


@in_colours("sync")
async def test_a_slow_node_lends_no_time(colour: Colour, nodes: Nodes, key: str) -> None:
    """Validity is from before the first request was sent: one node answers late, and its vote is needed."""
    with FaultProxy(nodes[2].address) as proxy:
        backend = backend_of(nodes.url_at(nodes[0].port, nodes[1].port, proxy.port))
        nodes.kill(1)
        claim = claim_on(key)
        backend.withdraw(claim_on("warm"), soon(), in_flight=False)
        nodes[2].pause()

        def thaw() -> None:
            until(lambda: Probe(nodes[0]).value(key))
            time.sleep(0.5)
            nodes[2].resume()

        thawing = threading.Thread(target=thaw)
        thawing.start()
        grant = backend.acquire(claim, soon())
        assert isinstance(grant, Grant)
        assert grant.deadline < proven_until(now(), LONG) - 0.4
        thawing.join()
        backend.release(grant, soon())
        backend.close()
    nodes.start(1)


# What failed is taken back


@in_colours("sync")
async def test_a_failed_attempt_is_taken_back_everywhere(colour: Colour, five: Nodes, key: str) -> None:
    """aioredlock#59: nodes that had timed out kept the lock. One is frozen, two are gone and come back."""
    backend = backend_of(five.url)
    backend.release(grant_of(backend, claim_on("warm")), soon())
    five[0].pause()
    for place in (3, 4):
        five.kill(place)
    started = time.monotonic()
    with pytest.raises(BackendUnavailable):
        backend.acquire(claim_on(key), soon(1.0))
    assert time.monotonic() - started < 5
    until(lambda: not Probe(five[1]).value(key) and not Probe(five[2]).value(key))
    five[0].resume()
    until(lambda: Probe(five[0]).ask("PING") == "PONG" and Probe(five[0]).value(key) is None)
    backend.close()


@in_colours()
async def test_a_withdrawal_waits_for_no_node(colour: Colour, connect: Connect, five: Nodes, key: str) -> None:
    """A frozen one and a dead one: the caller goes on, and they are told when they are back."""
    locks, others = connect(five.url, op_timeout=30.0), connect(five.url, op_timeout=30.0)
    held = await colour.acquire(others.lock(key, ttl=LONG))
    await colour.release(await colour.acquire(locks.lock("warm")))
    five[1].pause()
    five.kill(2)
    started = time.monotonic()
    assert await colour.try_acquire(locks.lock(key, ttl=LONG)) is None
    await colour.release(held)
    lease = await colour.acquire(locks.lock(key, ttl=LONG), timeout=0)
    await colour.release(lease)
    assert time.monotonic() - started < 15  # less than op_timeout
    five[1].resume()
    until(lambda: Probe(five[1]).value(key) is None)


@in_colours("sync")
async def test_a_frozen_node_is_not_waited_for_when_a_majority_has_answered(
    colour: Colour, nodes: Nodes, key: str
) -> None:
    """One has voted for us, one for another; the third would decide, but says nothing."""
    backend = backend_of(nodes.url, op_timeout=30.0)
    backend.release(grant_of(backend, claim_on("warm")), soon())
    Probe(nodes[0]).ask("SET", Probe(nodes[0]).name(key), "1 other,0,1,s 5 - {}", "PX", 60_000)
    nodes[2].pause()
    started = time.monotonic()
    assert isinstance(backend.acquire(claim_on(key), soon(30)), Busy)
    assert time.monotonic() - started < 15
    nodes[2].resume()
    until(lambda: Probe(nodes[2]).value(key) is None)
    assert Probe(nodes[1]).value(key) is None
    backend.close()


@in_colours("sync")
async def test_a_node_that_was_away_is_told_of_the_release(colour: Colour, key: str) -> None:
    """It was killed while it had the vote, and comes back with what it had."""
    with nodes_of(3, appendonly=True) as nodes:
        backend = backend_of(nodes.url)
        grant = grant_of(backend, claim_on(key))
        until(lambda: all(probe.value(key) for probe in nodes.probes()))
        nodes.kill(2)
        assert backend.release(grant, soon())
        nodes.start(2)
        until(lambda: Probe(nodes[2]).value(key) is None)
        backend.close()


def grant_of(backend: RedlockBackend, claim: Claim) -> Grant:
    outcome = backend.acquire(claim, soon())
    assert isinstance(outcome, Grant), outcome
    return outcome


# Tokens


@in_colours("sync")
async def test_tokens_rise_although_majorities_share_one_node(colour: Colour, nodes: Nodes, key: str) -> None:
    """The first majority has the node whose clock is an hour ahead; each later one shares one node with the last."""
    ahead = time.time_ns() // 1000 + 3_600_000_000
    Probe(nodes[0]).ask("SET", Probe(nodes[0]).clock, str(ahead))
    backend, tokens = backend_of(nodes.url), [ahead]
    for dead in (2, 0, 1, 2, 0):
        nodes.kill(dead)
        grant = grant_of(backend, claim_on(key))
        assert grant.token > tokens[-1]
        tokens.append(grant.token)
        backend.release(grant, soon())
        nodes.start(dead)  # empty: it has forgotten all tokens
    backend.close()


# Several at once


@in_colours("sync")
async def test_two_that_split_the_votes_get_on(colour: Colour, five: Nodes, key: str) -> None:
    """Each attempt of all at the same moment: one of them always gets it before long."""
    backends = [backend_of(five.url) for _ in range(4)]
    for _ in range(10):
        gate, outcomes = threading.Barrier(4), list[object]()

        def go(backend: RedlockBackend, gate: threading.Barrier = gate, out: list[object] = outcomes) -> None:
            gate.wait()
            out.append(backend.acquire(claim_on(key), soon()))

        threads = [threading.Thread(target=go, args=(backend,)) for backend in backends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        grants = [outcome for outcome in outcomes if isinstance(outcome, Grant)]
        assert len(grants) <= 1
        assert all(isinstance(outcome, (Grant, Busy)) for outcome in outcomes)
        for grant in grants:
            assert backends[0].release(grant, soon())
    for backend in backends:
        backend.close()
