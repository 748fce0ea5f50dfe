"""Work that is done once, by way of etcd: what it asks, the leases of its records, and what stands in a line's way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import distlock
from distlock import Manager, ResultUnavailable
from distlock.backends.base import BackendUnavailable, Claim, Done, Grant
from distlock.backends.etcd import _backend, _results
from distlock.backends.etcd._client import Answer
from distlock.backends.etcd._results import EtcdResults
from distlock.backends.etcd._rpc import LEASE_GRANT

from .backend_tools import claim_of, granted, queued, soon
from .etcd_backend_tools import Spy, in_threads, names_of_leases, opened
from .etcd_servers import EtcdCluster, EtcdServer
from .etcd_tools import ROOT, folder_of
from .programs import wait_until

RECORDS = f"{ROOT}~results/default+once/"
WITHDRAWN = f"{ROOT}~withdrawn/"
KEEP = 600.0


@contextmanager
def kept(url: str) -> Iterator[tuple[EtcdResults, Spy]]:
    """A store of results, which is spied on."""
    with opened(url) as backend:
        results = backend.results()
        assert isinstance(results, EtcdResults)
        try:
            yield results, Spy(results)
        finally:
            results.close()


@contextmanager
def connected(url: str) -> Iterator[tuple[Manager, Spy]]:
    """The same, below a manager."""
    with distlock.connect(url) as locks:
        yield locks, Spy(results_of(locks))


def results_of(locks: Manager) -> EtcdResults:
    backend = locks.results_manager()._backend
    assert isinstance(backend, EtcdResults)
    return backend


def do(locks: Manager, key: str = "k", result: object = "done", **terms: Any) -> object:
    """What whoever wants the work done gets."""
    with locks.once(key, ttl=KEEP, **terms) as work:
        return work.result if work.replayed else work.complete(result)


def done(backend: EtcdResults, claim: Claim) -> Done:
    outcome = backend.acquire(claim, soon())
    assert isinstance(outcome, Done)
    return outcome


def complete(backend: EtcdResults, grant: Grant, record: bytes = b"done", keep: float = KEEP) -> bool:
    return backend.complete(grant, record, keep, soon())


def line_of(server: EtcdServer, key: str = "k") -> list[str]:
    """The keys of those who want to do the work."""
    return server.keys(folder_of(key, "default+once"))


def leases_of_records(server: EtcdServer) -> list[int]:
    """How many records each of them has."""
    leases = names_of_leases(server).values()
    return sorted(len(keys) for keys in leases if any(key.startswith(RECORDS) for key in keys))


def remembers_nothing(backend: EtcdResults) -> bool:
    """Of claims."""
    waiters = [session.waiters for session in backend._sessions._known.values()]
    return not (backend._places.all() or backend._watches._targets or any(waiters))


# What it asks.


def test_the_first_call_costs_two_requests_and_a_replay_one(etcd_url: str) -> None:
    with connected(etcd_url) as (locks, spy):
        do(locks, "before")
        assert spy.asked == ["LeaseGrant", "Txn", "LeaseGrant", "Txn"]
        spy.asked.clear()
        assert do(locks, "k", 1) == 1
        assert spy.asked == ["Txn", "Txn"]
        assert do(locks, "k", 2) == 1
        assert spy.asked == ["Txn"] * 3


def test_all_who_wait_are_told_by_their_watches_and_ask_once() -> None:
    """In transactions that do not grow with the line."""
    with EtcdServer("--max-txn-ops", "8") as server, kept(server.url) as (backend, spy):
        grant = granted(backend, claim_of())
        waiters = [claim_of(wait=True) for _ in range(100)]
        told = [threading.Event() for _ in waiters]
        for claim, event in zip(waiters, told, strict=True):
            backend.watch(queued(backend, claim), event.set, soon())
        assert len(line_of(server)) == 101
        spy.asked.clear()
        assert complete(backend, grant)
        for event in told:
            assert event.wait(20)
        assert {done(backend, claim).record for claim in waiters} == {b"done"}
        # Those of whom it was not heard within a second of their turn are looked after, one request each.
        assert spy.asked.count("Txn") >= 101
        wait_until(lambda: remembers_nothing(backend), "all of them to be gone")
        assert server.keys(ROOT) == [f"{RECORDS}k"]


def test_all_who_watch_too_late_are_looked_after_though_the_server_takes_few_operations_at_once() -> None:
    with EtcdServer("--max-txn-ops", "8") as server, kept(server.url) as (backend, _):
        grant = granted(backend, claim_of())
        places = [queued(backend, claim_of(wait=True)) for _ in range(100)]
        assert complete(backend, grant)
        told = [threading.Event() for _ in places]
        for busy, event in zip(places, told, strict=True):
            backend.watch(busy, event.set, soon())
        for event in told:
            assert event.wait(20)


def test_a_waiter_costs_two_requests(etcd_url: str) -> None:
    with kept(etcd_url) as (backend, spy):
        assert complete(backend, granted(backend, claim_of("warm up")))
        grant, claim = granted(backend, claim_of()), claim_of(wait=True)
        queued(backend, claim_of(wait=True))
        spy.asked.clear()
        queued(backend, claim)
        assert complete(backend, grant)
        done(backend, claim)
        assert spy.asked == ["Txn"] * 3, "one of them the holder's"


# Who comes to nothing.


def test_whoever_waits_behind_completed_work_is_never_let_in(shared_etcd: EtcdServer, etcd_url: str) -> None:
    """Whatever it has heard, and whatever has become of its place."""
    with kept(etcd_url) as (backend, _):
        grant = granted(backend, claim_of())
        plain, passed_over, ended, alone = claims = [
            *(claim_of(wait=True) for _ in range(3)),
            claim_of(wait=True, renewed=False),
        ]
        for claim in claims:
            queued(backend, claim)
        assert complete(backend, grant)
        place = backend._places.find(passed_over.id)
        assert place is not None
        place.passed_over = True
        assert done(backend, plain).record == b"done"
        assert done(backend, passed_over).record == b"done"
        place = backend._places.find(ended.id)
        assert place is not None
        assert place.session is not None
        backend._sessions._end(place.session)
        assert done(backend, ended).record == b"done"
        assert done(backend, alone).record == b"done"
        assert remembers_nothing(backend)
        assert shared_etcd.keys(ROOT) == [f"{RECORDS}k"]


def test_leases_of_claims_that_found_the_work_done_are_given_back(shared_etcd: EtcdServer, etcd_url: str) -> None:
    """tooz kept one lease for each attempt."""
    with kept(etcd_url) as (backend, _):
        first = claim_of(renewed=False)
        waiter = claim_of(wait=True, renewed=False)
        grant = granted(backend, first)
        queued(backend, waiter)
        assert complete(backend, grant)
        done(backend, waiter)
        for _ in range(20):
            done(backend, claim_of(renewed=False))
        # The waiters' lease is shared, and the record's.
        wait_until(lambda: len(shared_etcd.leases()) == 2, "their own to be revoked")
        assert leases_of_records(shared_etcd) == [1]


@pytest.mark.parametrize("unanswered", [True, False])
def test_a_request_that_comes_after_the_record_is_gone_comes_to_nothing(
    shared_etcd: EtcdServer, etcd_url: str, unanswered: bool
) -> None:
    """One that was not answered, or was sent again at another member."""
    with kept(etcd_url) as (backend, spy), kept(etcd_url) as (other, _):
        claim = claim_of()
        late = spy.hold_back() if unanswered else []
        if unanswered:
            with pytest.raises(BackendUnavailable):
                backend.acquire(claim, soon())
        assert complete(other, granted(other, claim_of()))
        if not unanswered:
            late = spy.send_twice()
        assert done(backend, claim).in_flight
        comes_to_nothing(shared_etcd, other, late[0])


def test_a_request_that_comes_after_its_work_is_done_and_forgotten_comes_to_nothing(
    shared_etcd: EtcdServer, etcd_url: str
) -> None:
    with kept(etcd_url) as (backend, spy):
        late = spy.send_twice()
        assert complete(backend, granted(backend, claim_of()))
        comes_to_nothing(shared_etcd, backend, late[0])
        assert remembers_nothing(backend)


def comes_to_nothing(server: EtcdServer, backend: EtcdResults, late: Callable[[], object]) -> None:
    """Neither while there is a record, nor then."""
    late()
    assert line_of(server) == []
    wait_until(lambda: server.keys(WITHDRAWN), "it to be withdrawn")
    assert backend.forget("k", soon())
    late()
    assert line_of(server) == []


def test_after_a_compaction_a_waiter_finds_the_record(shared_etcd: EtcdServer, etcd_url: str) -> None:
    """What it wants to watch from is forgotten when the watch begins."""
    with kept(etcd_url) as (backend, _), kept(etcd_url) as (other, _):
        grant = granted(other, claim_of())
        waiters = [claim_of(wait=True) for _ in range(3)]
        busy = [queued(backend, claim) for claim in waiters]
        assert complete(other, grant)
        shared_etcd.compact()
        for claim, each in zip(waiters, busy, strict=True):
            told = threading.Event()
            subscription = backend.watch(each, told.set, soon())
            assert told.wait(20)
            assert done(backend, claim).record == b"done"
            subscription.close()
        assert remembers_nothing(backend)


# Completing.


def test_a_completion_without_an_answer_finds_its_own_record(shared_etcd: EtcdServer, etcd_url: str) -> None:
    with kept(etcd_url) as (backend, spy):
        grant = granted(backend, claim_of())
        spy.lose_reply()
        with pytest.raises(BackendUnavailable):
            complete(backend, grant)
        assert complete(backend, grant, b"again")
        assert complete(backend, grant, b"and again")  # nothing is known of the claim any more
        assert done(backend, claim_of()).record == b"done"
        assert remembers_nothing(backend)
        assert line_of(shared_etcd) == []


def test_a_completion_that_is_sent_twice_is_one(etcd_url: str) -> None:
    with kept(etcd_url) as (backend, spy):
        grant = granted(backend, claim_of())
        late = spy.send_twice()
        assert complete(backend, grant)
        assert backend.forget("k", soon())
        late[0]()
        assert backend.recorded("k", soon()) is None, "the key it compares is gone"


def test_who_has_lost_the_claim_completes_nothing(shared_etcd: EtcdServer, etcd_url: str) -> None:
    with kept(etcd_url) as (backend, _), kept(etcd_url) as (other, _):
        first = granted(backend, claim_of())
        assert other.revoke("k", first.token, soon())
        assert not complete(backend, first, b"first")
        assert backend.recorded("k", soon()) is None
        first, slower = granted(backend, claim_of()), granted(backend, claim_of("slower"))
        assert other.revoke("k", first.token, soon())
        assert other.revoke("slower", slower.token, soon())
        second = granted(other, claim_of())
        assert not complete(backend, first, b"first")
        assert len(line_of(shared_etcd)) == 1
        assert complete(other, second, b"second")
        assert not complete(backend, first, b"first")  # nothing is known of its claim any more
        assert done(backend, claim_of()).record == b"second"
        assert complete(other, granted(other, claim_of("slower")), b"second")
        assert not complete(backend, slower, b"first")
        assert remembers_nothing(backend)


def test_a_key_of_the_same_name_that_came_later_is_another(shared_etcd: EtcdServer, etcd_url: str) -> None:
    """Its create revision is compared, as etcd#22082 should have."""
    with kept(etcd_url) as (backend, _):
        grant = granted(backend, claim_of())
        (key,) = line_of(shared_etcd)
        shared_etcd.delete(key)
        shared_etcd.put(key, "another")
        assert not complete(backend, grant)
        assert line_of(shared_etcd) == [key]
        assert backend.recorded("k", soon()) is None


