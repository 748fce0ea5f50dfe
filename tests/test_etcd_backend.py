"""What locks on etcd ask of it, and what they leave there."""

from __future__ import annotations

import threading
from functools import partial

import grpc
import pytest

import distlock
from distlock import BackendError, BackendUnavailable, LeaseState, Unsupported
from distlock.backends.base import Claim
from distlock.backends.etcd import _backend, _values
from distlock.backends.etcd._client import Answer
from distlock.backends.etcd._errors import _answered
from distlock.backends.etcd._rpc import LEASE_GRANT

from .backend_tools import claim_of, granted, queued, soon, tells_its_waiters_that_it_was_closed
from .etcd_backend_tools import names_of_leases, opened, spied, watch_made
from .etcd_servers import EtcdServer
from .etcd_tools import folder_of, queue_of
from .programs import wait_until

# How many requests.


def test_a_try_on_a_taken_lock_takes_one_request_and_leaves_nothing(shared_etcd, etcd_url):
    """tooz: each failed try left a lease."""
    with opened(etcd_url) as other, spied(etcd_url) as (backend, spy):
        granted(other, claim_of())
        queued(backend, claim_of())
        spy.asked.clear()
        for _ in range(100):
            queued(backend, claim_of())
        assert spy.asked == ["Txn"] * 100
        assert len(queue_of(shared_etcd, "k")) == 1
        assert len(shared_etcd.leases()) == 2


@pytest.mark.usefixtures("nobody_passed_over")
def test_a_place_in_the_queue_takes_one_request_and_so_does_the_hand_over(etcd_url):
    with opened(etcd_url) as other, spied(etcd_url) as (backend, spy):
        held = granted(other, claim_of())
        first = claim_of(wait=True)
        queued(backend, first)
        backend.withdraw(first, soon(), in_flight=False)
        spy.asked.clear()
        claim, woken = claim_of(wait=True), threading.Event()
        busy = queued(backend, claim)
        assert spy.asked == ["Txn"]
        backend.watch(busy, woken.set, soon())
        assert not woken.wait(0.2)
        other.release(held, soon())
        assert woken.wait(10)
        assert granted(backend, claim).token > held.token
        assert spy.asked == ["Txn"] * 2


@pytest.mark.usefixtures("nobody_passed_over")
def test_waiters_ask_nothing_until_it_is_their_turn(etcd_url, monkeypatch):
    """No herd: one release wakes one waiter, and the others are asleep."""
    monkeypatch.setattr(_values, "LONGEST_WAIT", 30)  # ten seconds until a second look
    with opened(etcd_url) as other, spied(etcd_url) as (backend, spy):
        held = granted(other, claim_of())
        woken: list[str] = []
        claims = [claim_of(wait=True) for _ in range(50)]
        made = watch_made(backend._watches)
        for claim in claims:
            made.clear()
            backend.watch(queued(backend, claim), partial(woken.append, claim.id), soon())
            assert made.wait(20)  # before anybody else writes: who may have missed something asks
        spy.asked.clear()
        other.release(held, soon())
        wait_until(lambda: woken, "the first to be woken")
        grant = granted(backend, claims[0])
        backend.withdraw(claims[25], soon(), in_flight=False)
        wait_until(lambda: len(woken) > 1, "the one behind to be woken")
        queued(backend, claims[26])
        assert woken == [claims[0].id, claims[26].id]
        assert spy.asked == ["Txn"] * 3
        backend.release(grant, soon())
        wait_until(lambda: len(woken) > 2, "the second to be woken")
        assert woken[2:] == [claims[1].id]


# Requests that come late, replies that do not come.


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("wait", [False, True])
def test_what_comes_after_its_withdrawal_comes_to_nothing(shared_etcd, etcd_url, wait, taken):
    """A member that was frozen carries it out when it thaws, however long that takes."""
    with spied(etcd_url) as (backend, spy):
        other = granted(backend, claim_of("k" if taken else "other"))
        backend._sessions.get(10, soon())
        claim = claim_of(wait=wait)
        late = spy.hold_back()
        with pytest.raises(BackendUnavailable):
            backend.acquire(claim, soon())
        backend.withdraw(claim, soon(), in_flight=True)
        late[0]()
        assert len(queue_of(shared_etcd, "k")) == taken
        with pytest.raises(BackendError, match="withdrawn"):
            backend.acquire(claim, soon())
        assert backend.renew([other], soon())[0].state is LeaseState.HELD


