"""Waiting in etcd goes on when the stream that all watches share is worth nothing any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

import distlock
from distlock.backends._clerk import Clerk
from distlock.backends.etcd import _endpoints
from distlock.backends.etcd._client import Client
from distlock.backends.etcd._url import Place
from distlock.backends.etcd._watches import Watches

from .etcd_backend_tools import backend_of, watch_made
from .etcd_servers import EtcdCluster, EtcdServer
from .etcd_tools import queue_of
from .programs import wait_until


@contextmanager
def waiter(locks: distlock.Manager, key: str) -> Iterator[None]:
    """Someone who waits for the lock in the block, and gets it after it. They hear of it, or never: nobody looks."""
    backend_of(locks)._sessions._look = lambda session: None
    took = threading.Event()

    def wait() -> None:
        with locks.lock(key, ttl=3).acquire(timeout=25):
            took.set()

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: bool(locks.inspect(key).waiters), "the waiter")
    yield
    thread.join()
    assert took.is_set()


def test_a_waiter_is_woken_though_the_token_of_the_stream_has_expired() -> None:
    """python-etcd3#1227: a watch that comes too late is refused, by a reply that does not say which one it was."""
    users = {"app": ("s3cret", "distlock/")}
    with ExitStack() as stack:
        server = stack.enter_context(EtcdServer(users=users, token_ttl=2))
        ours, theirs = (stack.enter_context(distlock.connect(server.url)) for _ in range(2))
        for pause in (0.0, 5.0):  # the second time the stream is there, and the token has expired
            lease = theirs.lock("k").acquire()
            time.sleep(pause)
            with waiter(ours, "k"):
                time.sleep(1)  # it watches
                lease.release()


