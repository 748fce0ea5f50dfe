"""What is believed of a session is what the leader has heard of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

import distlock
from distlock import AcquireTimeout, BackendUnavailable, LeaseState, LockLost, Unsupported
from distlock._clock import now
from distlock._core.hold import GONE
from distlock.backends.base import proven_until
from distlock.backends.zookeeper._life import Life
from distlock.testing.proxy import FaultProxy

from .backend_tools import claim_of, granted, soon
from .programs import wait_until
from .zookeeper_backend_tools import backend_of, opened, session_of
from .zookeeper_servers import MIN_SESSION, ZooKeeperEnsemble, ZooKeeperServer
from .zookeeper_tools import queue_of

# What an answer proves


@pytest.fixture
def life() -> Life:
    life = Life(1, 10.0)
    life.connected(1000.0)
    life.answered(1000.0)
    return life


def test_to_connect_proves_the_session_when_a_write_was_answered() -> None:
    """A leader that was replaced, and does not know it yet, would let it be taken up too."""
    life = Life(1, 10.0)
    life.connected(1000.0)
    assert life.deadline < 1000.0
    life.answered(999.0)
    assert life.deadline < 1000.0, "of an earlier connection"
    life.answered(1000.5)
    assert life.deadline == proven_until(1000.0, 10.0)


def test_what_was_sent_proves_nothing_by_itself(life: Life) -> None:
    for moment in range(1001, 1030):
        life.sent(moment)
    assert life.deadline == proven_until(1000.0, 10.0)


def test_an_answer_by_the_leader_proves_what_the_follower_had_told_it_before(life: Life) -> None:
    for moment in (1002.0, 1004.0, 1006.0, 1008.0):
        life.sent(moment)
    life.answered(1008.0)
    assert life.deadline == proven_until(1004.0, 10.0), "of what was sent after that it may not have heard"
    life.answered(1009.0)
    assert life.deadline == proven_until(1006.0, 10.0)
    life.answered(1007.5)
    assert life.deadline == proven_until(1006.0, 10.0), "never back"


def test_what_was_sent_on_another_connection_tells_nothing(life: Life) -> None:
    life.sent(1005.0)
    life.connected(1007.0)
    life.answered(1006.9)
    assert life.deadline == proven_until(1000.0, 10.0)
    life.answered(1009.0)
    assert life.deadline == proven_until(1007.0, 10.0)


def test_a_session_that_has_ended_is_not_proven(life: Life) -> None:
    life.ended = True
    life.answered(1009.0)
    assert life.deadline == 0.0


# A session that ends, and one that does not


@pytest.fixture
def locks(shared_zookeeper: ZooKeeperServer) -> Iterator[distlock.Manager]:
    with distlock.connect(f"{shared_zookeeper.url}?session_timeout=6") as manager:
        yield manager


def test_locks_of_a_session_that_was_ended_are_lost_at_once(shared_zookeeper: ZooKeeperServer) -> None:
    with distlock.connect(f"{shared_zookeeper.url}?session_timeout=60") as locks:
        lost = threading.Event()
        lease = locks.lock("k", ttl=600).acquire()
        lease.on_lost(lost.set)
        shared_zookeeper.expire(session_of(backend_of(locks), 600)._link.client_id)
        assert lost.wait(15), "before its renewal, after a third of 60 s"


def test_locks_of_a_session_that_was_ended_are_lost(locks: distlock.Manager, shared_zookeeper: ZooKeeperServer) -> None:
    backend = backend_of(locks)
    lost = threading.Event()
    lease = locks.lock("k").acquire()
    lease.on_lost(lost.set)
    life = session_of(backend).life
    shared_zookeeper.expire(session_of(backend)._link.client_id)
    assert lost.wait(10)
    assert lease.state is LeaseState.LOST
    assert lease._hold.reason == GONE, "told, not only late"
    with pytest.raises(LockLost):
        lease.release()
    with locks.lock("k", timeout=10) as again:
        assert again.token > lease.token
        assert session_of(backend).life is not life


def test_who_waited_in_a_session_that_was_ended_queues_anew(
    locks: distlock.Manager, shared_zookeeper: ZooKeeperServer
) -> None:
    with distlock.connect(shared_zookeeper.url) as others:
        held = others.lock("k").acquire()
        waiting = threading.Thread(target=lambda: locks.lock("k", timeout=30).acquire().release())
        waiting.start()
        wait_until(lambda: len(queue_of(shared_zookeeper, "k")) == 2, "it to queue")
        before = queue_of(shared_zookeeper, "k")
        shared_zookeeper.expire(session_of(backend_of(locks))._link.client_id)
        wait_until(lambda: len(queue_of(shared_zookeeper, "k")) == 2, "it to queue anew")
        wait_until(lambda: queue_of(shared_zookeeper, "k") != before, "it to have a node of its new session")
        held.release()
        waiting.join(20)
        assert not waiting.is_alive()


def test_a_suspended_session_is_unknown_and_then_held_again(shared_zookeeper: ZooKeeperServer) -> None:
    with FaultProxy(shared_zookeeper.address) as proxy:
        url = f"zookeeper://127.0.0.1:{proxy.address[1]}?session_timeout=12"
        with distlock.connect(url) as locks, locks.lock("k") as lease:
            proxy.refuse()
            proxy.reset_all()
            wait_until(lambda: lease.state is LeaseState.UNKNOWN, "the renewal to fail")
            assert lease.ensure_held() == lease.token
            proxy.accept()
            wait_until(lambda: lease.state is LeaseState.HELD, "the renewal to succeed")


def test_a_lock_of_a_lost_server_is_lost_in_time(shared_zookeeper: ZooKeeperServer) -> None:
    """kazoo: `is_acquired` stayed true after the session's end."""
    with FaultProxy(shared_zookeeper.address) as proxy:
        url = f"zookeeper://127.0.0.1:{proxy.address[1]}?session_timeout=4"
        with distlock.connect(url) as locks, distlock.connect(shared_zookeeper.url) as others:
            lease = locks.lock("k").acquire()
            proxy.pause()
            with others.lock("k", timeout=20) as other:
                entered = now()
                assert lease._hold.deadline < entered
                assert lease.state is LeaseState.LOST
                assert other.token > lease.token
            proxy.reset_all()
            proxy.resume()


