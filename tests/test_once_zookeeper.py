"""Work that is done once in ZooKeeper: what it costs, and that nobody is at it who could have known that it is done."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest

import distlock
from distlock import BackendError, BackendUnavailable, LockLost, ResultUnavailable
from distlock.backends.base import Busy, Claim, Done, Grant
from distlock.backends.zookeeper import _results
from distlock.backends.zookeeper._results import ZooKeeperResults
from distlock.backends.zookeeper._work import Record, Seat
from distlock.testing.proxy import FaultProxy

from .backend_tools import claim_of, granted, queued, soon
from .programs import wait_until
from .zookeeper_backend_tools import Spy, opened, session_of
from .zookeeper_servers import ZooKeeperServer
from .zookeeper_tools import folder_of

NAMESPACE = "default+once"
KEEP = 600.0


@contextmanager
def kept(url: str, op_timeout: float = 5.0) -> Iterator[ZooKeeperResults]:
    """A store of results, which does not sweep by itself."""
    with opened(url, op_timeout) as locks:
        store = cast("ZooKeeperResults", locks.results())
        store._until_sweep, store._sweep_at = 10**9, float("inf")
        try:
            yield store
        finally:
            store.close()


@pytest.fixture
def store(shared_zookeeper: ZooKeeperServer) -> Iterator[ZooKeeperResults]:
    with kept(shared_zookeeper.url) as store:
        yield store


@pytest.fixture
def other(shared_zookeeper: ZooKeeperServer) -> Iterator[ZooKeeperResults]:
    with kept(shared_zookeeper.url) as store:
        yield store


@pytest.fixture(autouse=True)
def patient(nobody_passed_over: None) -> None:
    """These stop where those who wait in line are woken, and go on when they like."""


def complete(store: ZooKeeperResults, grant: Grant, text: bytes = b"done", keep: float = KEEP) -> bool:
    return store.complete(grant, text, keep, soon())


def do(store: ZooKeeperResults, key: str = "k", text: bytes = b"done", keep: float = KEEP) -> None:
    assert complete(store, granted(store, claim_of(key)), text, keep)


def do_briefly(store: ZooKeeperResults, key: str = "k") -> None:
    """What is over at once."""
    do(store, key, b"over", 0.001)
    wait_until(lambda: store.recorded(key, soon()) is None, "it to be over")


def done(store: ZooKeeperResults, claim: Claim) -> bytes:
    outcome = store.acquire(claim, soon())
    assert isinstance(outcome, Done)
    return outcome.record


def seat_of(store: ZooKeeperResults, claim: Claim) -> Seat:
    seat = store._places.find(claim.id)
    assert isinstance(seat, Seat)
    return seat


def folder(key: str = "k") -> str:
    return folder_of(key, NAMESPACE)


def line(server: ZooKeeperServer, key: str = "k") -> list[str]:
    return [name for name in server.children(folder(key)) if name != "result"]


def version(server: ZooKeeperServer, key: str = "k") -> int:
    stat = server.client().exists(f"{folder(key)}/result")
    assert stat is not None
    return int(stat.version)


# What it costs.


def test_the_first_takes_two_round_trips_and_a_replay_one(store: ZooKeeperResults, other: ZooKeeperResults) -> None:
    """However new the key is: of work that is done once, most are."""
    do(other, "another")
    trips: list[Sequence[str]] = []
    spy = Spy(session_of(store))
    spy.after = trips.append
    do(store)
    assert trips == [["CreateContainer", "Create2", "GetChildren", "GetData"], ["Transaction"]]
    assert done(store, claim_of()) == b"done"
    assert trips[2:] == [["CreateContainer", "Create2", "GetChildren", "GetData"]]
    wait_until(lambda: not store._places.all(), "the node of who came second to be deleted")
    assert spy.asked[9:] == ["Delete"]


def test_locks_are_no_part_of_it(shared_zookeeper: ZooKeeperServer, store: ZooKeeperResults) -> None:
    do(store)
    with distlock.connect(shared_zookeeper.url) as locks, locks.lock("k", timeout=0):
        assert [each.key for each in locks.list()] == ["k"]
    assert shared_zookeeper.children(folder()) == ["result"]


def test_results_of_locks_that_are_shared_with_kazoo_are_beside_them(shared_zookeeper: ZooKeeperServer) -> None:
    with kept(f"{shared_zookeeper.url}?layout=kazoo&path=/distlock/orders") as store:
        do(store, "42")
    assert shared_zookeeper.children("/distlock/orders+once/42") == ["result"]
    assert shared_zookeeper.children("/distlock/orders") == []


def test_those_who_wait_are_told_at_once(
    store: ZooKeeperResults, other: ZooKeeperResults, shared_zookeeper: ZooKeeperServer
) -> None:
    """By one watch, and one look at the record."""
    store._entrance._asking = True  # nobody wants to know who is at it
    grant = granted(other, claim_of())
    claims = [claim_of(wait=True) for _ in range(100)]
    woken = [threading.Event() for _ in claims]
    for claim, event in zip(claims, woken, strict=True):
        store.watch(queued(store, claim), event.set, soon())
    assert shared_zookeeper.watches() == len(claims) + 1
    spy = Spy(session_of(store))
    assert complete(other, grant)
    assert all(event.wait(20) for event in woken[1:])
    assert done(store, claims[0]) == b"done"
    wait_until(lambda: store._places.find(claims[0].id) is None, "the first of them to be gone before the next comes")
    assert {done(store, claim) for claim in claims[1:]} == {b"done"}
    wait_until(lambda: not store._places.all(), "their nodes to be deleted")
    assert "GetChildren" not in spy.asked
    assert sorted(spy.asked) == ["Delete"] * 100 + ["GetData"]
    assert line(shared_zookeeper) == []
    wait_until(lambda: shared_zookeeper.watches() == 0, "the last watch to go")


# Nobody is at it who could have known that it is done.


def test_who_is_called_looks_whether_it_is_done(
    store: ZooKeeperResults, other: ZooKeeperResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the one before it, if it was not told."""
    monkeypatch.setattr(store._entrance.board, "fired", lambda *args: None)  # type: ignore[attr-defined]
    grant, claim, woken = granted(other, claim_of()), claim_of(wait=True), threading.Event()
    store.watch(queued(store, claim), woken.set, soon())
    complete(other, grant)
    assert woken.wait(20)
    seat = seat_of(store, claim)
    assert seat.second
    assert seat.gone
    assert done(store, claim) == b"done"