def test_a_claim_that_was_withdrawn_while_its_lease_was_granted_does_not_enter(shared_etcd, etcd_url):
    with spied(etcd_url) as (backend, spy):
        claim = claim_of()

        def withdrawn_meanwhile(send):
            backend.withdraw(claim, soon(0.1), in_flight=True)
            return send()

        spy.next(withdrawn_meanwhile, LEASE_GRANT)
        with pytest.raises(BackendError, match="withdrawn"):
            backend.acquire(claim, soon())
        assert "Txn" not in spy.asked
        assert queue_of(shared_etcd, "k") == []


def test_an_error_of_a_lease_names_the_lock_that_it_was_for(etcd_url):
    with spied(etcd_url) as (backend, spy):
        spy.hold_back(LEASE_GRANT)
        with pytest.raises(BackendUnavailable) as caught:
            backend.acquire(claim_of("orders"), soon())
        assert caught.value.key == "orders"


def test_a_claim_that_was_perhaps_passed_over_is_not_deleted_when_it_holds(shared_etcd, etcd_url):
    """The request to pass it over may be carried out at any time: by then it is not the key that it was."""
    with spied(etcd_url) as (backend, spy):
        holder, claim = granted(backend, claim_of()), claim_of(wait=True)
        queued(backend, claim)
        late = spy.hold_back()
        backend._entrance._pass_over(claim.id, soon())
        queued(backend, claim)
        backend.release(holder, soon())
        grant = granted(backend, claim)
        late[0]()
        assert len(queue_of(shared_etcd, "k")) == 1
        assert backend.release(grant, soon())


def test_a_request_that_used_up_the_quota_may_have_been_carried_out():
    """etcd applies it, and raises the alarm then. And what grpc breaks off is no answer."""
    said = {"etcdserver: mvcc: database space exceeded": BackendError, "Stream removed": BackendUnavailable}
    for text, kind in said.items():
        error = _answered(grpc.StatusCode.UNKNOWN, text, "etcd://h", "k")
        assert type(error) is kind
        assert error.sent


def test_what_withdraws_a_late_claim_ends_with_the_lease_that_it_could_use(shared_etcd, etcd_url):
    with spied(etcd_url) as (backend, spy):
        claim = claim_of(ttl=4)
        late = spy.hold_back()
        with pytest.raises(BackendUnavailable):
            backend.acquire(claim, soon())
        (lease,) = shared_etcd.leases()
        backend.withdraw(claim, soon(), in_flight=True)
        assert len(shared_etcd.lease_keys(lease)) == 1

        def ended() -> bool:  # though others go on, under another lease
            backend.release(granted(backend, claim_of("another", ttl=4)), soon())
            return lease not in shared_etcd.leases()

        wait_until(ended, "its lease to end")
        assert shared_etcd.keys("distlock/~") == []
        with pytest.raises(BackendError, match="no such lease"):
            late[0]()
        assert queue_of(shared_etcd, "k") == []


def test_a_late_claim_is_withdrawn_under_every_lease_that_it_was_asked_for_with(shared_etcd, etcd_url):
    with spied(etcd_url) as (backend, spy):
        granted(backend, claim_of("keeps the first lease"))
        first, second = claim_of(), claim_of("another")
        for claim in (first, second):
            spy.hold_back()
            with pytest.raises(BackendUnavailable):
                backend.acquire(claim, soon())
        backend.withdraw(second, soon(), in_flight=True)
        assert backend.release(granted(backend, first), soon())
        tombs = [key.rpartition("/")[2] for key in shared_etcd.keys(f"distlock/~withdrawn/default/{first.id}/")]
        assert sorted(tombs) == sorted(f"{lease:x}" for lease in shared_etcd.leases())
        assert len(tombs) == 2


