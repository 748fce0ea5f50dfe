"""The driver of etcd and one server: calls, streams, users, TLS, and what is said when something is wrong."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest

from distlock import BackendError, BackendUnavailable, Unsupported
from distlock._clock import now
from distlock.backends.etcd._client import Answer, Client
from distlock.backends.etcd._errors import LeaseNotFound
from distlock.backends.etcd._rpc import (
    AUTHENTICATE,
    DELETE_RANGE,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
    PUT,
    STATUS,
    TXN,
    WATCH,
    pb,
)
from distlock.backends.etcd._url import Place
from distlock.testing.proxy import FaultProxy

from .etcd_client_tools import KEY, Watching, client_to, get, put, threads_of_streams
from .etcd_servers import Authority, EtcdServer
from .programs import bind_free_port, wait_until

SECRET = "hunter2-s3cr3t"
APP = {"app": (SECRET, "locks/")}
TOKEN_TTL = 3
"""Seconds. etcd looks once a second for those that are over. One in use is not to end because the machine is slow."""


def assert_safe(error: BaseException) -> None:
    """Neither the error nor what it was raised from tells the password."""
    assert SECRET not in "".join(traceback.format_exception(error))
    assert SECRET not in repr(error) + repr(vars(error)) + repr(error.__cause__)


def refused(client: Client, error: type[BackendError], match: str) -> None:
    with pytest.raises(error, match=match):
        get(client)


@pytest.fixture(scope="module")
def guarded() -> Iterator[EtcdServer]:
    """One that speaks TLS, wants a client's certificate, and knows a user; nobody changes it."""
    with EtcdServer(client_certificates=True, users=APP) as server:
        yield server


@pytest.fixture
def proxy(shared_etcd: EtcdServer) -> Iterator[FaultProxy]:
    with FaultProxy(shared_etcd.address) as proxy:
        yield proxy


# What can be asked


def test_every_method_of_the_table_is_etcds(etcd_url: str) -> None:
    with client_to(etcd_url) as client:
        lease = client.call(LEASE_GRANT, pb.LeaseGrantRequest(ttl=60), now() + 5).value.id
        client.call(PUT, pb.PutRequest(key=KEY, lease=lease), now() + 5)
        left = client.call(LEASE_TIME_TO_LIVE, pb.LeaseTimeToLiveRequest(id=lease, keys=True), now() + 5).value
        assert (left.granted_ttl, list(left.keys)) == (60, [KEY])
        put_again = pb.RequestOp(request_put=pb.PutRequest(key=KEY, ignore_value=True, ignore_lease=True))
        is_new = pb.Compare(target=pb.Compare.CREATE, key=KEY, range_end=KEY + b"\0", create_revision=0)
        done = client.call(TXN, pb.TxnRequest(compare=[is_new], failure=[put_again]), now() + 5).value
        assert not done.succeeded
        assert len(done.responses) == 1
        found = get(client).value
        assert found.kvs[0].lease == lease
        assert found.kvs[0].mod_revision == done.header.revision == found.kvs[0].create_revision + 1
        assert client.call(DELETE_RANGE, pb.DeleteRangeRequest(key=KEY), now() + 5).value.deleted == 1
        client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease), now() + 5)
        assert client.call(STATUS, pb.StatusRequest(), now() + 5).value.version.startswith("3.")


def test_a_streams_method_can_be_called(etcd_url: str) -> None:
    with client_to(etcd_url) as client:
        lease = client.call(LEASE_GRANT, pb.LeaseGrantRequest(ttl=60), now() + 5).value.id
        assert client.call(LEASE_KEEP_ALIVE, pb.LeaseKeepAliveRequest(id=lease), now() + 5).value.ttl == 60
        client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease), now() + 5)
        assert client.call(LEASE_KEEP_ALIVE, pb.LeaseKeepAliveRequest(id=lease), now() + 5).value.ttl == 0


