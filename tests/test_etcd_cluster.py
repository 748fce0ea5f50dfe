"""Locks while members of the cluster die, stand still, or are cut off from the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest

import distlock
from distlock import BackendUnavailable, LeaseState
from distlock._clock import now

from .etcd_backend_tools import names_of_leases
from .etcd_servers import EtcdCluster
from .etcd_tools import ROOT, queue_of
from .programs import wait_until

FAULTS = [(fault, whom) for fault in ("kill", "pause", "partition") for whom in ("leader", "follower")]


@pytest.fixture
def locks(shared_etcd_cluster: EtcdCluster) -> Iterator[distlock.Manager]:
    with distlock.connect(shared_etcd_cluster.url) as manager:
        yield manager


def lose(cluster: EtcdCluster, fault: str, whom: str) -> int:
    """Which it was."""
    number = cluster.leader() if whom == "leader" else cluster.followers()[0]
    getattr(cluster, fault)(number)
    return number


def queued(cluster: EtcdCluster, waiters: int) -> bool:
    return len(queue_of(cluster.any, "k")) == 1 + waiters


def end_of(lease: distlock.Lease) -> float:
    return time.monotonic() + lease.remaining()


def more(things: list[int], *, than: int) -> bool:
    return len(things) > than


@pytest.mark.parametrize(("fault", "whom"), FAULTS)
def test_a_held_lock_outlives_the_loss_of_a_member(shared_etcd_cluster, locks, fault, whom):
    cluster = shared_etcd_cluster
    lease = locks.lock("k", ttl=20).acquire()
    first_end = end_of(lease)
    lose(cluster, fault, whom)
    lost_at = time.monotonic()
    # A renewal was asked for more than a second afterwards, and answered.
    wait_until(lambda: end_of(lease) > max(first_end, lost_at + 20) + 1, "it to be renewed by the others")
    assert lease.state is LeaseState.HELD
    assert lease.ensure_held() == lease.token
    assert len(queue_of(cluster.any, "k")) == 1
    with distlock.connect(cluster.url) as other, pytest.raises(distlock.AcquireTimeout):
        other.lock("k").acquire(timeout=0)
    cluster.heal()
    lease.release()
    assert queue_of(cluster.any, "k") == []


@pytest.mark.parametrize(("fault", "whom"), FAULTS)
def test_waiters_get_in_though_a_member_was_lost(shared_etcd_cluster, locks, fault, whom):
    cluster, tokens = shared_etcd_cluster, []
    holder = locks.lock("k").acquire()
    with ExitStack() as stack:
        others = [stack.enter_context(distlock.connect(cluster.url, op_timeout=10)) for _ in range(3)]

        def wait(manager: distlock.Manager) -> None:
            with manager.lock("k", ttl=5, timeout=40) as lease:
                tokens.append(lease.token)

        waiters = [threading.Thread(target=wait, args=(manager,)) for manager in others]
        for number, waiter in enumerate(waiters):
            waiter.start()
            wait_until(partial(queued, cluster, number + 1), "it to queue")
        lose(cluster, fault, whom)
        assert tokens == []
        holder.release()
        for waiter in waiters:
            waiter.join(45)
        assert len(tokens) == 3
        assert tokens == sorted(set(tokens))
    cluster.heal()


@pytest.mark.parametrize("fault", ["pause", "partition"])
def test_who_knows_a_lost_member_alone_is_told_of_the_loss_before_others_get_in(shared_etcd_cluster, fault):
    cluster = shared_etcd_cluster
    number = cluster.followers()[0]
    told = threading.Event()
    with (
        distlock.connect(cluster.servers[number].url) as alone,
        distlock.connect(cluster.url_without(number)) as others,
    ):
        lease = alone.lock("k", ttl=3).acquire()
        lease.on_lost(told.set)
        getattr(cluster, fault)(number)
        with others.lock("k", timeout=40) as next_one:
            entered = now()
            assert lease._hold.deadline < entered
            assert lease.state is LeaseState.LOST
            assert next_one.token > lease.token
        assert told.wait(20), "by a thread, which a slow machine lets run when it can"
        with suppress(distlock.DistLockError):
            lease.release()
        cluster.heal()


def test_without_a_majority_nobody_gets_in_and_held_locks_are_lost_in_time(etcd_cluster):
    cluster = etcd_cluster
    with distlock.connect(cluster.url) as locks:
        lease = locks.lock("k", ttl=3).acquire()
        lost = threading.Event()
        lease.on_lost(lambda *_: lost.set())
        for number in cluster.followers():
            cluster.servers[number].kill()
        with pytest.raises(BackendUnavailable):
            locks.lock("other").acquire(timeout=1)
        assert lost.wait(20)
        assert lease.state is LeaseState.LOST
        cluster.heal()
        with locks.lock("k", timeout=30) as again:
            assert again.token > lease.token


def test_one_at_a_time_while_members_are_lost_one_after_the_other(shared_etcd_cluster):
    """Whoever is in and still holds is in alone, and has a greater token than all before."""
    cluster, mutex, done = shared_etcd_cluster, threading.Lock(), threading.Event()
    tokens: list[int] = []
    inside: list[distlock.Lease] = []
    wrong: list[str] = []

    def work(manager: distlock.Manager) -> None:
        while not done.is_set():
            with (
                suppress(distlock.AcquireTimeout, BackendUnavailable, distlock.LockLost),
                manager.lock("k", ttl=3, timeout=20) as lease,
            ):
                with mutex:
                    wrong.extend(f"{each} is in too" for each in inside if each.state is LeaseState.HELD)
                    wrong.extend([f"{lease.token} after {tokens[-1]}"] if tokens and lease.token <= tokens[-1] else [])
                    tokens.append(lease.token)
                    inside.append(lease)
                time.sleep(0.01)
                with mutex:
                    inside.remove(lease)

    with ExitStack() as stack:
        managers = [stack.enter_context(distlock.connect(cluster.url)) for _ in range(3)]
        workers = [threading.Thread(target=work, args=(manager,)) for manager in managers for _ in range(2)]
        for worker in workers:
            worker.start()
        try:
            for fault, whom in FAULTS:
                before = len(tokens)
                lose(cluster, fault, whom)
                wait_until(partial(more, tokens, than=before + 3), f"{fault} of a {whom} to be got over")
                cluster.heal()
        finally:
            done.set()
            for worker in workers:
                worker.join(40)
    assert wrong == []
    wait_until(lambda: cluster.any.keys(ROOT) == [] and cluster.any.leases() == [], "nothing to be left", 20)


def test_a_hundred_contended_tries_leave_no_lease_behind(shared_etcd_cluster, locks):
    """tooz: each of them left one. What withdraws a claim that may come late needs its lease for as long as that is."""
    cluster = shared_etcd_cluster
    with distlock.connect(cluster.url) as other:
        with locks.lock("k"):
            for _ in range(50):
                assert other.lock("k", ttl=10).try_acquire() is None
                with suppress(distlock.AcquireTimeout, BackendUnavailable):  # the latter: not answered in time
                    other.lock("k", ttl=10).acquire(timeout=0.01)
        keys = names_of_leases(cluster.any).values()
        assert sum(not any(key.startswith(f"{ROOT}~") for key in each) for each in keys) <= 6
    locks.close()
    wait_until(lambda: cluster.any.leases() == [], "no lease to be left")
