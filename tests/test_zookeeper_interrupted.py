"""Ctrl-C anywhere: nothing is held that nobody knows of, and nothing hangs."""

from __future__ import annotations

import threading

import pytest

import distlock

from .interruption import Interruption
from .programs import wait_until
from .zookeeper_servers import ZooKeeperServer
from .zookeeper_tools import queue_of

EACH = 7
"""Lines from one interruption to the next: a prime, so that none of a loop's is left out."""


def is_free(server: ZooKeeperServer) -> bool:
    return queue_of(server, "k") == []


@pytest.mark.usefixtures("untraced")
def test_an_interrupted_acquire_leaves_nothing(shared_zookeeper: ZooKeeperServer) -> None:
    with distlock.connect(shared_zookeeper.url) as locks:
        locks.lock("k").acquire().release()
        for line in range(1, 2000, EACH):
            lease = None
            try:
                with Interruption(line, "zookeeper") as interruption:
                    lease = locks.lock("k").acquire(timeout=20)
            except KeyboardInterrupt:
                pass
            if lease is not None:
                lease.release()
            wait_until(lambda: is_free(shared_zookeeper), f"the lock to be free after line {line}")
            if not interruption.happened:
                break
        assert 20 < line < 1999


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_a_session_that_was_interrupted_as_it_began_is_begun_by_the_next_one(
    shared_zookeeper: ZooKeeperServer, first: int
) -> None:
    """At each line, in four parts: a session begins and ends anew for each."""
    for line in range(first, 100, 4):
        with distlock.connect(shared_zookeeper.url) as locks:
            lease = None
            try:
                with Interruption(line, "zookeeper/_session.py") as interruption:
                    lease = locks.lock("k").acquire(timeout=20)
            except KeyboardInterrupt:
                pass
            if lease is not None:
                lease.release()
            locks.lock("k").acquire(timeout=20).release()
        if not interruption.happened:
            break
    assert 20 < line < 96


@pytest.mark.usefixtures("untraced")
def test_an_interrupted_wait_leaves_nothing(shared_zookeeper: ZooKeeperServer) -> None:
    url = shared_zookeeper.url
    with distlock.connect(url) as other, distlock.connect(url) as locks:
        for line in range(1, 3000, EACH):
            held, lease = other.lock("k").acquire(timeout=20), None
            timer = threading.Timer(0.02, held.release)
            timer.start()
            try:
                with Interruption(line, "zookeeper") as interruption:
                    lease = locks.lock("k").acquire(timeout=20)
            except KeyboardInterrupt:
                pass
            timer.join()
            if lease is not None:
                lease.release()
            wait_until(lambda: is_free(shared_zookeeper), f"the lock to be free after line {line}")
            if not interruption.happened:
                break
        assert 20 < line < 2999


@pytest.mark.usefixtures("untraced")
def test_an_interrupted_release_is_done_all_the_same(shared_zookeeper: ZooKeeperServer) -> None:
    with distlock.connect(shared_zookeeper.url) as locks:
        for line in range(1, 2000, EACH):
            lease = locks.lock("k").acquire(timeout=20)
            try:
                with Interruption(line, "zookeeper") as interruption:
                    lease.release()
            except KeyboardInterrupt:
                pass
            wait_until(lambda: is_free(shared_zookeeper), f"the lock to be free after line {line}")
            if not interruption.happened:
                break
        assert 10 < line < 1999