def test_a_call_is_one_round_trip(proxy: FaultProxy) -> None:
    with client_to(f"etcd://127.0.0.1:{proxy.port}") as client:
        get(client)
        before = proxy.traffic

        def flights() -> int:
            already = proxy.traffic
            assert not get(client).again
            return (proxy.traffic - already).flights

        # HTTP/2 has words of its own, by the clock: on a busy machine several come in between.
        assert any(flights() == 1 for _ in range(100))
        assert (proxy.traffic - before).connections == 0


def test_a_watch_tells_what_happens(etcd_url: str) -> None:
    with client_to(etcd_url) as client:
        watching = Watching(client)
        assert watching.next().created
        put(client)
        assert [event.kv.key for event in watching.next().events] == [KEY]
        watching.stream.close()
        watching.stream.close()
        assert watching.end() is None


def test_close_ends_streams_and_threads(etcd_url: str) -> None:
    with client_to(etcd_url) as client:
        several = [Watching(client) for _ in range(3)]
        for watching in several:
            watching.next()
        assert threads_of_streams()
    assert [watching.end(0) for watching in several] == [None] * 3
    wait_until(lambda: not threads_of_streams(), "the threads to end")
    for use in (lambda: get(client), lambda: client.stream(WATCH, print, print)):
        with pytest.raises(BackendError, match="closed") as caught:
            use()
        assert not isinstance(caught.value, BackendUnavailable)


def test_a_stream_may_be_closed_in_its_own_thread(etcd_url: str) -> None:
    ended = threading.Event()
    with client_to(etcd_url) as client:
        stream = client.stream(WATCH, lambda _: stream.close(), lambda _: ended.set())
        stream.send(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=KEY)))
        assert ended.wait(10)


def test_close_ends_a_call_that_is_under_way(proxy: FaultProxy) -> None:
    client = Client.at(Place.parse(f"etcd://127.0.0.1:{proxy.port}"))
    get(client)
    proxy.pause()
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            get(client, 30)
        except BackendError as error:
            caught.append(error)

    before = proxy.traffic.flights
    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: thread.is_alive(), "the call")
    time.sleep(0.2)  # the proxy does not read now, so that nothing tells when the call is under way
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "closed" in str(caught)
    assert proxy.traffic.flights >= before


# What goes wrong


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    with bind_free_port() as nobody:
        port = nobody.getsockname()[1]
        with client_to(f"etcd://app:{SECRET}@127.0.0.1:{port}") as client:
            for _ in range(2):
                started = time.monotonic()
                with pytest.raises(BackendUnavailable, match="is it running") as caught:
                    get(client)
                assert time.monotonic() - started < 4
                assert caught.value.key == "lock"
                assert caught.value.backend == f"etcd://127.0.0.1:{port}"
                assert str(caught.value.backend) in str(caught.value)
                assert not caught.value.sent
                assert_safe(caught.value)


def test_a_host_that_has_no_address_is_said() -> None:
    with client_to("etcd://nowhere.invalid") as client:
        with pytest.raises(BackendUnavailable, match=r"nowhere\.invalid") as caught:
            get(client)
        assert not caught.value.sent


def test_a_server_that_comes_back_is_found_at_once(etcd_server: EtcdServer) -> None:
    """grpc leaves a server alone for up to two minutes after it was down for a while."""
    with client_to(etcd_server.url) as client:
        get(client)
        etcd_server.kill()
        until = now() + 3
        while now() < until:
            with pytest.raises(BackendUnavailable):
                get(client)
            assert isinstance(Watching(client).end(), BackendUnavailable)
            time.sleep(0.1)
        etcd_server.start()
        get(client)
        Watching(client).next()