def test_who_waits_in_the_session_of_who_has_done_it_is_told_too(store: ZooKeeperResults) -> None:
    grant, claim, woken = granted(store, claim_of()), claim_of(wait=True), threading.Event()
    store.watch(queued(store, claim), woken.set, soon())
    complete(store, grant)
    assert woken.wait(20)
    assert done(store, claim) == b"done"


def test_who_takes_over_from_work_that_failed_looks_first(store: ZooKeeperResults, other: ZooKeeperResults) -> None:
    first, second, third = granted(other, claim_of()), claim_of(wait=True), claim_of(wait=True)
    woken = [threading.Event(), threading.Event()]
    for claim, event in zip((second, third), woken, strict=True):
        store.watch(queued(store, claim), event.set, soon())
    other.release(first, soon())
    assert woken[0].wait(20)
    grant = granted(store, second)
    assert not woken[1].is_set()
    complete(store, grant)
    assert woken[1].wait(20)
    assert done(store, third) == b"done"


def test_what_was_done_before_the_watch_was_set_is_seen(store: ZooKeeperResults, other: ZooKeeperResults) -> None:
    grant, spy = granted(other, claim_of()), Spy(session_of(store))

    def finish(names: Any) -> None:
        if "Create2" in names:
            spy.after = lambda names: None
            complete(other, grant)

    spy.after = finish
    assert done(store, claim_of(wait=True)) == b"done"


def test_what_is_done_while_who_comes_next_tarries_is_seen(
    store: ZooKeeperResults, other: ZooKeeperResults, shared_zookeeper: ZooKeeperServer
) -> None:
    """It is done just before the watch is set, which would not call any more."""
    with kept(shared_zookeeper.url) as slow:
        grant, spy = granted(other, claim_of()), Spy(session_of(store))
        queued(slow, claim_of(wait=True))

        def finish(names: Any) -> None:
            if "Create2" in names:
                spy.after = lambda names: None
                complete(other, grant)

        spy.after = finish
        assert done(store, claim_of(wait=True)) == b"done"


def test_what_was_done_while_the_connection_was_lost_is_seen_when_it_is_back(
    other: ZooKeeperResults, shared_zookeeper: ZooKeeperServer
) -> None:
    with FaultProxy(shared_zookeeper.address) as proxy, kept(shared_zookeeper.url_at(proxy.port)) as store:
        grant, claim, woken = granted(other, claim_of()), claim_of(wait=True), threading.Event()
        store.watch(queued(store, claim), woken.set, soon())
        proxy.pause()
        proxy.reset_all()
        wait_until(lambda: not store._sessions.any()._up, "the connection to be lost")
        complete(other, grant)
        proxy.resume()
        assert woken.wait(30)
        assert done(store, claim) == b"done"