def test_a_member_that_dies_in_the_middle_of_it_leaves_it_done_once(etcd_cluster: EtcdCluster) -> None:
    """Before it has heard of it, and after it has done it, without a word."""
    cluster = etcd_cluster
    for key, reached in (("before", False), ("after", True)):
        with connected(cluster.url) as (locks, spy), distlock.connect(cluster.url) as other:
            do(locks, "warm up")

            def die(send: Callable[[], Answer[Any]]) -> Answer[Any]:
                """Of the cluster, whoever leads it."""
                if reached:  # noqa: B023 - called in this very turn
                    send()
                cluster.kill(cluster.leader())
                if reached:  # noqa: B023
                    raise BackendUnavailable("the line is cut", backend="etcd", sent=True)
                return send()

            with locks.once(key, ttl=KEEP) as work:
                spy.next(die)
                if reached:
                    with pytest.raises(ResultUnavailable, match="in the background"):
                        work.complete("paid")
                else:
                    assert work.complete("paid") == "paid"
            assert do(other, key, "again") == "paid"
            wait_until(lambda: remembers_nothing(results_of(locks)), "it to be known here too")
            cluster.heal()


@pytest.mark.parametrize("size", [1_700_000, 3_000_000])
def test_a_result_that_is_too_large_for_etcd_is_of_work_that_is_done(etcd_url: str, size: int) -> None:
    """More than it takes into its log, and more than it takes in at all."""
    with connected(etcd_url) as (locks, _):
        assert do(locks, "smaller", "x" * 1_000_000, limit=10**7)
        with pytest.raises(ResultUnavailable) as caught:
            do(locks, result="x" * size, limit=10**7)
        assert caught.value.result == "x" * size
        with pytest.raises(ResultUnavailable, match="was done before"):
            do(locks)
        assert len(str(do(locks, "smaller"))) == 1_000_000