def test_many_threads_live_through_a_restart(etcd_server: EtcdServer) -> None:
    """They share a channel that is replaced whenever it could not connect."""
    done = threading.Event()
    odd: list[BaseException] = []

    def ask() -> None:
        while not done.is_set():
            try:
                get(client)
            except BackendUnavailable:
                pass
            except BaseException as error:  # noqa: BLE001 - a thread must not hide it
                odd.append(error)
                return

    with client_to(etcd_server.url) as client:
        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            etcd_server.kill()
            time.sleep(0.5)
            etcd_server.start()
        get(client)
        done.set()
        for thread in threads:
            thread.join()
    assert not odd


def test_a_frozen_server_costs_the_time_that_was_given(etcd_server: EtcdServer) -> None:
    with client_to(etcd_server.url) as client:
        get(client)
        etcd_server.pause()
        started = time.monotonic()
        with pytest.raises(BackendUnavailable, match="in time") as caught:
            get(client, 2)
        assert 1.5 < time.monotonic() - started < 20
        assert caught.value.sent
        etcd_server.resume()
        get(client)


def test_no_time_left_is_said_without_asking(proxy: FaultProxy) -> None:
    with client_to(f"etcd://127.0.0.1:{proxy.port}") as client:
        with pytest.raises(BackendUnavailable, match="no time") as caught:
            get(client, -1)
        assert not caught.value.sent
        assert proxy.traffic.connections == 0


def test_a_lost_reply_is_asked_for_again_and_said(proxy: FaultProxy, shared_etcd: EtcdServer) -> None:
    with client_to(f"etcd://127.0.0.1:{proxy.port}") as client:
        get(client)
        proxy.pause(requests=False)
        answers: list[Answer[pb.PutResponse]] = []
        thread = threading.Thread(target=lambda: answers.append(put(client, 30)))
        thread.start()
        wait_until(lambda: shared_etcd.get(KEY.decode()) == "1", "the put")
        first = shared_etcd.revision()
        proxy.reset_all()
        proxy.resume()
        thread.join()
        assert answers[0].again
        assert answers[0].value.header.revision == first + 1, "it was carried out twice"


def test_a_frozen_server_ends_its_stream(etcd_server: EtcdServer) -> None:
    """A watch is silent for hours, and so is a server that is gone: only pings tell them apart."""
    with client_to(etcd_server.url) as client:
        watching = Watching(client)
        watching.next()
        etcd_server.pause()
        assert isinstance(watching.end(20), BackendUnavailable)
        etcd_server.resume()


def test_pings_are_not_too_many_for_etcd(etcd_url: str) -> None:
    """It breaks a connection that is pinged too often."""
    with client_to(etcd_url) as client:
        watching = Watching(client)
        watching.next()
        time.sleep(25)  # some pings
        put(client)
        assert watching.next().events
        assert not watching.ends


def test_a_lost_connection_ends_the_stream(proxy: FaultProxy) -> None:
    with client_to(f"etcd://127.0.0.1:{proxy.port}") as client:
        watching = Watching(client)
        watching.next()
        proxy.reset_all()
        error = watching.end()
        assert isinstance(error, BackendUnavailable)
        assert error.backend == f"etcd://127.0.0.1:{proxy.port}"
        Watching(client).next()


def test_a_stream_to_nobody_ends() -> None:
    with bind_free_port() as nobody, client_to(f"etcd://127.0.0.1:{nobody.getsockname()[1]}") as client:
        assert isinstance(Watching(client).end(), BackendUnavailable)


def test_a_lease_that_is_not_there_is_told_apart(etcd_url: str) -> None:
    with client_to(etcd_url) as client:
        with pytest.raises(LeaseNotFound):
            client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=5), now() + 5)
        with pytest.raises(LeaseNotFound):
            client.call(PUT, pb.PutRequest(key=KEY, lease=5), now() + 5)


def test_what_etcd_refuses_is_no_outage(etcd_url: str) -> None:
    huge = pb.PutRequest(key=KEY, value=b"x" * 2_000_000)
    with client_to(etcd_url) as client, pytest.raises(BackendError, match="max-request-bytes") as caught:
        client.call(PUT, huge, now() + 5, key="lock")
    assert not isinstance(caught.value, BackendUnavailable)
    assert (caught.value.key, caught.value.backend, caught.value.sent) == ("lock", etcd_url, False)


