"""Waiting for a lock on several nodes: no polling, no herd, nothing lost for long."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import distlock
from distlock import AcquireTimeout, Manager
from distlock._who import new_claim_id
from distlock.backends.base import Claim, Grant, now

from .children import untraced
from .redis_tools import Colour, Connect, Probe, in_colours, until
from .redlock_tools import Nodes, nodes_of

LONG = 60.0


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Three servers of the test's own."""
    with nodes_of(3) as three:
        yield three


def listening(nodes: Nodes) -> bool:
    """Somebody is subscribed, on each of them."""
    return all(probe.ask("PUBSUB", "CHANNELS", "*") for probe in nodes.probes())


def votes_asked(nodes: Nodes) -> int:
    return min(probe.calls()["evalsha"] for probe in nodes.probes())


async def calm(colour: Colour, nodes: Nodes) -> int:
    """How many votes were asked for, when each that has come has asked, and some of them again."""
    before = -1
    while before != (before := votes_asked(nodes)):
        await colour.sleep(0.5)
    return before


@in_colours()
async def test_who_waits_does_not_poll(colour: Colour, connect: Connect, nodes: Nodes, key: str) -> None:
    locks = connect(nodes.url)
    lease = await colour.acquire(connect(nodes.url).lock(key, ttl=LONG))
    tasks = [colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG))) for _ in range(5)]
    await colour.until(lambda: len(locks.inspect(key).waiters) == 5 and listening(nodes))
    before = await calm(colour, nodes)
    await colour.sleep(1.5)
    assert votes_asked(nodes) == before
    await colour.release(lease)
    for _ in range(5):
        await colour.until(lambda: any(task.done for task in tasks))
        done = next(task for task in tasks if task.done)
        tasks.remove(done)
        await colour.release(await done.result())


@in_colours("sync")
async def test_a_release_wakes_one_waiter_of_a_process(
    colour: Colour, connect: Connect, nodes: Nodes, key: str
) -> None:
    holder, locks = connect(nodes.url), connect(nodes.url)
    lease = holder.lock(key, ttl=LONG).acquire()
    got: list[object] = []
    gate = threading.Event()

    def wait() -> None:
        with locks.lock(key, ttl=LONG) as mine:
            got.append(mine)
            gate.wait(30)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(locks.inspect(key).waiters) == 8 and listening(nodes))
    before = await calm(colour, nodes)
    lease.release()
    until(lambda: got)
    assert await calm(colour, nodes) - before <= 6  # the release, vote, seal; and perhaps one that looked too early
    gate.set()
    for thread in threads:
        thread.join()
    assert len(got) == 8


@in_colours()
async def test_of_those_who_ask_at_once_one_asks_the_nodes(
    colour: Colour, connect: Connect, nodes: Nodes, key: str
) -> None:
    """A thousand split the votes for ever, and drowned the nodes in requests: nobody had the lock."""
    locks, got = connect(nodes.url), []

    async def take() -> None:
        lease = await colour.acquire(locks.lock(key, ttl=LONG))
        got.append(lease.token)
        await colour.release(lease)

    lease = await colour.acquire(connect(nodes.url).lock(key, ttl=LONG))
    before = votes_asked(nodes)
    tasks = [colour.start(take) for _ in range(100)]
    await colour.until(lambda: len(locks.inspect(key).waiters) == 100 and listening(nodes))
    assert (
        await calm(colour, nodes) - before <= 8
    )  # whoever came first, and once more when it listened; each a vote and its undoing
    with pytest.raises(AcquireTimeout) as caught:
        await colour.acquire(locks.lock(key, ttl=LONG), timeout=0.5)
    assert caught.value.holder is not None, "one of those before it has seen who it is"
    await colour.release(lease)
    for task in tasks:
        await task.result()
    assert got == sorted(set(got))


@in_colours()
async def test_who_waits_behind_one_that_gives_up_is_served(
    colour: Colour, connect: Connect, nodes: Nodes, key: str
) -> None:
    locks = connect(nodes.url)
    lease = await colour.acquire(connect(nodes.url).lock(key, ttl=LONG))
    first = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG), timeout=2.0))
    await colour.until(lambda: len(locks.inspect(key).waiters) == 1 and listening(nodes))
    second = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: len(locks.inspect(key).waiters) == 2)
    with pytest.raises(AcquireTimeout):
        await first.result()
    await colour.release(lease)
    await colour.release(await second.result())
    await colour.until(lambda: nodes.keys() == [])