def test_a_claim_whose_creation_was_not_answered_looks_too(store: ZooKeeperResults, other: ZooKeeperResults) -> None:
    do_briefly(other)
    grant, claim = granted(other, claim_of()), claim_of(wait=True)
    Spy(session_of(store)).lose("Create2")
    with pytest.raises(BackendUnavailable):
        store.acquire(claim, soon())
    complete(other, grant)
    assert done(store, claim) == b"done"


# Completing.


def test_who_has_lost_its_session_does_not_overwrite_the_result(
    store: ZooKeeperResults, other: ZooKeeperResults, shared_zookeeper: ZooKeeperServer
) -> None:
    grant = granted(store, claim_of())
    shared_zookeeper.expire(session_of(store)._link.client_id)
    do(other, text=b"second")
    assert not complete(store, grant, b"first")
    assert done(store, claim_of()) == b"second"


def test_work_whose_session_was_lost_is_lost(shared_zookeeper: ZooKeeperServer) -> None:
    with distlock.connect(shared_zookeeper.url) as locks, distlock.connect(shared_zookeeper.url) as other:
        with pytest.raises(LockLost), locks.once("k", ttl=KEEP) as work:  # noqa: PT012 - wherever it is noticed
            backend: Any = locks.results_manager()._backend
            shared_zookeeper.expire(session_of(backend)._link.client_id)
            with other.once("k", ttl=KEEP) as again:
                assert again.complete("second") == "second"
            work.complete("first")
        with locks.once("k", ttl=KEEP) as work:
            assert work.result == "second"


def test_whose_node_was_taken_away_keeps_nothing(store: ZooKeeperResults, shared_zookeeper: ZooKeeperServer) -> None:
    grant = granted(store, claim_of())
    assert store.revoke("k", grant.token, soon())
    assert not complete(store, grant)
    assert store.recorded("k", soon()) is None
    assert not store._places.all()


def test_what_was_completed_without_an_answer_is_found(
    store: ZooKeeperResults, shared_zookeeper: ZooKeeperServer
) -> None:
    grant = granted(store, claim_of())
    Spy(session_of(store)).lose("Transaction")
    with pytest.raises(BackendUnavailable):
        complete(store, grant)
    assert store.renew([grant], soon())  # which finds nothing any more
    for _ in range(2):
        assert complete(store, grant)
    assert version(shared_zookeeper) == 0
    assert line(shared_zookeeper) == []


def test_what_was_completed_before_the_connection_was_lost_is_kept_once(shared_zookeeper: ZooKeeperServer) -> None:
    with FaultProxy(shared_zookeeper.address) as proxy:
        url = shared_zookeeper.url_at(proxy.port)
        with distlock.connect(url, op_timeout=1.0) as locks, distlock.connect(shared_zookeeper.url) as other:
            with locks.once("k", ttl=KEEP) as work:
                proxy.pause(requests=False)
                with pytest.raises(ResultUnavailable, match="in the background"):
                    work.complete("paid")
                wait_until(lambda: "result" in shared_zookeeper.children(folder()), "it to be written")
                proxy.reset_all()
                proxy.resume()
            watchdog = locks.results_manager()._watchdog
            wait_until(lambda: not watchdog._chores, "its outcome to be known")
            with other.once("k", ttl=KEEP) as work:
                assert work.result == "paid"
    assert version(shared_zookeeper) == 0


def test_what_is_over_is_replaced(store: ZooKeeperResults, shared_zookeeper: ZooKeeperServer) -> None:
    do_briefly(store)
    grant = granted(store, claim_of())
    assert seat_of(store, grant.claim).over.version == 0
    assert complete(store, grant, b"again")
    assert version(shared_zookeeper) == 1
    assert done(store, claim_of()) == b"again"


def test_who_waits_beside_what_is_over_is_told_of_what_replaces_it(
    store: ZooKeeperResults, other: ZooKeeperResults
) -> None:
    do_briefly(store)
    grant, claim, woken = granted(other, claim_of()), claim_of(wait=True), threading.Event()
    store.watch(queued(store, claim), woken.set, soon())
    complete(other, grant, b"again")
    assert woken.wait(20)
    assert done(store, claim) == b"again"