# The leases of records.


def test_records_share_a_lease(shared_etcd: EtcdServer, etcd_url: str) -> None:
    with kept(etcd_url) as (backend, spy):
        for number in range(20):
            assert complete(backend, granted(backend, claim_of(f"n{number}")))
        assert leases_of_records(shared_etcd) == [20]
        assert spy.asked.count("LeaseGrant") == 2, "and that of the claims"
        for number in range(3):
            assert complete(backend, granted(backend, claim_of(f"longer{number}")), keep=2 * KEEP)
        assert leases_of_records(shared_etcd) == [3, 20]


def test_threads_that_complete_at_once_share_one(shared_etcd: EtcdServer, etcd_url: str) -> None:
    with kept(etcd_url) as (backend, _):
        grants = [granted(backend, claim_of(f"n{number}")) for number in range(8)]
        in_threads(8, lambda number: complete(backend, grants[number]))
        assert leases_of_records(shared_etcd) == [8]


def test_no_lease_has_more_records_than_etcd_deletes_at_once(
    shared_etcd: EtcdServer, etcd_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_results, "MOST", 5)
    with kept(etcd_url) as (backend, _):
        for number in range(12):
            assert complete(backend, granted(backend, claim_of(f"n{number}")))
        assert leases_of_records(shared_etcd) == [2, 5, 5]


