"""One claim, one node: however often it is asked for, whatever is lost, and whoever else is in the directory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from kazoo.protocol.serialization import Create2, GetChildren
from kazoo.security import OPEN_ACL_UNSAFE

import distlock
from distlock import BackendError, BackendUnavailable, LeaseState
from distlock.backends.zookeeper import ZooKeeperBackend
from distlock.backends.zookeeper._client import Handle
from distlock.backends.zookeeper._session import Errand, Session
from distlock.backends.zookeeper._values import Layout
from distlock.testing.proxy import FaultProxy

from .backend_tools import claim_of, granted, queued, soon, tells_its_waiters_that_it_was_closed
from .programs import wait_until
from .zookeeper_backend_tools import Spy, backend_of, opened, session_of
from .zookeeper_servers import ZooKeeperServer
from .zookeeper_tools import folder_of, queue_of


@pytest.fixture
def backend(shared_zookeeper: ZooKeeperServer) -> Iterator[ZooKeeperBackend]:
    with opened(shared_zookeeper.url) as backend:
        yield backend


def nodes_above(server: ZooKeeperServer) -> None:
    """They are there, and stay: those that locks make are containers, which go in a second when they are empty."""
    server.client().ensure_path(folder_of("k"))


def test_a_node_whose_creation_was_not_answered_is_found_again(
    backend: ZooKeeperBackend, shared_zookeeper: ZooKeeperServer
) -> None:
    """Curator's protected mode: the create succeeded, and the connection was lost before the reply."""
    nodes_above(shared_zookeeper)
    granted_before = granted(backend, claim_of())
    backend.release(granted_before, soon())
    claim = claim_of()
    Spy(session_of(backend)).lose("Create2")
    with pytest.raises(BackendUnavailable):
        backend.acquire(claim, soon())
    (node,) = queue_of(shared_zookeeper, "k")
    grant = granted(backend, claim)
    assert queue_of(shared_zookeeper, "k") == [node]
    assert grant.token > granted_before.token
    assert backend.release(grant, soon())
    assert queue_of(shared_zookeeper, "k") == []


def test_a_lost_connection_makes_no_second_node(shared_zookeeper: ZooKeeperServer) -> None:
    with FaultProxy(shared_zookeeper.address) as proxy, distlock.connect(_through(proxy)) as locks:
        with locks.lock("k"):
            pass
        for _ in range(5):
            proxy.drop_replies()
            with locks.lock("k", timeout=10) as lease:
                assert len(queue_of(shared_zookeeper, "k")) == 1
                assert lease.ensure_held()
        wait_until(lambda: queue_of(shared_zookeeper, "k") == [], "what was left to be tidied up")


def test_a_try_that_failed_without_a_connection_leaves_nothing_when_it_is_back(
    shared_zookeeper: ZooKeeperServer,
) -> None:
    """kazoo#732: the node was made, and nobody knew of it; nor was it deleted when the connection was back."""
    with FaultProxy(shared_zookeeper.address) as proxy, opened(_through(proxy), op_timeout=0.5) as backend:
        nodes_above(shared_zookeeper)
        session_of(backend)
        proxy.pause(requests=False)
        claim = claim_of()
        with pytest.raises(BackendUnavailable) as caught:
            backend.acquire(claim, soon(0.3))
        assert caught.value.sent
        wait_until(lambda: len(queue_of(shared_zookeeper, "k")) == 1, "the node to be made")
        with pytest.raises(BackendUnavailable):  # the core's, which gives up some day
            backend.withdraw(claim, soon(0.3), in_flight=True)
        proxy.reset_all()
        proxy.resume()
        wait_until(lambda: queue_of(shared_zookeeper, "k") == [], "the node to be deleted")
        wait_until(lambda: not backend._places.all(), "its end to be known")