def test_what_was_deleted_or_made_behind_the_back_of_the_holder_does_no_harm(
    store: ZooKeeperResults, shared_zookeeper: ZooKeeperServer
) -> None:
    do_briefly(store)
    grant = granted(store, claim_of())
    shared_zookeeper.delete(f"{folder()}/result")
    assert complete(store, grant, b"second")
    assert done(store, claim_of()) == b"second"
    store.forget("k", soon())
    grant = granted(store, claim_of())
    shared_zookeeper.client().create(f"{folder()}/result", b"1 someone 600 x")
    assert complete(store, grant, b"third")
    assert done(store, claim_of()) == b"third"


def test_the_time_is_the_servers(store: ZooKeeperResults, monkeypatch: pytest.MonkeyPatch) -> None:
    do(store)
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert done(store, claim_of()) == b"done"
    found = store.recorded("k", soon())
    assert found is not None
    assert found[1] is not None
    assert found[1] <= KEEP


def test_a_record_that_is_too_large_is_not_sent(store: ZooKeeperResults) -> None:
    grant, spy = granted(store, claim_of()), Spy(session_of(store))
    with pytest.raises(BackendError, match="1000000"):
        complete(store, grant, bytes(_results.LARGEST))
    assert spy.asked == []
    assert complete(store, grant, bytes(_results.LARGEST - 100))
    assert len(done(store, claim_of())) == _results.LARGEST - 100


def test_work_with_a_result_that_is_too_large_is_not_done_again(shared_zookeeper: ZooKeeperServer) -> None:
    with distlock.connect(shared_zookeeper.url) as locks:
        with locks.once("k", ttl=KEEP, limit=10**7) as work, pytest.raises(ResultUnavailable):
            work.complete("x" * _results.LARGEST)
        with locks.once("k", ttl=KEEP) as work, pytest.raises(ResultUnavailable, match="too large"):
            work.result  # noqa: B018


def test_a_record_of_another_format_is_kept(store: ZooKeeperResults, shared_zookeeper: ZooKeeperServer) -> None:
    for value in (b"", b"x", b"2 abc 600 x", b"1 abc soon x"):
        shared_zookeeper.client().create(f"{folder('new')}/result", value, makepath=True)
        outcome = store.acquire(claim_of("new"), soon())
        assert isinstance(outcome, Done)
        assert (outcome.record, outcome.expires_in) == (value, None)
        assert store.forget("new", soon())


def test_a_record_is_read_as_it_was_written() -> None:
    record = Record("abc1", 0.25, b" 1\n 2 ")
    assert Record.read(record.value) == record


# Nothing is left.


def test_who_gave_up_waiting_leaves_no_watch(
    store: ZooKeeperResults, other: ZooKeeperResults, shared_zookeeper: ZooKeeperServer
) -> None:
    """Work that fails has no record ever, and a watch on it would stay for as long as the session."""
    grant = granted(other, claim_of())
    claims = [claim_of(wait=True) for _ in range(3)]
    for claim in claims:
        queued(store, claim)
    for claim in claims:
        store.withdraw(claim, soon(), in_flight=False)
    other.release(grant, soon())
    wait_until(lambda: shared_zookeeper.watches() == 0, "the watches to go")
    watchers = session_of(store)._link._client._data_watchers
    wait_until(lambda: not any(watchers.values()), "kazoo to forget them")
    assert not store._entrance.board._notices  # type: ignore[attr-defined]


def test_who_takes_over_leaves_no_watch(
    store: ZooKeeperResults, other: ZooKeeperResults, shared_zookeeper: ZooKeeperServer
) -> None:
    grant, claim, woken = granted(other, claim_of()), claim_of(wait=True), threading.Event()
    store.watch(queued(store, claim), woken.set, soon())
    other.release(grant, soon())
    assert woken.wait(20)
    store.release(granted(store, claim), soon())
    wait_until(lambda: shared_zookeeper.watches() == 0, "the watches to go")


def test_a_watch_that_has_called_just_then_is_no_error(store: ZooKeeperResults) -> None:
    """kazoo before 2.11 does not know the server's answer, which ends its thread."""
    granted(store, claim_of())
    session = session_of(store)
    life = session.alive(soon(), None)
    session.unwatch(life, f"{folder()}/result", cast("Any", object()))
    queued(store, claim_of(wait=True))
    assert session.life is life
    assert not session._link.stopped


# Sweeping.