def test_a_waiter_learns_of_an_outage(shared_zookeeper: ZooKeeperServer) -> None:
    with FaultProxy(shared_zookeeper.address) as proxy, distlock.connect(shared_zookeeper.url) as others:
        url = f"zookeeper://127.0.0.1:{proxy.address[1]}?session_timeout=4"
        with distlock.connect(url) as locks, others.lock("k"):
            errors: list[BaseException] = []

            def wait() -> None:
                try:
                    locks.lock("k").acquire()
                except BackendUnavailable as error:
                    errors.append(error)

            waiting = threading.Thread(target=wait)
            waiting.start()
            wait_until(lambda: len(queue_of(shared_zookeeper, "k")) == 2, "it to queue")
            proxy.refuse()
            proxy.reset_all()
            waiting.join(30)
            assert len(errors) == 1
            proxy.accept()


# How much is asked


# Lengths


def test_ttls_share_a_few_sessions_none_of_which_is_longer_than_they_are(
    locks: distlock.Manager, shared_zookeeper: ZooKeeperServer
) -> None:
    before, ttls = shared_zookeeper.sessions(), (6, 30, 6.5, 5.9, 5, 4.5, 4)
    leases = [locks.lock(f"k{ttl}", ttl=ttl).acquire() for ttl in ttls]
    sessions = backend_of(locks)._sessions._sessions
    assert sorted(sessions) == [4, 5, 6]
    assert len(shared_zookeeper.sessions() - before) == 3
    assert all(session.life and session.life.timeout == length for length, session in sessions.items())
    for lease in leases:
        lease.release()


def test_a_lock_that_is_not_renewed_lasts_for_its_ttl_though_its_session_is_shorter(locks: distlock.Manager) -> None:
    started = now()
    lease = locks.lock("k", ttl=9, renew=False).acquire()
    with locks.lock("k", timeout=20):
        assert 8.7 < now() - started < 18
        assert lease.state is LeaseState.LOST
    with pytest.raises(LockLost, match="its ttl is over"):
        lease.release()


def test_a_length_that_the_server_does_not_grant_is_unsupported() -> None:
    with ZooKeeperServer(["minSessionTimeout=4000", "maxSessionTimeout=8000"]) as server:
        with distlock.connect(server.url) as locks:
            with pytest.raises(Unsupported, match=r"ttl of 3 s is too short.* 4 s"):
                locks.lock("k", ttl=3).acquire()
            for ttl in (4, 5, 8, 30, 300):
                with locks.lock("k", ttl=ttl):
                    pass
        with distlock.connect(f"{server.url}?session_timeout=20") as locks, pytest.raises(Unsupported) as caught:
            locks.lock("k", ttl=30).acquire()
        assert "session_timeout=20 is too long" in str(caught.value)
        assert "after 8 s" in str(caught.value)
        assert server.nodes() == []
    assert MIN_SESSION < 1


# An ensemble


def test_a_follower_that_is_cut_off_keeps_no_lock_alive(zookeeper_ensemble: ZooKeeperEnsemble) -> None:
    """It answers pings, and has answered a request through the leader a moment ago; but of that request the leader has
    not heard as a sign of life."""
    ensemble = zookeeper_ensemble
    follower = ensemble.followers()[0]
    away = ensemble.servers[0].url_at(*(server.port for n, server in enumerate(ensemble.servers) if n != follower))
    for _ in range(3):
        with distlock.connect(f"{ensemble.servers[follower].url}?session_timeout=6") as locks:
            lease = locks.lock("k").acquire()
            time.sleep(2.5)  # it is renewed
            with distlock.connect(away) as others:
                lease.extend()  # asks the leader
                ensemble.cut(follower)
                with others.lock("k", timeout=30) as other:
                    entered = now()
                    assert lease._hold.deadline < entered
                    assert lease.state is LeaseState.LOST
                    assert other.token > lease.token
                ensemble.heal()