def test_a_claim_that_was_withdrawn_while_there_was_no_connection_comes_to_nothing(
    shared_zookeeper: ZooKeeperServer,
) -> None:
    """The thread that a cancelled task left behind is about to ask, and does so when the server is back."""
    with FaultProxy(shared_zookeeper.address) as proxy, opened(_through(proxy)) as backend:
        backend.release(granted(backend, claim_of()), soon())
        proxy.pause()
        proxy.reset_all()
        claim, session = claim_of(), backend._sessions.get(30)
        wait_until(lambda: not session._up, "the connection to be lost")
        outcomes: list[object] = []

        def ask() -> None:
            try:
                outcomes.append(backend.acquire(claim, soon(20)))
            except BackendError as error:
                outcomes.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: backend._places.find(claim.id), "it to be asked for")
        for _ in range(2):  # as the core does, until it is done
            with pytest.raises(BackendUnavailable):
                backend.withdraw(claim, soon(0.5), in_flight=True)
        proxy.resume()
        thread.join(20)
        backend.withdraw(claim, soon(), in_flight=True)
        assert "withdrawn" in str(outcomes[0])
        assert queue_of(shared_zookeeper, "k") == []
        assert backend._places.all() == []


def test_a_waiter_that_does_not_come_keeps_its_place_until_it_is_its_turn(
    backend: ZooKeeperBackend, shared_zookeeper: ZooKeeperServer
) -> None:
    """Who was before it had only waited, too."""
    first, second, third, fourth = (claim_of(wait=True) for _ in range(4))
    grant = granted(backend, first)
    for claim in (second, third, fourth):
        queued(backend, claim)
    spy = Spy(session_of(backend))
    backend.withdraw(second, soon(), in_flight=False)
    wait_until(lambda: spy.asked.count("GetChildren") >= 3, "it to be looked for, twice")
    assert len(queue_of(shared_zookeeper, "k")) == 3
    backend.release(grant, soon())
    # On a slow machine so is the fourth, which queues anew.
    wait_until(lambda: len(queue_of(shared_zookeeper, "k")) <= 1, "it to be passed over")
    assert granted(backend, fourth)