def test_only_what_is_over_is_swept(
    store: ZooKeeperResults, other: ZooKeeperResults, shared_zookeeper: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_results, "PAGE", 2)
    for number in range(5):
        do_briefly(store, f"over {number}")
    for number in range(3):
        do(store, f"kept {number}")
    at_work = granted(other, claim_of("at work"))
    do_briefly(store, "done again")
    again = granted(other, claim_of("done again"))
    spy = Spy(session_of(store))
    store._sweep(claim_of())
    wait_until(lambda: store._tidier._jobs == [] and len(list(_records(shared_zookeeper))) == 4, "it to be swept")
    assert sorted(_records(shared_zookeeper)) == ["done again", "kept 0", "kept 1", "kept 2"]
    assert spy.asked.count("Create2") == 6  # for each that is over
    assert complete(other, at_work)
    assert complete(other, again)
    assert sorted(store.records("", soon())) == ["at work", "done again", "kept 0", "kept 1", "kept 2"]
    assert not store._places.all()


def _records(server: ZooKeeperServer) -> Iterator[str]:
    from urllib.parse import unquote

    for name in server.children(f"/distlock/{NAMESPACE}"):
        if "result" in server.children(f"/distlock/{NAMESPACE}/{name}"):
            yield unquote(name)


def test_what_was_written_anew_since_it_was_looked_at_is_not_swept(
    store: ZooKeeperResults, other: ZooKeeperResults, shared_zookeeper: ZooKeeperServer
) -> None:
    """Another sweeper was first; then the work was done again. The record has the same version."""
    do_briefly(other)
    (found,), before = store._survey(["k"], soon()), version(shared_zookeeper)
    assert found.left <= 0
    other._sweep_away(claim_of(), "k")
    do(other, text=b"again")
    assert version(shared_zookeeper) == before
    store._sweep_away(claim_of(), "k")
    assert done(store, claim_of()) == b"again"


def test_who_sweeps_leaves_nothing(
    store: ZooKeeperResults, other: ZooKeeperResults, shared_zookeeper: ZooKeeperServer
) -> None:
    do_briefly(store, "over")
    do(store, "kept")
    grant = granted(other, claim_of("at work"))
    for key in ("over", "over", "kept", "at work"):
        store._sweep_away(claim_of(), key)
    other.release(grant, soon())
    wait_until(lambda: not store._places.all(), "its claims to be gone")
    assert shared_zookeeper.nodes() == [f"/distlock/{NAMESPACE}/kept/result"]


def test_a_sweeper_that_is_cut_off_is_in_nobodys_way(
    other: ZooKeeperResults, shared_zookeeper: ZooKeeperServer
) -> None:
    do_briefly(other)
    with kept(shared_zookeeper.url) as store:
        Spy(session_of(store)).lose("Transaction")
        store._sweep(claim_of(), ["k"])
        wait_until(lambda: not store._places.all(), "its claim to be gone")
    do(other)


def test_the_first_that_is_completed_has_others_swept(
    shared_zookeeper: ZooKeeperServer, other: ZooKeeperResults
) -> None:
    do_briefly(other, "over")
    with opened(shared_zookeeper.url) as locks:
        store = cast("ZooKeeperResults", locks.results())
        do(store)
        wait_until(lambda: list(_records(shared_zookeeper)) == ["k"], "it to be swept")
        spy = Spy(session_of(store))
        do(store, "another")
        assert "SetData" not in spy.asked
        store._until_sweep = 0
        do(store, "one more")
        wait_until(lambda: "SetData" in spy.asked, "others to be looked at")
        store.close()


def test_two_do_not_both_work(store: ZooKeeperResults, other: ZooKeeperResults) -> None:
    """Of many who come at once, in two processes, one is at it, and all others have what it gave."""
    outcomes: list[object] = []

    def come(store: ZooKeeperResults) -> None:
        claim, woken = claim_of(wait=True), threading.Event()
        outcome = store.acquire(claim, soon(30))
        while isinstance(outcome, Busy):
            with_watch = store.watch(outcome, woken.set, soon(30))
            woken.wait(30)
            woken.clear()
            with_watch.close()
            outcome = store.acquire(claim, soon(30))
        if isinstance(outcome, Grant):
            complete(store, outcome, claim.id.encode())
        else:
            outcomes.append(outcome.record)

    threads = [threading.Thread(target=come, args=(each,)) for each in (store, other) * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == len(threads) - 1
    assert len(set(outcomes)) == 1
