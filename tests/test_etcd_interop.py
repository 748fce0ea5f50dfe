"""distlock and ``etcdctl lock`` (Go's ``concurrency.Mutex``) keep each other out, in one queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

import distlock

from .backend_tools import Rival
from .etcd_servers import EtcdServer
from .etcd_tools import folder_of, queue_of
from .programs import wait_until


class Etcdctl(Rival):
    """``etcdctl lock``."""

    def __init__(self, server: EtcdServer, name: str, ttl: int = 60) -> None:
        super().__init__(*server.etcdctl("lock", f"--ttl={ttl}", name))

    def _tell(self) -> None:
        self.process.terminate()


@pytest.fixture
def locks(shared_etcd: EtcdServer) -> Iterator[distlock.Manager]:
    with distlock.connect(shared_etcd.url) as manager:
        yield manager


@pytest.fixture
def etcdctl(shared_etcd: EtcdServer) -> Iterator[Callable[..., Etcdctl]]:
    """Starts one that wants the lock ``key``, and waits until it has queued."""
    with ExitStack() as stack:

        def start(key: str, **options: int) -> Etcdctl:
            before = len(queue_of(shared_etcd, key))
            program = stack.enter_context(Etcdctl(shared_etcd, folder_of(key).rstrip("/"), **options))
            wait_until(lambda: len(queue_of(shared_etcd, key)) > before, "etcdctl to queue")
            return program

        yield start


def test_our_holder_keeps_etcdctl_out(locks, etcdctl):
    lease = locks.lock("k").acquire()
    program = etcdctl("k")
    assert not program.is_in(0.3)
    lease.release()
    assert program.is_in(20)


def test_etcdctl_keeps_us_out(locks, etcdctl):
    program = etcdctl("k")
    assert program.is_in(20)
    with pytest.raises(distlock.AcquireTimeout):
        locks.lock("k").acquire(timeout=0)
    with pytest.raises(distlock.AcquireTimeout):
        locks.lock("k").acquire(timeout=2)
    program.release()
    with locks.lock("k", timeout=20):
        pass


def test_we_get_in_when_etcdctl_releases(locks, etcdctl, shared_etcd):
    program = etcdctl("k")
    got: list[distlock.Lease] = []
    waiter = threading.Thread(target=lambda: got.append(locks.lock("k").acquire(timeout=30)))
    waiter.start()
    wait_until(lambda: len(queue_of(shared_etcd, "k")) == 2, "us to queue")
    assert not got
    program.release()
    waiter.join(30)
    assert got[0].ensure_held() > 0
    got[0].release()


def test_we_get_in_when_etcdctl_is_dead_for_its_ttl(locks, etcdctl):
    program = etcdctl("k", ttl=3)
    program.process.kill()
    with locks.lock("k", timeout=30):
        pass


def test_the_queue_is_one(locks, etcdctl, shared_etcd):
    entered: list[str] = []
    holder = locks.lock("k").acquire()
    first = etcdctl("k")

    def second() -> None:
        with locks.lock("k", timeout=40):
            entered.append("second")
            assert not third.is_in(0.3)

    waiter = threading.Thread(target=second)
    waiter.start()
    wait_until(lambda: len(queue_of(shared_etcd, "k")) == 3, "us to queue")
    third = etcdctl("k")

    holder.release()
    assert first.is_in(20)
    assert not third.is_in(0.3)
    assert not entered
    first.release()
    assert third.is_in(20)
    waiter.join(20)
    assert entered == ["second"]


def test_a_waiter_that_gives_up_lets_those_behind_it_move_up(locks, etcdctl, shared_etcd):
    first = etcdctl("k")
    with pytest.raises(distlock.AcquireTimeout):
        locks.lock("k").acquire(timeout=2)  # of which the first answer may take some
    wait_until(lambda: len(queue_of(shared_etcd, "k")) == 1, "its key to go")
    second = etcdctl("k")
    first.release()
    assert second.is_in(20)


def test_etcdctl_that_gives_up_in_our_queue_lets_us_in(locks, etcdctl, shared_etcd):
    holder = locks.lock("k").acquire()
    between = etcdctl("k")
    got = threading.Event()

    def wait() -> None:
        with locks.lock("k", timeout=30):
            got.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(lambda: len(queue_of(shared_etcd, "k")) == 3, "us to queue")
    between.process.terminate()
    between.process.wait(20)
    assert not got.wait(0.3)
    holder.release()
    assert got.wait(30)
    waiter.join(20)


def test_etcdctl_is_seen_as_a_holder_and_as_a_waiter(locks, etcdctl):
    program = etcdctl("k")
    assert program.is_in(20)
    etcdctl("k")
    seen = locks.inspect("k")
    assert seen.holder is not None
    assert seen.holder.owner.startswith("unknown")
    assert seen.holder.token is not None
    assert [each.owner.startswith("unknown") for each in seen.waiters] == [True]
    assert [each.key for each in locks.list()] == ["k"]


def test_our_token_is_greater_than_that_of_etcdctl_before_us(locks, etcdctl):
    program = etcdctl("k")
    assert program.is_in(20)
    seen = locks.inspect("k").holder
    assert seen is not None
    assert seen.token is not None
    program.release()
    with locks.lock("k", timeout=20) as lease:
        assert lease.token is not None
        assert lease.token > seen.token


def test_names_with_slashes_meet_in_the_raw_layout(shared_etcd):
    options = "&" if "?" in shared_etcd.url else "?"
    with distlock.connect(f"{shared_etcd.url}{options}layout=raw") as locks, locks.lock("a/b"):
        (key,) = shared_etcd.keys("distlock/default/a/b/")
        with Etcdctl(shared_etcd, "distlock/default/a/b") as program:
            wait_until(lambda: len(shared_etcd.keys("distlock/default/a/b/")) == 2, "etcdctl to queue")
            assert not program.is_in(0.3)
            assert shared_etcd.keys("distlock/default/a/b/")[0] == key