def test_the_turn_to_ask_is_given_up_with_the_claim(nodes: Nodes, key: str) -> None:
    """Also by one that was cancelled between its answer and its wait."""
    with distlock.connect(nodes.url) as locks:
        backend: Any = locks._backend
        first, second, third = (Claim(new_claim_id(), key, LONG, wait=True) for _ in range(3))
        grant = backend.acquire(first, now() + LONG)
        assert isinstance(grant, Grant)
        assert backend.acquire(second, now() + LONG).holder is not None
        assert backend.acquire(third, now() + LONG).holder is None, "no node was asked"
        backend.withdraw(second, now() + LONG, in_flight=False)
        assert backend.acquire(third, now() + LONG).holder is not None
        backend.withdraw(third, now() + LONG, in_flight=False)
        assert backend.release(grant, now() + LONG)


@in_colours()
async def test_a_lost_message_costs_a_third_of_a_ttl(colour: Colour, connect: Connect, nodes: Nodes, key: str) -> None:
    """The lock is free, and nobody was told."""
    locks = connect(nodes.url)
    for probe in nodes.probes():
        probe.ask("SET", probe.name(key), "1 other,0,1,s 5 - {}")
    task = colour.start(lambda: colour.acquire(locks.lock(key, ttl=3.0)))
    await colour.until(lambda: listening(nodes))
    for probe in nodes.probes():
        probe.ask("DEL", probe.name(key))  # no word of it
    await colour.release(await task.result())


@in_colours()
async def test_subscriptions_come_back(colour: Colour, connect: Connect, nodes: Nodes, key: str) -> None:
    locks = connect(nodes.url)
    lease = await colour.acquire(connect(nodes.url).lock(key, ttl=LONG))
    task = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: listening(nodes))
    for probe in nodes.probes():
        probe.ask("CLIENT", "KILL", "TYPE", "pubsub")
    await colour.until(lambda: listening(nodes))
    await colour.release(lease)
    await colour.release(await task.result())


@in_colours()
async def test_an_outage_reaches_who_waits(colour: Colour, connect: Connect, nodes: Nodes, key: str) -> None:
    locks = connect(nodes.url, op_timeout=2.0)
    for probe in nodes.probes():
        probe.ask("SET", probe.name(key), "1 other,0,1,s 5 - {}")
    task = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG), timeout=None))
    await colour.until(lambda: listening(nodes))
    nodes.kill(0)
    nodes.kill(2)
    with pytest.raises(distlock.BackendUnavailable):
        await task.result()


WORKER = """
import os, sys, threading, distlock
url, folder, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
def work():
    for _ in range(rounds):
        with locks.lock("counter", ttl=5, timeout=120) as lease:
            os.close(os.open(folder + "/inside", os.O_CREAT | os.O_EXCL))
            with open(folder + "/tokens", "a") as file:
                file.write(f"{lease.token}\\n")
            lease.ensure_held()
            os.unlink(folder + "/inside")
with distlock.connect(url) as locks:
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_exclusion_holds_while_nodes_freeze_and_crash(tmp_path: Path) -> None:
    """Three processes of three threads; one node is frozen again and again, another one crashes and comes back."""
    rounds = 12
    with nodes_of(5, appendonly=True) as nodes:
        command = [sys.executable, "-c", WORKER, nodes.url, str(tmp_path), str(rounds)]
        workers = [subprocess.Popen(command, env=untraced(), stderr=subprocess.PIPE) for _ in range(3)]
        frozen, dying = 0, 2
        while any(worker.poll() is None for worker in workers):
            nodes[frozen].pause()
            nodes.kill(dying)
            wait_a_little(workers)
            nodes.start(dying)
            nodes[frozen].resume()
            frozen, dying = (frozen + 1) % 5, (dying + 1) % 5
            wait_a_little(workers)
        said = [worker.communicate()[1].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    tokens = [int(line) for line in (tmp_path / "tokens").read_text().split()]
    assert len(tokens) == 3 * 3 * rounds
    assert tokens == sorted(set(tokens))


def wait_a_little(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        try:
            worker.wait(0.15)
        except subprocess.TimeoutExpired:
            return


@in_colours("sync")
async def test_a_manager_that_is_closed_leaves_no_subscription(colour: Colour, nodes: Nodes, key: str) -> None:
    locks: Manager = distlock.connect(nodes.url)
    lease = locks.lock(key).acquire()
    task = colour.start(lambda: colour.acquire(locks.lock(key)))
    until(lambda: listening(nodes))
    lease.release()
    await colour.release(await task.result())
    locks.close()
    until(lambda: not any(probe.clients() for probe in nodes.probes()))
    assert Probe(nodes[0]).keys() <= {name for name in Probe(nodes[0]).keys() if ":x:" in name}  # noqa: SIM118 - no dict
