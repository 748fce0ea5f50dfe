"""Leases that end, streams that break, and members that know less than others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlsplit

import pytest

import distlock
from distlock import AcquireTimeout, LeaseState
from distlock._clock import now
from distlock.backends.base import Busy, Grant, proven_until
from distlock.backends.etcd._client import Answer
from distlock.backends.etcd._requests import attach
from distlock.backends.etcd._rpc import LEASE_REVOKE, LEASE_TIME_TO_LIVE, TXN, pb
from distlock.testing.proxy import FaultProxy

from .backend_tools import claim_of, granted, queued, soon
from .etcd_backend_tools import backend_of, in_threads, names_of_leases, opened, spied, watch_made
from .etcd_servers import EtcdServer
from .etcd_tools import queue_of
from .programs import wait_until


@pytest.fixture
def etcd_proxy(etcd_url: str) -> Iterator[FaultProxy]:
    """A faulty network in front of the shared server."""
    parts = urlsplit(etcd_url)
    with FaultProxy((parts.hostname or "", parts.port or 0)) as proxy:
        yield proxy


def by_way_of(proxy: FaultProxy) -> str:
    return f"etcd://127.0.0.1:{proxy.port}"


def a_third_later(backend):
    """Its sessions have heard of the server that long ago."""
    for session in backend._sessions._current.values():
        session.sent_at -= session.ttl / 3
        session.checked_at -= session.ttl / 3


# One lease for all.


def test_threads_that_begin_at_once_share_one_lease(shared_etcd, etcd_url):
    with opened(etcd_url) as backend:
        in_threads(8, lambda number: granted(backend, claim_of(f"n{number}")))
        assert len(shared_etcd.leases()) == 1
        in_threads(8, lambda number: queued(backend, claim_of(f"n{number}", wait=True)))
        assert len(shared_etcd.leases()) == 2


def test_what_was_just_proven_is_not_asked_for_again(etcd_url):
    with spied(etcd_url) as (backend, spy):
        grants = [granted(backend, claim_of(f"n{number}")) for number in range(10)]
        a_third_later(backend)
        sent = _count_keep_alives(backend)
        backend.renew(grants, soon())
        spy.asked.clear()
        sent.clear()
        assert {each.state for each in backend.renew(grants, soon())} == {LeaseState.HELD}
        assert (spy.asked, sent) == ([], [])


def _count_keep_alives(backend):
    """All that are sent from now on."""
    sessions, sent = backend._sessions, []
    with sessions._mutex:
        sessions._open(now())
        stream, send = sessions._stream, sessions._stream.send

        def counted(request):
            sent.append(request)
            send(request)

        stream.send = counted
    return sent


def test_who_waits_does_so_under_a_short_lease(shared_etcd, etcd_url):
    """Else a waiter that died would keep all those behind it for its ttl."""
    with opened(etcd_url) as backend:
        granted(backend, claim_of(ttl=300))
        claim = claim_of(ttl=300, wait=True)
        queued(backend, claim)
        (lease,) = [
            lease for lease, keys in names_of_leases(shared_etcd).items() if queue_of(shared_etcd, "k")[1] in keys
        ]
        assert int(shared_etcd.call("lease/timetolive", ID=lease)["grantedTTL"]) == 10


def test_a_lock_that_was_waited_for_moves_to_a_lease_of_its_ttl(etcd_url):
    with distlock.connect(etcd_url) as other, distlock.connect(etcd_url) as locks:
        held = other.lock("k", ttl=30).acquire()
        in_line = threading.Thread(target=lambda: leases.append(locks.lock("k", ttl=20).acquire()), daemon=True)
        leases: list[distlock.Lease] = []
        in_line.start()
        wait_until(lambda: other.inspect("k").waiters, "it to queue")
        held.release()
        in_line.join(10)
        assert 0 < leases[0].remaining() <= 10
        wait_until(lambda: leases[0].remaining() > 15, "its renewal")
        leases[0].release()


def test_an_idle_session_ends_by_itself(shared_etcd, etcd_url):
    with opened(etcd_url) as backend:
        backend.release(granted(backend, claim_of(ttl=4)), soon())
        wait_until(lambda: not shared_etcd.leases(), "its lease to end")
        assert backend.release(granted(backend, claim_of(ttl=4)), soon())


def test_a_session_that_is_used_again_and_again_is_kept(shared_etcd, etcd_url):
    with opened(etcd_url) as backend:
        backend.release(granted(backend, claim_of(ttl=3)), soon())
        before, until = shared_etcd.leases(), time.monotonic() + 4.5
        while time.monotonic() < until:
            backend.release(granted(backend, claim_of(ttl=3)), soon())
            time.sleep(0.05)
        assert shared_etcd.leases() == before


# Proof.


def test_what_is_proven_counts_from_when_the_keep_alive_was_sent(etcd_proxy):
    with opened(by_way_of(etcd_proxy)) as backend, ThreadPoolExecutor(1) as threads:
        grant = granted(backend, claim_of())
        (session,) = backend._sessions._current.values()
        a_third_later(backend)
        etcd_proxy.pause(requests=False)
        renewing = threads.submit(backend.renew, [grant], soon(30))
        wait_until(lambda: session.pending, "the keep-alive to be sent")
        sent_before = now()
        time.sleep(0.3)  # the answer takes its time
        etcd_proxy.resume()
        (renewal,) = renewing.result(30)
        assert renewal.deadline <= proven_until(sent_before, 30)
        assert session.sent_at <= sent_before


def test_each_answer_belongs_to_its_own_request(etcd_proxy):
    """They come in order; that to the first proves nothing of the second."""
    with opened(by_way_of(etcd_proxy)) as backend:
        granted(backend, claim_of(ttl=30))
        sessions, session = backend._sessions, backend._sessions.get(30, soon())
        etcd_proxy.pause(requests=False)
        first = now()
        sessions.ask(session, first)
        time.sleep(0.05)
        second = now()
        sessions.ask(session, second)
        asked_at = list(session.pending)
        assert len(asked_at) == 2
        etcd_proxy.resume()
        assert sessions.prove(session, first, soon())
        assert sessions.prove(session, second, soon())
        assert not session.pending
        assert session.sent_at == asked_at[1]


def test_what_an_older_stream_says_counts_no_more(etcd_url):
    with opened(etcd_url) as backend:
        granted(backend, claim_of())
        sessions, session = backend._sessions, backend._sessions.get(30, soon())
        assert sessions.prove(session, now(), soon())
        before, turn = session.sent_at, sessions._turn
        with sessions._mutex:
            sessions._drop_stream()
        session.pending.append(now())
        sessions._answered(turn, pb.LeaseKeepAliveResponse(id=session.id, ttl=30))
        sessions._answered(turn, pb.LeaseKeepAliveResponse(id=session.id, ttl=0))
        assert (session.sent_at, session.ended, len(session.pending)) == (before, False, 1)


def test_a_stream_that_does_not_answer_is_opened_anew(etcd_url):
    """Half open, or with a member that stands still."""
    with opened(etcd_url) as backend:
        granted(backend, claim_of())
        sessions, session = backend._sessions, backend._sessions.get(30, soon())
        assert sessions.prove(session, now(), soon())
        assert sessions._stream is not None
        sessions._stream.send = lambda request: None  # type: ignore[method-assign]
        with pytest.raises(distlock.BackendUnavailable):
            sessions.prove(session, now(), soon(2.5))
        assert sessions.prove(session, now(), soon())


# Leases and keys that are gone.


def test_a_lease_that_ended_while_its_claim_was_queued_is_never_a_grant(shared_etcd, etcd_url):
    """etcd#9921, Jepsen 3.4.3: the waiter found nobody before it, and took its missing key for the first."""
    with opened(etcd_url) as other, opened(etcd_url) as backend:
        held, claim, woken = granted(other, claim_of()), claim_of(wait=True), threading.Event()
        backend.watch(queued(backend, claim), woken.set, soon())
        _revoke_leases_of(shared_etcd, claim.id)
        wait_until(lambda: woken.is_set() or len(queue_of(shared_etcd, "k")) == 1, "its end")
        assert isinstance(backend.acquire(claim, soon()), Busy)
        assert len(queue_of(shared_etcd, "k")) == 2
        other.release(held, soon())
        assert woken.wait(10)
        assert granted(backend, claim).token > held.token