def test_a_try_that_was_sent_twice_and_found_the_lock_taken_takes_it_not_later(shared_etcd, etcd_url):
    with opened(etcd_url) as other, spied(etcd_url) as (backend, spy):
        held = granted(other, claim_of())
        late = spy.send_twice()
        queued(backend, claim_of())
        wait_until(lambda: shared_etcd.keys("distlock/~"), "the claim to be withdrawn")
        other.release(held, soon())
        late[0]()
        assert queue_of(shared_etcd, "k") == []


def test_a_grant_that_was_sent_twice_is_not_taken_again_after_its_release(shared_etcd, etcd_url):
    with spied(etcd_url) as (backend, spy):
        late = spy.send_twice()
        grant = granted(backend, claim_of())
        assert grant.in_flight
        assert backend.release(grant, soon())
        late[0]()
        assert queue_of(shared_etcd, "k") == []


@pytest.mark.parametrize("taken", [False, True])
def test_a_lost_reply_leads_to_the_same_key(shared_etcd, etcd_url, taken):
    with opened(etcd_url) as other, spied(etcd_url) as (backend, spy):
        held = granted(other, claim_of()) if taken else None
        claim = claim_of(wait=True)
        granted(backend, claim_of("warm"))
        backend._sessions.get(10, soon())
        spy.lose_reply()
        with pytest.raises(BackendUnavailable):
            backend.acquire(claim, soon())
        (*_, own) = before = queue_of(shared_etcd, "k")
        if held is not None:
            queued(backend, claim)
            other.release(held, soon())
        assert granted(backend, claim).claim is claim
        assert own in before
        assert queue_of(shared_etcd, "k") == [own]


def test_a_release_without_a_reply_has_released(etcd_url):
    with spied(etcd_url) as (backend, spy):
        grant = granted(backend, claim_of())
        spy.lose_reply()
        with pytest.raises(BackendUnavailable):
            backend.release(grant, soon())
        backend.withdraw(grant.claim, soon(), in_flight=True)
        granted(backend, claim_of())


def test_a_release_that_was_sent_twice_has_released(etcd_url):
    with spied(etcd_url) as (backend, spy):
        grant = granted(backend, claim_of())

        def twice(send):
            send()
            return Answer(send().value, again=True)

        spy.next(twice)
        assert backend.release(grant, soon())


def test_a_release_of_what_is_gone_says_so(shared_etcd, etcd_url):
    with opened(etcd_url) as backend:
        grant = granted(backend, claim_of())
        shared_etcd.delete(queue_of(shared_etcd, "k")[0])
        other = granted(backend, claim_of())
        assert not backend.release(grant, soon())
        assert backend.release(other, soon())
        assert not backend._places._places


def test_a_release_that_comes_late_leaves_the_next_key_alone(shared_etcd, etcd_url):
    """etcd#22082: the delete of an older holder removed the newer key of the same session."""
    with spied(etcd_url) as (backend, spy):
        grant = granted(backend, claim_of())
        late = spy.hold_back()
        with pytest.raises(BackendUnavailable):
            backend.release(grant, soon())
        backend.withdraw(grant.claim, soon(), in_flight=False)
        own = queue_of(shared_etcd, "k")
        newer = granted(backend, claim_of())
        late[0]()
        assert own == []
        assert len(queue_of(shared_etcd, "k")) == 1
        assert backend.release(newer, soon())


# Leases of one's own.


@pytest.mark.parametrize("taken", [False, True])
def test_a_lease_that_is_not_renewed_is_the_locks_own_and_goes_with_it(shared_etcd, etcd_url, taken):
    with opened(etcd_url) as other, opened(etcd_url) as backend:
        held = granted(other, claim_of()) if taken else None
        claim = claim_of(wait=True, renewed=False)
        if held is not None:
            woken = threading.Event()
            backend.watch(queued(backend, claim), woken.set, soon())
            other.release(held, soon())
            assert woken.wait(10)
        before = shared_etcd.leases()
        grant = granted(backend, claim)
        assert grant.deadline > soon(30 * 0.7)
        (own,) = [lease for lease, keys in names_of_leases(shared_etcd).items() if keys == queue_of(shared_etcd, "k")]
        assert own not in before
        granted(backend, claim_of("another"))
        assert len(shared_etcd.lease_keys(own)) == 1
        assert backend.release(grant, soon())
        wait_until(lambda: own not in shared_etcd.leases(), "its lease to be revoked")