def test_a_leader_that_was_replaced_keeps_no_lock_alive() -> None:
    """It answers pings and a `sync`, and lets sessions be taken up, until it notices: here, after a long time."""
    ensemble = ZooKeeperEnsemble(last_leads=True)
    slow = ensemble.servers[2]
    slow.settings.append("syncLimit=150")  # 30 s; the others see after two that there is no leader
    with ensemble:
        leader = ensemble.leader()
        assert ensemble.servers[leader] is slow
        away = ensemble.servers[0].url_at(*(server.port for server in ensemble.servers if server is not slow))
        with distlock.connect(f"{slow.url}?session_timeout=4", op_timeout=2) as locks:
            lease = locks.lock("k").acquire()
            prolonging = threading.Thread(target=prolong, args=(lease,))
            prolonging.start()
            ensemble.partition(leader)
            with distlock.connect(away) as others, others.lock("k", timeout=30) as other:
                entered = now()
                assert lease._hold.deadline < entered
                assert lease.state is LeaseState.LOST
                assert other.token > lease.token
            prolonging.join(20)
            ensemble.heal()


def test_a_sync_that_a_replaced_leader_answers_proves_nothing() -> None:
    """As long as nothing is written there it answers each, and no majority has a part in it."""
    ensemble = ZooKeeperEnsemble(last_leads=True)
    slow = ensemble.servers[2]
    slow.settings.append("syncLimit=150")
    with ensemble:
        leader = ensemble.leader()
        assert ensemble.servers[leader] is slow
        away = ensemble.servers[0].url_at(*(server.port for server in ensemble.servers if server is not slow))
        with opened(f"{slow.url}?session_timeout=4") as backend, distlock.connect(away) as others:
            grant = granted(backend, claim_of(ttl=4))
            life = session_of(backend, 4).life
            assert life is not None
            ensemble.partition(leader)
            done = threading.Event()

            def sync() -> None:
                while not done.wait(0.05):
                    with suppress(BackendUnavailable):
                        backend.inspect("k", soon(2))

            syncing = threading.Thread(target=sync)
            syncing.start()
            with others.lock("k", timeout=30) as other:
                entered = now()
                assert life.deadline < entered
                assert other.token > grant.token
            done.set()
            syncing.join(20)
            ensemble.heal()


def prolong(lease: distlock.Lease) -> None:
    while lease.state is not LeaseState.LOST:
        with suppress(distlock.DistLockError):
            lease.extend()
        time.sleep(0.05)


def test_a_lock_outlives_its_server(zookeeper_ensemble: ZooKeeperEnsemble) -> None:
    ensemble = zookeeper_ensemble
    with distlock.connect(f"{ensemble.url}?session_timeout=30", op_timeout=15) as locks:
        with locks.lock("k") as lease:
            for how in ("kill", "partition"):
                getattr(ensemble, how)(ensemble.leader())
                with locks.lock(how, timeout=30):
                    assert lease.ensure_held() == lease.token
                ensemble.heal()
            lease.extend()
            assert lease.state is LeaseState.HELD
        wait_until(lambda: not ensemble.any.nodes(), "the nodes to go")


def test_a_member_that_stands_still_is_left(zookeeper_ensemble: ZooKeeperEnsemble) -> None:
    """With the session, and long before kazoo would: that waits for two thirds of the session's length."""
    ensemble = zookeeper_ensemble
    with distlock.connect(f"{ensemble.url}?session_timeout=60", op_timeout=3) as locks, locks.lock("k") as lease:
        session = session_of(backend_of(locks))
        life = session.life
        port = session._link._client._connection._socket.getpeername()[1]
        (frozen,) = (n for n, server in enumerate(ensemble.servers) if server.port == port)
        ensemble.servers[frozen].drop_client()
        ensemble.servers[frozen].pause()
        with pytest.raises(BackendUnavailable):
            lease.extend()
        # kazoo would wait for 40 s. Half of that it does wait, where the next that it tries is the same one again.
        wait_until(lambda: _is_answered(lease), "another member to be asked", 30)
        assert session.life is life
        assert lease.state is LeaseState.HELD
        ensemble.heal()


def _is_answered(lease: distlock.Lease) -> bool:
    try:
        lease.extend()
    except BackendUnavailable:
        return False
    return True


def test_a_store_that_came_back_empty_is_taken_up_again() -> None:
    """ZOOKEEPER-832: it turns away whoever has seen more than it has, without a word, and for ever."""
    with ZooKeeperServer() as server, distlock.connect(server.url) as locks:
        for number in range(50):  # more than it takes to come back
            server.client().create(f"/{number}")
        with locks.lock("k", ttl=3):
            pass
        server.kill()
        server.forget()
        server.start()
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            with (
                suppress(BackendUnavailable, AcquireTimeout, LockLost),  # the latter two: the machine is slow
                locks.lock("k", ttl=3, timeout=1),
            ):
                return
            time.sleep(0.1)
        pytest.fail("it is out of reach")