def test_a_lease_that_ended_just_as_its_claim_came_first_is_no_grant_of_the_old_key(shared_etcd, etcd_url):
    with opened(etcd_url) as other, opened(etcd_url) as backend:
        held, claim = granted(other, claim_of()), claim_of(wait=True)
        queued(backend, claim)
        place = backend._places.find(claim.id)
        assert place is not None
        old = place.revision
        _revoke_leases_of(shared_etcd, claim.id)
        other.release(held, soon())
        barger = granted(other, claim_of())
        queued(backend, claim)
        other.release(barger, soon())
        assert granted(backend, claim).token > barger.token > old


def _revoke_leases_of(server, claim_id):
    for lease, keys in names_of_leases(server).items():
        if any(key.endswith(claim_id) for key in keys):
            server.revoke(lease)


def test_waiters_learn_from_the_keep_alive_that_their_lease_is_gone(shared_etcd, etcd_url):
    with opened(etcd_url) as other, opened(etcd_url) as backend:
        granted(other, claim_of())
        claim, woken = claim_of(ttl=3, wait=True), threading.Event()
        backend.watch(queued(backend, claim), woken.set, soon())
        _revoke_leases_of(shared_etcd, claim.id)
        assert woken.wait(10)
        queued(backend, claim)
        assert len(queue_of(shared_etcd, "k")) == 2


