"""A push that gets lost costs who waits one look, which comes in a third of a session; never a hang."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from distlock import Manager
from distlock.testing.colours import Colour

from . import etcd_backend_tools as etcd, zookeeper_backend_tools as zookeeper
from .backend_tools import claim_of, granted, queued, soon
from .etcd_servers import EtcdServer
from .etcd_tools import queue_of
from .programs import wait_until
from .redis_tools import Connect, in_colours
from .zookeeper_servers import ZooKeeperServer

TTL = 9.0
"""Seconds: a look in three of them, between which a slow machine gets all done that is to be done."""


def deafen_zookeeper(locks: Manager) -> None:
    """The server says that the node is gone, and kazoo knows of nobody who wants to hear it."""
    watchers = zookeeper.session_of(zookeeper.backend_of(locks), TTL)._link._client._data_watchers
    wait_until(lambda: any(watchers.values()), "the watch")
    watchers.clear()


def deafen_etcd(locks: Manager) -> None:
    """What the stream says is taken for that of a watch which was cancelled."""
    watches = etcd.backend_of(locks)._watches
    wait_until(lambda: watches._claims, "the watch")
    watches._claims.clear()


@pytest.mark.usefixtures("nobody_passed_over")
@in_colours()
async def test_who_was_not_told_by_zookeeper_is_served_by_one_look(
    colour: Colour, connect: Connect, shared_zookeeper: ZooKeeperServer
) -> None:
    others, locks = connect(shared_zookeeper.url), connect(shared_zookeeper.url)
    held = await colour.acquire(others.lock("k"))
    waiting = colour.start(lambda: colour.acquire(locks.lock("k", ttl=TTL)))
    await colour.aside(partial(deafen_zookeeper, locks))
    spy = zookeeper.Spy(zookeeper.session_of(zookeeper.backend_of(locks), TTL))
    await colour.release(held)
    lease = await waiting.result()
    assert 1 <= spy.asked.count("Transaction") <= 2, "one may have been on its way"
    assert lease.token > held.token
    await colour.release(lease)


@pytest.mark.usefixtures("nobody_passed_over")
@in_colours()
async def test_who_was_not_told_by_etcd_is_served_by_one_look(colour: Colour, connect: Connect, etcd_url: str) -> None:
    others, locks = connect(etcd_url), connect(etcd_url)
    held = await colour.acquire(others.lock("k"))
    waiting = colour.start(lambda: colour.acquire(locks.lock("k", ttl=TTL)))
    await colour.aside(partial(deafen_etcd, locks))
    spy = etcd.Spy(etcd.backend_of(locks))
    await colour.release(held)
    lease = await waiting.result()
    assert 2 <= spy.asked.count("Txn") <= 3, (
        "a look, or two if one was on its way, and the question whether it is first"
    )
    assert lease.token > held.token
    await colour.release(lease)


def test_one_look_finds_all_that_zookeeper_did_not_tell(shared_zookeeper: ZooKeeperServer) -> None:
    """A check that fails tells only the first that is missing."""
    with zookeeper.opened(shared_zookeeper.url) as other, zookeeper.opened(shared_zookeeper.url) as backend:
        grants = [granted(other, claim_of(f"k{number}")) for number in range(6)]
        wakes = [threading.Event() for _ in grants]
        for grant, woken in zip(grants, wakes, strict=True):
            backend.watch(queued(backend, claim_of(grant.claim.key, ttl=TTL, wait=True)), woken.set, soon())
        session = zookeeper.session_of(backend, TTL)
        session._link._client._data_watchers.clear()
        spy = zookeeper.Spy(session)
        for grant in grants[::2]:
            other.release(grant, soon())
        for woken in wakes[::2]:
            assert woken.wait(30)
        assert 4 <= spy.asked.count("Transaction") <= 6
        assert not any(woken.is_set() for woken in wakes[1::2])


def test_one_look_finds_all_that_etcd_did_not_tell(etcd_url: str) -> None:
    with etcd.opened(etcd_url) as other, etcd.opened(etcd_url) as backend:
        grants = [granted(other, claim_of(f"k{number}")) for number in range(6)]
        wakes = [threading.Event() for _ in grants]
        for grant, woken in zip(grants, wakes, strict=True):
            backend.watch(queued(backend, claim_of(grant.claim.key, ttl=TTL, wait=True)), woken.set, soon())
        backend._watches._claims.clear()
        spy = etcd.Spy(backend)
        wait_until(lambda: spy.asked, "a look, before which the stream has said its last")
        for woken in wakes:
            woken.clear()
        for grant in grants[::2]:
            other.release(grant, soon())
        for woken in wakes[::2]:
            assert woken.wait(30)
        assert not any(woken.is_set() for woken in wakes[1::2])


def test_a_key_that_was_made_anew_is_one_that_was_gone(shared_etcd: EtcdServer, etcd_url: str) -> None:
    """Go's sessions have one key for all that wait under them: it may be another holder's by the time of the look."""
    with etcd.opened(etcd_url) as other, etcd.opened(etcd_url) as backend:
        granted(other, claim_of())
        woken = threading.Event()
        backend.watch(queued(backend, claim_of(ttl=TTL, wait=True)), woken.set, soon())
        backend._watches._claims.clear()
        woken.clear()
        (before, _) = queue_of(shared_etcd, "k")
        shared_etcd.delete(before)
        shared_etcd.put(before)
        assert woken.wait(30)
