"""Ctrl-C anywhere: nothing is held that nobody knows of, and nothing hangs."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

import distlock
from distlock import BackendUnavailable
from distlock._clock import now
from distlock.backends.etcd._turns import Turn

from .backend_tools import soon
from .etcd_backend_tools import backend_of, in_threads, opened
from .etcd_tools import queue_of
from .interruption import Interruption
from .programs import wait_until

EACH = 7
"""Lines from one interruption to the next: a prime, so that none of a loop's is left out."""


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("renew", [True, False])
def test_an_interrupted_acquire_leaves_nothing(shared_etcd, etcd_url, renew):
    with distlock.connect(etcd_url) as locks:
        for line in range(1, 2000, EACH):
            lease = None
            try:
                with Interruption(line, "etcd") as interruption:
                    lease = locks.lock("k", ttl=300, renew=renew).acquire(timeout=20)
            except KeyboardInterrupt:
                pass
            if lease is not None:
                lease.release()
            wait_until(lambda: queue_of(shared_etcd, "k") == [], f"the lock to be free after line {line}")
            if not interruption.happened:
                break
        assert line > 20
        wait_until(lambda: not backend_of(locks)._places._places, "all to be forgotten")


@pytest.mark.usefixtures("untraced")
def test_nobody_waits_for_a_session_that_an_interrupted_call_was_making(etcd_url):
    """A lock taken just before ``try`` would stay so for ever; and the next one is not even to lose time."""
    with distlock.connect(etcd_url) as locks:
        for line in range(1, 300):
            try:
                with Interruption(line, "etcd/_session.py", "etcd/_turns.py") as interruption:
                    locks.lock("k", ttl=300).acquire().release()
            except KeyboardInterrupt:
                pass
            sessions = backend_of(locks)._sessions
            assert sessions._making.take(300, Turn(), 0.0), f"after line {line}"
            if not interruption.happened:
                break
            for session in list(sessions._current.values()):
                sessions.retire(session)
        assert 10 < line < 299


@pytest.mark.usefixtures("untraced")
def test_after_an_interrupted_keep_alive_each_answer_belongs_to_its_own_request(etcd_url):
    with opened(etcd_url) as backend:
        sessions, session = backend._sessions, backend._sessions.make(30, soon())
        for line in range(1, 100):
            try:
                with Interruption(line, "etcd/_session.py", "etcd/_stream.py") as interruption:
                    sessions.ask(session, now())
            except KeyboardInterrupt:
                pass
            assert sessions.prove(session, now(), soon()), f"after line {line}"
            if not interruption.happened:
                break
        assert 5 < line < 99


@pytest.mark.usefixtures("untraced")
def test_an_interrupted_watch_does_not_cost_others_theirs(shared_etcd, etcd_url):
    """Whoever opens the stream makes the watches of all."""
    with opened(etcd_url) as backend:
        watches = backend._watches
        for line in range(1, 200):
            shared_etcd.put("other's")
            seen, woken = shared_etcd.revision(), threading.Event()
            with closing(watches.watch("other", b"other's", seen + 1, False, woken.set)):
                with watches._mutex:  # as if the stream had ended; the clerk comes only afterwards
                    watches._claims.clear()
                    watches._targets["other"].watch_id = 0
                try:
                    with Interruption(line, "etcd/_watches.py", "etcd/_stream.py") as interruption:
                        watches.watch("own", b"own", seen + 1, False, lambda: None)
                except KeyboardInterrupt:
                    pass
                watches._reopen()
                shared_etcd.delete("other's")
                assert woken.wait(10), f"after line {line}"
            watches.forget("own")
            if not interruption.happened:
                break
        assert 10 < line < 199


@pytest.mark.usefixtures("untraced")
def test_an_interrupted_wait_leaves_nothing(shared_etcd, etcd_url):
    with distlock.connect(etcd_url) as other, distlock.connect(etcd_url) as locks:
        for line in range(1, 3000, 3 * EACH):
            held, lease = other.lock("k", ttl=300).acquire(timeout=20), None
            timer = threading.Timer(0.02, held.release)
            timer.start()
            try:
                with Interruption(line, "etcd") as interruption:
                    lease = locks.lock("k", ttl=300).acquire(timeout=20)
            except KeyboardInterrupt:
                pass
            timer.join()
            if lease is not None:
                lease.release()
            wait_until(lambda: queue_of(shared_etcd, "k") == [], f"the lock to be free after line {line}")
            if not interruption.happened:
                break
        assert not backend_of(locks)._watches._targets


@pytest.mark.usefixtures("untraced")
def test_an_interrupted_release_is_done_all_the_same(shared_etcd, etcd_url):
    with distlock.connect(etcd_url) as locks:
        for line in range(1, 2000, EACH):
            lease = locks.lock("k", ttl=300).acquire(timeout=20)
            try:
                with Interruption(line, "etcd") as interruption:
                    lease.release()
            except KeyboardInterrupt:
                pass
            wait_until(lambda: queue_of(shared_etcd, "k") == [], f"the lock to be free after line {line}")
            if not interruption.happened:
                break


def test_a_thread_that_cannot_be_started_is_an_error_once(etcd_url, monkeypatch):
    """RLIMIT_NPROC: and who comes afterwards is told of the release all the same."""
    start, failing = threading.Thread.start, ["clerk", "stream"]

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("distlock-etcd") and failing:
            failing.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    with distlock.connect(etcd_url) as other, distlock.connect(etcd_url) as locks:
        held = other.lock("k").acquire()
        monkeypatch.setattr(threading.Thread, "start", refuse)
        threading.Timer(1, held.release).start()

        def wait(_: int) -> None:
            try:
                locks.lock("k").acquire(timeout=20).release()
            except BackendUnavailable:
                locks.lock("k").acquire(timeout=20).release()

        in_threads(1, wait)
        assert failing == []