def test_the_end_of_a_lease_is_the_loss_of_all_its_locks(shared_etcd, etcd_url):
    with distlock.connect(etcd_url) as locks:
        leases = [locks.lock(f"n{number}", ttl=4.5).acquire() for number in range(3)]
        (session,) = shared_etcd.leases()
        other = locks.lock("other", ttl=8).acquire()
        shared_etcd.revoke(session)
        wait_until(lambda: all(lease.state is LeaseState.LOST for lease in leases), "the loss")
        assert other.ensure_held() == other.token
        with locks.lock("n0", ttl=4.5, timeout=0) as again:
            first_end = time.monotonic() + again.remaining()
            wait_until(lambda: time.monotonic() + again.remaining() > first_end + 1, "it to be renewed")
            assert again.ensure_held() > leases[0].token


def test_a_missing_key_is_a_loss_though_its_lease_lives(shared_etcd, etcd_url):
    """etcd before 3.5: a leader that was none any more revoked a lease which the new one went on renewing."""
    with opened(etcd_url) as backend:
        gone, kept = (granted(backend, claim_of(name)) for name in ("gone", "kept"))
        shared_etcd.delete(queue_of(shared_etcd, "gone")[0])
        a_third_later(backend)
        states = [each.state for each in backend.renew([gone, kept], soon())]
        assert states == [LeaseState.LOST, LeaseState.HELD]


def test_many_losses_are_found_by_a_server_that_takes_few_operations_at_once():
    with EtcdServer("--max-txn-ops", "8") as server, opened(server.url) as backend:
        grants = [granted(backend, claim_of(f"k{number}")) for number in range(40)]
        gone = {f"k{number}" for number in range(0, 40, 2)}
        for key in gone:
            server.delete(queue_of(server, key)[0])
        a_third_later(backend)
        renewals = backend.renew(grants, soon())
        lost = {grant.claim.key for grant, each in zip(grants, renewals, strict=True) if each.state is LeaseState.LOST}
        assert lost == gone


def test_a_key_under_a_lease_that_is_not_its_own_is_held_when_it_was_moved_back(shared_etcd, etcd_url):
    """What keeps the one lease alive proves nothing of the other."""
    with opened(etcd_url) as backend:
        grant = granted(backend, claim_of())
        place, foreign = backend._places.find(grant.claim.id), backend._sessions.make(30, soon())
        assert place is not None
        request = attach(place.key, place.value, place.revision, place.mod_revision, foreign.id)
        assert backend._client.call(TXN, request, soon()).value.succeeded
        assert place.session is not None
        place.session.checked_at -= 10
        assert backend.renew([grant], soon())[0].state is LeaseState.UNKNOWN
        assert backend.renew([grant], soon())[0].state is LeaseState.HELD
        assert shared_etcd.lease_keys(place.session.id) == queue_of(shared_etcd, "k")