def test_a_failed_try_gives_its_own_lease_back(shared_etcd, etcd_url):
    with opened(etcd_url) as other, opened(etcd_url) as backend:
        granted(other, claim_of())
        for _ in range(5):
            queued(backend, claim_of(renewed=False))
        wait_until(lambda: len(shared_etcd.leases()) == 1, "the leases to be revoked")


def test_a_lease_whose_grant_was_not_answered_is_given_back(shared_etcd, etcd_url):
    with spied(etcd_url) as (backend, spy):
        for renewed in (True, False):
            spy.lose_reply(LEASE_GRANT)
            with pytest.raises(BackendUnavailable):
                backend.acquire(claim_of(ttl=300, renewed=renewed), soon())
        wait_until(lambda: not shared_etcd.leases(), "the leases to be revoked")


def test_a_lease_that_the_server_makes_longer_is_refused_and_given_back():
    with EtcdServer("--election-timeout", "2000") as server, opened(server.url) as backend:
        for renewed in (True, False):
            with pytest.raises(Unsupported, match="of 3 s"):
                backend.acquire(claim_of(ttl=2, renewed=renewed), soon())
        assert backend.release(granted(backend, claim_of(ttl=3, wait=True)), soon())
        held, claim = granted(backend, claim_of(ttl=30)), claim_of(ttl=3, wait=True)
        queued(backend, claim)
        backend.withdraw(claim, soon(), in_flight=False)
        assert backend.release(held, soon())


# Longer ones.


def _lease_of(server: EtcdServer, key: str = "k") -> int:
    own = queue_of(server, key)[0]
    return next(lease for lease, keys in names_of_leases(server).items() if own in keys)


@pytest.mark.parametrize("renewed", [True, False])
def test_an_extended_lock_keeps_its_token_under_another_lease(shared_etcd, etcd_url, renewed):
    with opened(etcd_url) as backend:
        grant = granted(backend, claim_of(ttl=5, renewed=renewed))
        before = _lease_of(shared_etcd)
        renewal = backend.extend(grant, 60, soon())
        assert renewal.state is LeaseState.HELD
        assert soon(55) < renewal.deadline < soon(60)
        assert _lease_of(shared_etcd) != before
        inspection = backend.inspect("k", soon())
        assert inspection.holder is not None
        assert inspection.holder.token == grant.token
        assert inspection.holder.ttl is not None
        assert inspection.holder.ttl > 55
        if not renewed:
            wait_until(lambda: before not in shared_etcd.leases(), "the shorter lease to be revoked")
        assert backend.release(grant, soon())


def test_an_extension_that_comes_late_moves_nothing_back(shared_etcd, etcd_url):
    with spied(etcd_url) as (backend, spy):
        grant = granted(backend, claim_of(ttl=5))
        late = spy.hold_back()
        with pytest.raises(BackendUnavailable):
            backend.extend(grant, 60, soon())
        assert backend.extend(grant, 120, soon()).state is LeaseState.HELD
        longest = _lease_of(shared_etcd)
        late[0]()
        assert _lease_of(shared_etcd) == longest
        assert backend.release(grant, soon())
        late[0]()
        assert queue_of(shared_etcd, "k") == []


@pytest.mark.parametrize("renewed", [True, False])
def test_an_extension_whose_reply_is_lost_is_found(shared_etcd, etcd_url, renewed):
    with spied(etcd_url) as (backend, spy):
        grant = granted(backend, claim_of(ttl=5, renewed=renewed))
        spy.lose_reply()
        with pytest.raises(BackendUnavailable):
            backend.extend(grant, 60, soon())
        (renewal,) = backend.renew([grant], soon())
        assert renewal.state is LeaseState.HELD
        assert backend.extend(grant, 60, soon()).state is LeaseState.HELD
        assert backend.release(grant, soon())
        if not renewed:
            wait_until(lambda: not shared_etcd.leases(), "its leases to be revoked")