def test_a_full_server_is_said() -> None:
    with EtcdServer("--quota-backend-bytes", "200000") as server, client_to(server.url) as client:
        until = now() + 10

        def fill() -> None:
            while now() < until:
                client.call(PUT, pb.PutRequest(key=KEY, value=b"x" * 50_000), now() + 5)

        with pytest.raises(BackendError, match="defrag"):
            fill()


# Users


def test_a_user_is_logged_in_once() -> None:
    with EtcdServer(users=APP) as server, client_to(server.url) as client:
        put(client)
        put(client)
        assert server.metric('grpc_server_handled_total{grpc_code="OK",grpc_method="Authenticate"') == 1


def test_tokens_that_were_forgotten_are_renewed() -> None:
    """A restart of the server forgets them all, and a token that nobody uses expires."""
    with EtcdServer(users=APP, token_ttl=TOKEN_TTL) as server, client_to(server.url) as client:
        put(client)
        server.kill()
        server.start()
        put(client)
        threads = [threading.Thread(target=put, args=(client,)) for _ in range(4)]
        time.sleep(2 * TOKEN_TTL)  # it expires
        logins = server.metric('grpc_server_handled_total{grpc_code="OK",grpc_method="Authenticate"')
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        put(client)
        assert server.metric('grpc_server_handled_total{grpc_code="OK",grpc_method="Authenticate"') == logins + 1


def test_a_change_of_users_is_lived_through() -> None:
    """A token is for one revision of the users: ``auth: revision in header is old``."""
    with EtcdServer(users=APP) as server, client_to(server.url) as client:
        put(client)
        server.call("auth/user/add", name="another", password="x")
        assert not put(client).again


def test_users_can_be_introduced_while_a_client_runs(etcd_server: EtcdServer) -> None:
    with client_to(etcd_server.url_at(etcd_server.port, user="app", password=SECRET)) as client:
        put(client)
        etcd_server.users = APP
        etcd_server.enable_auth()
        put(client)


def test_a_watch_goes_on_with_a_new_token() -> None:
    """python-etcd3#1227: after the token has expired a watch can only be cancelled, again and again."""
    with EtcdServer(users=APP, token_ttl=TOKEN_TTL) as server, client_to(server.url) as client:
        watching = Watching(client)
        assert not watching.next().canceled
        time.sleep(2 * TOKEN_TTL)  # it expires
        watching.stream.send(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=KEY)))
        refused = watching.next()
        assert refused.canceled
        assert "invalid auth token" in refused.cancel_reason
        watching.stream.close()
        again = Watching(client)
        assert not again.next().canceled
        put(client)
        assert again.next().events


@pytest.mark.parametrize(("user", "password"), [("app", SECRET + "!"), ("nobody", SECRET)])
def test_a_wrong_login_is_said(guarded: EtcdServer, user: str, password: str) -> None:
    with client_to(guarded.url_at(guarded.port, user=user, password=password)) as client:
        with pytest.raises(BackendError, match="refused the user or the password") as caught:
            get(client)
        assert not isinstance(caught.value, BackendUnavailable)
        assert_safe(caught.value)
        error = Watching(client).end()
        assert "refused the user" in str(error)


def test_a_missing_login_is_said(guarded: EtcdServer) -> None:
    with EtcdServer(users=APP) as server, client_to(f"etcd://127.0.0.1:{server.port}") as client:
        refused(client, BackendError, "wants a user and a password")
    with client_to(guarded.url.replace(guarded.url[: guarded.url.index("@") + 1], "etcd+tls://")) as client:
        refused(client, BackendError, "whom the client's certificate names")