@pytest.mark.parametrize("keep", [0.1, 5.0, 16.0, 600.5, 86400.0])
def test_a_record_is_kept_as_long_as_asked_and_not_much_longer(
    shared_etcd: EtcdServer, etcd_url: str, keep: float
) -> None:
    with kept(etcd_url) as (backend, _):
        assert complete(backend, granted(backend, claim_of()), keep=keep)
        (lease,) = backend._leases._current.values()
        length = int(shared_etcd.call("lease/timetolive", ID=lease.id)["grantedTTL"])
        assert keep + 1 <= length <= keep * 17 / 16 + 2
        # It is good for as long as what is left of it is enough.
        lease.ends_at -= length - keep
        assert complete(backend, granted(backend, claim_of("later")), keep=keep)
        (other,) = backend._leases._current.values()
        assert other.id != lease.id


def test_those_that_ttl_after_ttl_are_for_are_not_remembered(etcd_url: str) -> None:
    with kept(etcd_url) as (backend, _):
        for number in range(5):
            assert complete(backend, granted(backend, claim_of(f"n{number}")), keep=KEEP + 10 * number)
            for lease in backend._leases._current.values():
                lease.ends_at -= KEEP / 8
        assert len(backend._leases._current) == 1


def test_a_lease_that_is_gone_is_replaced(shared_etcd: EtcdServer, etcd_url: str) -> None:
    with kept(etcd_url) as (backend, _):
        assert complete(backend, granted(backend, claim_of("a")))
        (lease,) = backend._leases._current.values()
        shared_etcd.revoke(lease.id)
        assert complete(backend, granted(backend, claim_of("b")))
        assert leases_of_records(shared_etcd) == [1]
        assert list(backend.records("", soon())) == ["b"]