# The keys.


def test_a_name_is_one_part_of_the_key(shared_etcd, etcd_url):
    with opened(etcd_url) as backend:
        for name in ("a", "a/b", "a%2Fb", "ä\0"):
            granted(backend, claim_of(name))
            assert len(shared_etcd.keys(folder_of(name))) == 1
        assert {each.key for each in backend.list("a", soon())} == {"a", "a/b", "a%2Fb"}
        assert {each.key for each in backend.list("a/", soon())} == {"a/b"}


def test_in_the_raw_layout_a_name_is_written_as_it_is(shared_etcd, etcd_url):
    with opened(f"{etcd_url}?layout=raw") as backend:
        granted(backend, claim_of("a/b%2F"))
        (own,) = shared_etcd.keys("distlock/default/a/b%2F/")
        assert own.count("/") == 4
        assert [each.key for each in backend.list("a/", soon())] == ["a/b%2F"]


def test_another_layout_is_refused():
    with pytest.raises(distlock.ConfigurationError, match="layout is"):
        distlock.connect("etcd://h?layout=flat")


def test_who_is_not_of_distlock_is_shown_as_unknown(shared_etcd, etcd_url):
    with opened(etcd_url) as backend:
        shared_etcd.put(f"{folder_of('k')}694d")
        queued(backend, claim_of(wait=True))
        shared_etcd.put(f"{folder_of('k')}694e")
        found = backend.inspect("k", soon())
        assert str(found.holder).startswith("unknown: 694d")
        assert found.holder is not None
        assert found.holder.ttl is None
        assert [waiter.owner.partition(":")[0] for waiter in found.waiters][1:] == ["unknown"]
        assert backend.revoke("k", found.holder.token or 0, soon())
        assert not backend.revoke("k", found.holder.token or 0, soon())


def test_a_waiter_is_not_ended_by_force(etcd_url):
    with opened(etcd_url) as backend:
        granted(backend, claim_of())
        waiting = claim_of(wait=True)
        queued(backend, waiting)
        place = backend._places.find(waiting.id)
        assert place is not None
        assert not backend.revoke("k", place.revision, soon())


def test_many_locks_are_listed_in_pages(etcd_url, monkeypatch):
    monkeypatch.setattr(_backend, "PAGE", 3)
    with opened(etcd_url) as backend:
        for number in range(10):
            granted(backend, claim_of(f"n{number}"))
            queued(backend, claim_of(f"n{number}", wait=True))
        found = {each.key: len(each.waiters) for each in backend.list("n", soon())}
    assert found == {f"n{number}": 1 for number in range(10)}


# The end.


def test_closing_leaves_neither_key_nor_lease_nor_sleeper(shared_etcd, etcd_url):
    with opened(etcd_url) as backend:
        granted(backend, claim_of())
        granted(backend, claim_of("own", renewed=False))
        claim, woken = claim_of(wait=True), threading.Event()
        backend.watch(queued(backend, claim), woken.set, soon())
        backend.close()
        assert woken.is_set()
        assert (shared_etcd.keys(), shared_etcd.leases()) == ([], [])
        with pytest.raises(BackendError, match="was closed"):
            backend.acquire(claim, soon())
        backend.withdraw(claim, soon(), in_flight=True)


def test_closing_gives_back_what_was_just_released(shared_etcd, etcd_url):
    for _ in range(5):
        with opened(etcd_url) as backend:
            backend.release(granted(backend, claim_of(renewed=False)), soon())
        assert shared_etcd.leases() == []


def test_a_waiter_in_a_thread_learns_that_its_manager_was_closed(etcd_url):
    tells_its_waiters_that_it_was_closed(etcd_url)


def test_a_claim_is_as_long_as_it_asks_for(etcd_url):
    """Leases last for whole seconds; what is proven does not last longer than was asked for."""
    with opened(etcd_url) as backend:
        claim = Claim("x1", "k", 0.5, wait=False)
        assert granted(backend, claim).deadline < soon(0.5)