def test_a_waiter_whose_member_freezes_is_woken_by_another(
    etcd_cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but waiting goes on in its process: it finds out by the silence of its session's keep-alives."""
    # Not by the pings of HTTP/2, which take nine seconds.
    monkeypatch.setattr(_endpoints, "OPTIONS", [each for each in _endpoints.OPTIONS if "keepalive" not in each[0]])
    victim = etcd_cluster.followers()[0]
    ports = [server.port for server in etcd_cluster.servers]
    urls = [etcd_cluster.servers[0].url_at(*ports[first:], *ports[:first]) for first in (victim, victim - 2)]
    with distlock.connect(urls[0]) as ours, distlock.connect(urls[1]) as theirs:
        watches, lease = backend_of(ours)._watches, theirs.lock("k").acquire()
        made = watch_made(watches)
        with waiter(ours, "k"):
            assert made.wait(20)
            frozen = watches._stream
            etcd_cluster.pause(victim)
            wait_until(lambda: watches._stream not in (None, frozen), "its watch to go on elsewhere")
            lease.release()
        etcd_cluster.heal()


@pytest.fixture
def watches(shared_etcd: EtcdServer) -> Iterator[Watches]:
    clerk, client = Clerk("clerk"), Client.at(Place.parse(shared_etcd.url))
    made: list[Watches] = []
    made.append(Watches(client, clerk, lambda claim_id: None, lambda: made[0].wake(made[0].doubtful())))
    with closing(client), closing(made[0]):
        yield made[0]
        clerk.close(5.0)


@pytest.mark.parametrize("is_next", [True, False])
def test_what_is_deleted_before_the_watch_is_made_is_not_missed(
    shared_etcd: EtcdServer, watches: Watches, is_next: bool
) -> None:
    shared_etcd.put("before")
    seen = shared_etcd.revision()
    shared_etcd.delete("before")
    woken = threading.Event()
    with closing(watches.watch("claim", b"before", seen + 1, is_next, woken.set)):
        assert woken.wait(20)


@pytest.mark.parametrize("is_next", [True, False])
def test_a_watch_is_quiet_until_its_key_is_deleted(shared_etcd: EtcdServer, watches: Watches, is_next: bool) -> None:
    shared_etcd.put("before")
    seen, woken = shared_etcd.revision(), threading.Event()
    made = watch_made(watches)
    with closing(watches.watch("claim", b"before", seen + 1, is_next, woken.set)):
        assert made.wait(20)
        assert not woken.wait(0.3)
        shared_etcd.put("before", "written again")
        shared_etcd.put("another")
        assert not woken.wait(0.3)
        shared_etcd.delete("before")
        assert woken.wait(20)


@pytest.mark.parametrize("is_next", [True, False])
def test_a_watch_from_what_the_store_has_forgotten_is_made_anew(
    shared_etcd: EtcdServer, watches: Watches, is_next: bool
) -> None:
    """It came back empty, and would be silent until it has counted as far again: who waits asks where it stands."""
    shared_etcd.put("before")
    seen, woken = shared_etcd.revision(), threading.Event()
    with closing(watches.watch("claim", b"before", seen + 1000, is_next, woken.set)):
        assert woken.wait(20)
        woken.clear()
        watches.aim("claim", b"before", seen + 1, is_next)
        shared_etcd.delete("before")
        assert woken.wait(20)


def test_who_is_further_back_hears_at_once_of_what_went_before_its_watch_was_made(
    shared_etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd looks after watches that start in the past only every 0.1 s, while the line may go on a hundred times."""
    with (
        distlock.connect(shared_etcd.url) as ours,
        distlock.connect(shared_etcd.url) as theirs,
        ThreadPoolExecutor(2) as pool,
    ):
        held, watches = theirs.lock("k").acquire(), backend_of(ours)._watches
        with pytest.raises(distlock.AcquireTimeout):  # sets up what it needs for waiting
            ours.lock("k", timeout=0.5).acquire()
        looks: list[Any] = []
        monkeypatch.setattr(backend_of(ours)._sessions, "_look", looks.append)  # nobody looks from time to time
        before = pool.submit(theirs.lock("k").acquire)
        wait_until(lambda: len(queue_of(shared_etcd, "k")) == 2, "the one before")
        (claim_id,) = backend_of(theirs)._watches._targets
        place, create = backend_of(theirs)._places.find(claim_id), watches._create
        assert place is not None

        def create_late(*args: Any) -> None:
            monkeypatch.setattr(watches, "_create", create)
            shared_etcd.delete(place.key.decode())  # gone from the line, whoever it was
            create(*args)

        monkeypatch.setattr(watches, "_create", create_late)
        behind = pool.submit(ours.lock("k").acquire)
        wait_until(lambda: any(target.is_next for target in watches._targets.values()), "it to be the next in line")
        held.release()
        behind.result(30.0).release()
        before.result(30.0).release()  # it lines up again


def test_whoever_opens_the_stream_anew_watches_for_all(
    shared_etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only for itself: the others have asked already, and would wait for ever."""
    with (
        distlock.connect(shared_etcd.url) as holders,
        distlock.connect(shared_etcd.url) as waiters,
        ThreadPoolExecutor(2) as pool,
    ):
        watches: Watches = waiters._backend._watches  # type: ignore[attr-defined]
        held = [holders.lock(key).acquire() for key in ("k0", "k1")]
        first = pool.submit(waiters.lock("k0").acquire)
        wait_until(lambda: any(target.watch_id for target in watches._targets.values()), "the watch")
        aimed, aim = threading.Event(), watches.aim

        def aim_and_tell(*args: Any) -> None:
            aim(*args)
            aimed.set()

        monkeypatch.setattr(watches, "aim", aim_and_tell)
        watches._pause = 60.0  # nobody else opens it
        watches.restart()
        assert aimed.wait(20.0)
        second = pool.submit(waiters.lock("k1").acquire)
        wait_until(lambda: len(queue_of(shared_etcd, "k1")) == 2, "the second")
        for lease, waiting in zip(held, (first, second), strict=True):
            lease.release()
            waiting.result(20.0).release()