def test_a_lease_without_an_answer_is_asked_for_again(shared_etcd: EtcdServer, etcd_url: str) -> None:
    with kept(etcd_url) as (backend, spy):
        grant = granted(backend, claim_of())
        spy.lose_reply(LEASE_GRANT)
        with pytest.raises(BackendUnavailable):
            complete(backend, grant)
        assert complete(backend, grant)
        assert len(shared_etcd.leases()) == 2, "and that of the claims"


def test_a_record_outlives_who_wrote_it(shared_etcd: EtcdServer, etcd_url: str) -> None:
    with distlock.connect(etcd_url) as locks:
        do(locks, result="paid")
    assert shared_etcd.keys(ROOT) == [f"{RECORDS}k"]
    with distlock.connect(etcd_url) as locks:
        assert do(locks, result="again") == "paid"
        operation = locks.results.get("k")
        assert operation is not None
        assert operation.expires_in is not None
        assert KEEP <= operation.expires_in <= KEEP * 17 / 16 + 2


# Keys.


def test_many_records_are_listed_in_pages(etcd_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "PAGE", 3)
    names = {*(f"a/{number}" for number in range(8)), "a", "b%2F", "é", "\0"}
    with kept(etcd_url) as (backend, _):
        for name in names:
            assert complete(backend, granted(backend, claim_of(name)))
        assert sorted(backend.records("", soon())) == sorted(names)
        assert sorted(backend.records("a/", soon())) == sorted(f"a/{number}" for number in range(8))
        assert list(backend.records("none", soon())) == []


def test_no_work_is_in_the_line_of_another(shared_etcd: EtcdServer, etcd_url: str) -> None:
    """In the locks' raw layout a name may begin with another's and a slash. A line is deleted by its prefix."""
    with kept(f"{etcd_url}?layout=raw") as (backend, _), kept(etcd_url) as (encoded, _):
        inner, outer = granted(backend, claim_of("a/b")), granted(backend, claim_of("a"))
        assert complete(backend, outer)
        assert len(line_of(shared_etcd, "a/b")) == 1
        assert complete(backend, inner)
        assert sorted(encoded.records("a", soon())) == ["a", "a/b"], "they are the same for all"


def test_a_record_of_a_format_that_is_not_known_stands_for_work_that_is_done(
    shared_etcd: EtcdServer, etcd_url: str
) -> None:
    for key, value in (("newer", "2 what comes"), ("empty", ""), ("torn", "1")):
        shared_etcd.put(f"{RECORDS}{key}", value)
        with distlock.connect(etcd_url) as locks, pytest.raises(ResultUnavailable, match="cannot be read"):
            do(locks, key)
        assert shared_etcd.delete(f"{RECORDS}{key}")


def test_whoever_may_write_to_the_locks_may_write_to_their_results() -> None:
    with EtcdServer(users={"app": ("s3cret", ROOT)}) as server, distlock.connect(server.url) as locks:
        assert do(locks, result="paid") == "paid"
        assert do(locks, result="again") == "paid"
        assert [each.key for each in locks.results.list()] == ["k"]
        assert locks.results.forget("k")