def stalled(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread is told any more what the server has answered to it."""
    never = threading.Event()
    monkeypatch.setattr(session, "answers", lambda *args: never.wait(60))


def test_those_who_do_not_come_are_passed_over_side_by_side(
    shared_zookeeper: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not one after the other, each of which may have to wait for the server."""
    with opened(shared_zookeeper.url) as other, opened(shared_zookeeper.url) as backend:
        grants = [granted(other, claim_of(f"k{number}")) for number in range(5)]
        for grant in grants:
            queued(backend, claim_of(grant.claim.key, wait=True))
        stalled(session_of(backend), monkeypatch)
        for grant in grants:
            other.release(grant, soon())
        wait_until(lambda: not shared_zookeeper.nodes(), "all of them to be passed over")


def test_what_was_given_up_is_tidied_side_by_side(
    shared_zookeeper: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(shared_zookeeper.address) as proxy, opened(_through(proxy), op_timeout=100) as backend:
        grants = [granted(backend, claim_of(f"k{number}")) for number in range(5)]
        proxy.refuse()
        proxy.reset_all()
        wait_until(lambda: not backend._sessions.any()._up, "the connection to be lost")
        for grant in grants:
            with pytest.raises(BackendUnavailable):
                backend.release(grant, soon(0.1))
        stalled(backend._sessions.any(), monkeypatch)
        proxy.accept()
        wait_until(lambda: not backend._places.all(), "all of them to be tidied")
        assert not shared_zookeeper.nodes()


def test_what_was_meant_for_a_session_is_not_sent_in_the_next_one(
    backend: ZooKeeperBackend, shared_zookeeper: ZooKeeperServer
) -> None:
    """The thread that wants to send it has stood still since it looked which one there is."""
    session, claim = session_of(backend), claim_of()
    backend.release(granted(backend, claim_of()), soon())
    life = session.alive(soon(), None)
    shared_zookeeper.expire(session._link.client_id)
    wait_until(lambda: session._up and session.life is not life, "the next session")
    create = Create2(backend._layout.stem(claim), b"", OPEN_ACL_UNSAFE, 3)
    with pytest.raises(BackendUnavailable, match="SessionExpiredError"):
        session.call(life, [create, create], soon())
    granted(backend, claim)
    assert len(queue_of(shared_zookeeper, "k")) == 1


def test_a_connection_that_kazoo_has_given_up_is_begun_anew(backend: ZooKeeperBackend) -> None:
    """After a login that failed, or a bug in its thread."""
    session = session_of(backend)
    grant = granted(backend, claim_of())
    session._link._client.stop()
    wait_until(lambda: session._link.stopped, "its thread to end")
    assert granted(backend, claim_of("another"))
    assert [renewal.state for renewal in backend.renew([grant], soon())] == [LeaseState.LOST]


def test_the_node_of_an_earlier_session_is_not_taken_for_ones_own(shared_zookeeper: ZooKeeperServer) -> None:
    """CURATOR-604: a new session found its own old node, and took it for the lock."""
    with opened(shared_zookeeper.url) as backend:
        claim = claim_of(wait=True)
        stem = backend._layout.stem(claim)
        client = shared_zookeeper.client()
        old = client.create(stem, b"", ephemeral=True, sequence=True, makepath=True)  # of another session
        Spy(session_of(backend)).lose("Create2")
        with pytest.raises(BackendUnavailable):
            backend.acquire(claim, soon())
        queued(backend, claim)
        assert len(queue_of(shared_zookeeper, "k")) == 2
        client.delete(old)
        assert granted(backend, claim)


def test_who_goes_before_it_can_be_watched_leaves_no_watch(
    backend: ZooKeeperBackend, shared_zookeeper: ZooKeeperServer
) -> None:
    first, second = claim_of(wait=True), claim_of(wait=True)
    grant = granted(backend, first)
    spy = Spy(session_of(backend))

    def release(names: Sequence[str]) -> None:
        if "Create2" in names:
            spy.after = lambda names: None
            assert backend.release(grant, soon())

    spy.after = release
    assert granted(backend, second)
    assert shared_zookeeper.watches() == 0
    assert not backend._entrance.watches._watches


def test_waiters_that_gave_up_share_one_watch(backend: ZooKeeperBackend, shared_zookeeper: ZooKeeperServer) -> None:
    """kazoo: each try that timed out left a callback behind for as long as the lock was held."""
    grant = granted(backend, claim_of())
    for _ in range(10):
        claim = claim_of(wait=True)
        queued(backend, claim)
        backend.withdraw(claim, soon(), in_flight=False)
    assert shared_zookeeper.watches() == 1
    assert len(backend._entrance.watches._watches) == 1
    client = session_of(backend)._link._client
    assert sum(map(len, client._data_watchers.values())) == 1
    backend.release(grant, soon())
    wait_until(lambda: not backend._entrance.watches._watches, "the watch to go with the node")
    assert shared_zookeeper.watches() == 0


@pytest.mark.usefixtures("nobody_passed_over")
def test_the_second_in_line_enters_without_another_request(backend: ZooKeeperBackend) -> None:
    grant, claim, woken = granted(backend, claim_of()), claim_of(wait=True), threading.Event()
    backend.watch(queued(backend, claim), woken.set, soon())
    assert backend.release(grant, soon())
    assert woken.wait(10)
    spy = Spy(session_of(backend))
    assert granted(backend, claim).token > grant.token
    assert spy.asked == []


@pytest.mark.usefixtures("nobody_passed_over")
def test_who_waits_for_one_of_its_own_session_enters_without_another_request(backend: ZooKeeperBackend) -> None:
    grant = granted(backend, claim_of())
    second, third = claim_of(wait=True), claim_of(wait=True)
    woken = [threading.Event(), threading.Event()]
    for claim, event in zip((second, third), woken, strict=True):
        backend.watch(queued(backend, claim), event.set, soon())
    backend.release(grant, soon())
    assert woken[0].wait(10)
    spy = Spy(session_of(backend))
    backend.release(granted(backend, second), soon())
    assert woken[1].wait(10)
    assert granted(backend, third).token > grant.token
    assert spy.asked == ["Delete"]


@pytest.mark.usefixtures("nobody_passed_over")
def test_who_looks_at_the_line_tells_the_others_that_wait_in_it(
    backend: ZooKeeperBackend, shared_zookeeper: ZooKeeperServer
) -> None:
    with opened(shared_zookeeper.url) as other:
        grant, second = granted(other, claim_of()), claim_of(wait=True)
        queued(other, second)
        third, woken = claim_of(wait=True), threading.Event()
        backend.watch(queued(backend, third), woken.set, soon())
        other.release(grant, soon())
        grant = granted(other, second)
        queued(backend, claim_of(wait=True))
        spy = Spy(session_of(backend))
        other.release(grant, soon())
        assert woken.wait(10)
        assert granted(backend, third).token > grant.token
        assert spy.asked == []


def test_who_is_behind_one_that_gave_up_looks_who_is_first(
    backend: ZooKeeperBackend, shared_zookeeper: ZooKeeperServer
) -> None:
    """Its watch has said the same as if that one had held the lock."""
    with opened(shared_zookeeper.url) as other:
        grant, second = granted(backend, claim_of()), claim_of(wait=True)
        queued(other, second)
        third, woken = claim_of(wait=True), threading.Event()
        backend.watch(queued(backend, third), woken.set, soon())
        queued(backend, claim_of(wait=True))  # has looked at the line
        other.withdraw(second, soon(), in_flight=False)
        assert woken.wait(10)
        queued(backend, third)
        backend.release(grant, soon())
        assert granted(backend, third).token > grant.token


def test_who_holds_the_lock_is_asked_once_for_all_that_wait_in_a_session(backend: ZooKeeperBackend) -> None:
    grant, entrance = granted(backend, claim_of()), backend._entrance
    entrance._asking = True  # when the test says
    waiting = [queued(backend, claim_of(wait=True)) for _ in range(5)]
    spy = Spy(session_of(backend))
    entrance._ask_all()
    assert spy.asked == ["GetData"]
    wait_until(lambda: all(busy.holder for busy in waiting), "all to know it")
    assert {busy.holder.token for busy in waiting if busy.holder} == {grant.token}


def test_foreign_nodes_are_ignored(backend: ZooKeeperBackend, shared_zookeeper: ZooKeeperServer) -> None:
    client = shared_zookeeper.client()
    for name in ("config", "lock-", "lock--1", "lock-x-12345", "0000000000", "x__lock__0000000000"):
        client.create(f"{folder_of('k')}/{name}", makepath=True)
    grant = granted(backend, claim_of())
    assert backend.inspect("k", soon()).waiters == ()
    assert backend.release(grant, soon())
    assert backend.inspect("k", soon()).holder is None


def test_a_sequence_that_overflows_goes_on_being_later() -> None:
    """The server counts with 32 bits and a sign; sorted as texts, or as numbers even, the last would be the first."""
    layout = Layout("default", "distlock", "", "")
    line = [f"lock-a{number}-{sequence % 2**32 - 2**32 * (sequence % 2**32 >= 2**31):010d}" for number, sequence in
            enumerate(range(2**31 - 3, 2**31 + 3))]  # fmt: skip
    assert line[2].endswith("-2147483647")
    assert line[3].endswith("--2147483648")
    for own in line:
        assert layout.line(sorted(line), own) == line
    negative = ["lock-a--000000009", "lock-b--000000008", "lock-c-0000000000"]
    assert layout.line(reversed(negative), negative[1]) == negative


def test_nodes_with_an_overflown_sequence_hold_and_wait_in_order(shared_zookeeper: ZooKeeperServer) -> None:
    client = shared_zookeeper.client()
    with opened(shared_zookeeper.url) as backend:
        for number in ("2147483647", "-2147483648"):
            client.create(f"{folder_of('k')}/lock-x{number}-{number}", number.encode(), ephemeral=True, makepath=True)
        seen = backend.inspect("k", soon())
        assert seen.holder is not None
        assert seen.holder.owner == "unknown: lock-x2147483647-2147483647"
        assert [waiter.owner for waiter in seen.waiters] == ["unknown: lock-x-2147483648--2147483648"]


def test_the_nodes_above_a_lock_go_when_it_is_free(shared_zookeeper: ZooKeeperServer) -> None:
    """Those of a million names would fill the server's memory."""
    with distlock.connect(shared_zookeeper.url) as locks:
        for number in range(20):
            with locks.lock(f"k{number}"):
                pass
        client = shared_zookeeper.client()
        wait_until(lambda: not client.exists("/distlock"), "the containers to be deleted")
        with locks.lock("k"):
            assert client.exists(folder_of("k"))


def test_a_node_deleted_by_hand_is_noticed_while_other_locks_come_and_go(shared_zookeeper: ZooKeeperServer) -> None:
    """The session is proven by each of their requests; the nodes that it holds are to be looked for nevertheless."""
    with distlock.connect(f"{shared_zookeeper.url}?session_timeout=6") as locks:
        with locks.lock("other"):
            lease = locks.lock("k", when_lost="warn").acquire()
            shared_zookeeper.delete(f"{folder_of('k')}/{queue_of(shared_zookeeper, 'k')[0]}")

            def is_lost() -> bool:
                with locks.lock("busy"):
                    return lease.state is LeaseState.LOST

            wait_until(is_lost, "the loss to be noticed")
        wait_until(lambda: not backend_of(locks)._places.all(), "all to be forgotten")


def test_names_that_are_no_path_are_names(backend: ZooKeeperBackend) -> None:
    names = [".", "..", "a/b", "/", "a\0b", "\ud7ff\ue000", "zookeeper", "x" * 512, "é" * 256, "%2E"]
    grants = [granted(backend, claim_of(name)) for name in names]
    assert {seen.key for seen in backend.list("", soon())} == set(names)
    assert all(backend.release(grant, soon()) for grant in grants)


def _through(proxy: FaultProxy) -> str:
    return f"zookeeper://127.0.0.1:{proxy.address[1]}"


def test_a_waiter_in_a_thread_learns_that_its_manager_was_closed(shared_zookeeper: ZooKeeperServer) -> None:
    tells_its_waiters_that_it_was_closed(shared_zookeeper.url)


def test_the_thread_of_the_connection_may_ask_as_much_as_it_likes(shared_zookeeper: ZooKeeperServer) -> None:
    """As where a session ends that had hundreds of nodes: kazoo would wait for itself to make room."""
    with opened(shared_zookeeper.url) as backend:
        session = session_of(backend)
        life = session.alive(soon(), None)
        handles: list[Handle] = []
        asked = threading.Event()

        def errand() -> Errand[None]:
            yield [GetChildren("/", None)]
            handles.extend(session.ask(life, GetChildren("/", None)) for _ in range(2000))
            asked.set()

        session.start(life, errand())
        assert asked.wait(20)
        assert len(session.answers(life, handles, soon(20))) == 2000


def test_who_tidies_up_does_not_take_a_release_away(shared_zookeeper: ZooKeeperServer) -> None:
    """Both are there when the connection is back; the lock was held all the time."""
    with (
        FaultProxy(shared_zookeeper.address) as proxy,
        distlock.connect(shared_zookeeper.url_at(proxy.port)) as locks,
    ):
        session = session_of(backend_of(locks))
        for _ in range(10):
            lease = locks.lock("k").acquire(timeout=20)
            proxy.refuse()
            proxy.reset_all()
            wait_until(lambda: not session._up, "the loss of the connection to be seen")
            proxy.accept()  # which is found at the next try, in a moment
            lease.release()