def test_a_member_that_is_behind_makes_no_loss(etcd_url):
    """It does not know the newest keys of a lease, nor perhaps the lease."""
    with spied(etcd_url) as (backend, spy):
        grants = [granted(backend, claim_of(f"n{number}")) for number in range(150)]
        a_third_later(backend)
        spy.next(lambda send: Answer(pb.LeaseTimeToLiveResponse(ttl=-1)), LEASE_TIME_TO_LIVE)
        states = {each.state for each in backend.renew(grants, soon())}
        assert states == {LeaseState.HELD}
        assert spy.asked[-3:] == ["LeaseTimeToLive", "Txn", "Txn"]


def test_a_waiter_outlives_its_own_ttl(shared_etcd, etcd_url):
    """Nobody holds anything under its lease, and still it is kept alive."""
    with opened(etcd_url) as other, opened(etcd_url) as backend:
        held, claim = granted(other, claim_of()), claim_of(ttl=4, wait=True)
        queued(backend, claim)
        own, session = queue_of(shared_etcd, "k")[1], backend._sessions.get(4, soon())
        asked_at = session.sent_at
        wait_until(lambda: session.sent_at > asked_at + 4, "it to be kept alive for longer than its ttl")
        assert queue_of(shared_etcd, "k")[1] == own
        other.release(held, soon())
        before = now()
        grant = granted(backend, claim)
        assert grant.deadline > before + 0.4
        backend.release(grant, soon())
        wait_until(lambda: len(shared_etcd.leases()) == 1, "the session to end, as nobody waits any more")


def test_waiters_are_kept_though_a_server_takes_its_time_with_what_can_wait(etcd_url):
    with opened(etcd_url) as other, spied(etcd_url) as (backend, spy):
        granted(other, claim_of())
        asked, answered = threading.Event(), threading.Event()

        def slowly(send):
            asked.set()
            answered.wait(20)
            return send()

        spy.next(slowly, LEASE_REVOKE)
        claim = claim_of(ttl=4, wait=True)
        queued(backend, claim)
        session = backend._sessions.get(4, soon())
        backend._sessions.forget(backend._sessions.make(30, soon()))
        assert asked.wait(10)
        asked_at = session.sent_at
        wait_until(lambda: session.sent_at > asked_at, "the keep-alive of the waiter")
        answered.set()


def test_a_lease_that_was_given_back_is_not_waited_for(etcd_url):
    """No answer is taken for it any more, so that none would come."""
    with opened(etcd_url) as backend:
        session = backend._sessions.make(30, soon())
        backend._sessions.forget(session)
        assert not backend._sessions.prove(session, now(), soon(60))


def test_who_gave_up_waiting_leaves_no_key(shared_etcd, etcd_url):
    """etcd#10111"""
    with distlock.connect(etcd_url) as other, distlock.connect(etcd_url) as locks, other.lock("k"):
        with pytest.raises(AcquireTimeout):
            locks.lock("k").acquire(timeout=2)  # of which the first answer may take some
        wait_until(lambda: len(queue_of(shared_etcd, "k")) == 1, "its key to go")


def test_who_does_not_come_when_it_is_its_turn_is_passed_over_and_queues_anew(shared_etcd, etcd_url):
    with opened(etcd_url) as other, opened(etcd_url) as backend:
        held, claim = granted(other, claim_of()), claim_of(wait=True)
        subscription = backend.watch(queued(backend, claim), lambda: None, soon())
        next_claim, woken = claim_of(wait=True), threading.Event()
        other.watch(queued(other, next_claim), woken.set, soon())
        other.release(held, soon())
        assert woken.wait(10)
        grant = granted(other, next_claim)
        assert isinstance(backend.acquire(claim, soon()), Busy)
        other.release(grant, soon())
        assert granted(backend, claim).token > grant.token
        subscription.close()