def test_a_missing_right_is_said(guarded: EtcdServer) -> None:
    with client_to(guarded.url) as client:
        get(client)
        with pytest.raises(BackendError, match="role grant-permission"):
            get(client, key=b"elsewhere")


# TLS


def test_tls_and_a_clients_certificate(guarded: EtcdServer) -> None:
    with client_to(guarded.url) as client:
        assert client.address == f"etcd+tls://127.0.0.1:{guarded.port}"
        put(client)
        Watching(client).next()
    with client_to(f"{guarded.url}&server_name=localhost") as client:
        get(client)


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ("", "not trusted; name its authority"),
        ("ca={theirs}", "certificate of the client"),
        ("ca={theirs}&cert={ours}&key={ours}", "certificate of the client"),
        ("ca={ours_ca}", "not trusted; name its authority"),
        ("ca={theirs}&cert={cert}&key={cert}&server_name=other.example", "for another name"),
        ("ca={theirs}&cert={cert}&key={theirs}", "in PEM, or do not go together"),
    ],
)
def test_tls_that_cannot_be_agreed_on_is_explained(guarded: EtcdServer, files: str, hint: str, tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    query = files.format(
        theirs=quote(guarded.authority.ca), cert=quote(guarded.authority.client), ours=ours.client, ours_ca=ours.ca
    )
    with client_to(f"{guarded.url.partition('?')[0]}?{query}") as client:
        started = time.monotonic()
        with pytest.raises(BackendUnavailable, match=hint) as caught:
            get(client)
        assert time.monotonic() - started < 4, "at once: it would be so again"
        assert not caught.value.sent
        assert_safe(caught.value)


def test_the_wrong_scheme_is_explained(guarded: EtcdServer, etcd_url: str) -> None:
    with client_to(f"etcd://127.0.0.1:{guarded.port}") as client:
        refused(client, BackendUnavailable, r"write etcd\+tls://")
    with client_to(etcd_url.replace("etcd:", "etcd+tls:")) as client:
        refused(client, BackendUnavailable, "write etcd://")


# Ready clients


def test_a_ready_client_of_etcd3_lends_its_endpoints_and_its_token() -> None:
    etcd3 = pytest.importorskip("etcd3")
    with EtcdServer(tls=True, users=APP, token_ttl=TOKEN_TTL) as server:
        port, ca = server.port, server.authority.ca
        lent = etcd3.client("127.0.0.1", port, ca_cert=ca, user="app", password=SECRET)
        with closing(lent), closing(Client.over(lent)) as client:
            assert client.address == f"etcd+tls://127.0.0.1:{port}"
            put(client)
            time.sleep(2 * TOKEN_TTL)  # its token expires
            with pytest.raises(BackendError, match="keeps no password") as caught:
                put(client)
            assert_safe(caught.value)


def test_a_ready_client_without_a_user(shared_etcd: EtcdServer) -> None:
    etcd3 = pytest.importorskip("etcd3")
    with closing(etcd3.client("127.0.0.1", shared_etcd.port)) as lent, closing(Client.over(lent)) as client:
        put(client)
        Watching(client).next()
        assert lent.get(KEY.decode())[0] == b"1"


def test_a_ready_client_of_several_endpoints(shared_etcd: EtcdServer) -> None:
    etcd3 = pytest.importorskip("etcd3")
    with bind_free_port() as nobody:
        ports = nobody.getsockname()[1], shared_etcd.port
        places = [etcd3.Endpoint("127.0.0.1", port, secure=False) for port in ports]
        with closing(etcd3.MultiEndpointEtcd3Client(places)) as lent, closing(Client.over(lent)) as client:
            assert client.address == f"etcd://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"
            put(client)


def test_something_else_is_no_client() -> None:
    with pytest.raises(Unsupported, match="object"):
        Client.over(object())


def test_a_login_is_no_word_of_the_table() -> None:
    assert AUTHENTICATE.path == "/etcdserverpb.Auth/Authenticate"