# Watches.


def test_a_waiter_hears_of_it_though_the_revision_it_watches_from_is_compacted(shared_etcd, etcd_proxy, etcd_url):
    """python-etcd3#1227"""
    with opened(etcd_url) as other, opened(by_way_of(etcd_proxy)) as backend:
        held, claim, woken = granted(other, claim_of()), claim_of(wait=True), threading.Event()
        busy = queued(backend, claim)
        shared_etcd.put("another", "1")
        shared_etcd.put("another", "2")
        shared_etcd.compact()
        subscription = backend.watch(busy, woken.set, soon())
        assert woken.wait(10)
        woken.clear()
        queued(backend, claim)
        other.release(held, soon())
        assert woken.wait(10)
        assert isinstance(backend.acquire(claim, soon()), Grant)
        subscription.close()


def test_a_watch_that_breaks_goes_on_where_it_was(etcd_proxy, etcd_url):
    with opened(etcd_url) as other, opened(by_way_of(etcd_proxy)) as backend:
        held, claim, woken = granted(other, claim_of()), claim_of(wait=True), threading.Event()
        made = watch_made(backend._watches)
        subscription = backend.watch(queued(backend, claim), woken.set, soon())
        assert made.wait(20)
        etcd_proxy.reset_all()
        assert woken.wait(10)  # by the break: it may look what is wrong
        queued(backend, claim)
        woken.clear()
        other.release(held, soon())
        assert woken.wait(10)
        granted(backend, claim)
        subscription.close()


def test_a_release_while_the_watch_is_broken_is_not_missed(etcd_proxy, etcd_url):
    with opened(etcd_url) as other, opened(by_way_of(etcd_proxy)) as backend:
        held, claim, wakes = granted(other, claim_of()), claim_of(wait=True), list[int]()
        made = watch_made(backend._watches)
        subscription = backend.watch(queued(backend, claim), partial(wakes.append, 1), soon())
        assert made.wait(20)
        etcd_proxy.pause()
        etcd_proxy.reset_all()
        wait_until(lambda: wakes, "the break to be noticed")
        other.release(held, soon())
        before = len(wakes)
        etcd_proxy.resume()
        wait_until(lambda: len(wakes) > before, "the news")
        wait_until(lambda: isinstance(backend.acquire(claim, soon()), Grant), "the grant")
        subscription.close()


def test_holders_and_waiters_outlive_a_line_that_went_dead_without_a_word(etcd_proxy, etcd_url):
    """Half open: nothing passes any more, and nobody says so. grpc's pings find it out after nine seconds at most."""
    with distlock.connect(etcd_url) as other, distlock.connect(by_way_of(etcd_proxy)) as locks:
        held, lease = other.lock("k", ttl=60).acquire(), locks.lock("another", ttl=15).acquire()
        got: list[distlock.Lease] = []
        thread = threading.Thread(target=lambda: got.append(locks.lock("k").acquire(timeout=40)), daemon=True)
        thread.start()
        wait_until(lambda: other.inspect("k").waiters, "it to queue")
        etcd_proxy.silence_all()
        time.sleep(3)
        held.release()
        thread.join(40)
        assert got[0].ensure_held() > held.token
        assert lease.ensure_held() == lease.token
        got[0].release()
        lease.release()


def test_nothing_is_left_of_many_that_waited(etcd_url):
    with distlock.connect(etcd_url) as locks, locks.lock("k"):

        def wait(_: int) -> None:
            with pytest.raises(AcquireTimeout):
                locks.lock("k").acquire(timeout=2)

        in_threads(10, wait)
        backend = backend_of(locks)
        # On a slow machine a request may not be answered by then: its claim is withdrawn in the background.
        wait_until(lambda: len(backend._places.all()) == 1, "all others to be forgotten")
        assert not backend._watches._targets
        assert not backend._watches._claims
        assert all(not session.waiters for session in backend._sessions._current.values())
