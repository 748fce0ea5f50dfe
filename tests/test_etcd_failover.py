"""The driver of etcd and a cluster: a member that is dead, frozen or cut off is left for another, in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from distlock import BackendUnavailable
from distlock.backends.etcd import _failover
from distlock.backends.etcd._client import Client
from distlock.backends.etcd._failover import share

from .etcd_client_tools import Watching, client_to, get, put
from .etcd_servers import EtcdCluster, EtcdServer
from .programs import bind_free_port

Fault = Callable[[EtcdCluster, int], None]
FAULTS: dict[str, Fault] = {
    "killed": EtcdCluster.kill,
    "frozen": EtcdCluster.pause,
    "cut off": EtcdCluster.partition,
}


def url_from(cluster: EtcdCluster, first: int) -> str:
    """Its members, from one of them on."""
    ports = [server.port for server in cluster.servers]
    return cluster.servers[0].url_at(*ports[first:], *ports[:first])


def member(client: Client) -> int:
    """Who answers."""
    return int(get(client).value.header.member_id)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_member_that_fails_is_left_for_another(shared_etcd_cluster: EtcdCluster, fault: str, role: str) -> None:
    cluster = shared_etcd_cluster
    victim = cluster.leader() if role == "leader" else cluster.followers()[0]
    with client_to(url_from(cluster, victim)) as client:
        put(client)
        gone = member(client)
        try:
            FAULTS[fault](cluster, victim)
            put(client)  # it gets a share of the 5 s, and not all of them
            for _ in range(5):
                assert client._first is not client._endpoints[0], "who has answered is asked first"
                assert member(client) != gone
        finally:
            cluster.heal()
        put(client)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_change_of_leaders_is_waited_for(etcd_cluster: EtcdCluster, fault: str) -> None:
    """By way of the same member: what it has sent on to the old one is lost, and it waits for an answer for 6 s."""
    leader, follower = etcd_cluster.leader(), etcd_cluster.followers()[0]
    with client_to(etcd_cluster.servers[follower].url) as client:
        put(client)
        breaks = threading.Thread(target=FAULTS[fault], args=(etcd_cluster, leader))
        breaks.start()
        while breaks.is_alive():
            put(client, 12)
        breaks.join()
        put(client, 12)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_stream_with_a_member_that_fails_is_ended(shared_etcd_cluster: EtcdCluster, fault: str) -> None:
    """etcd's own clients sat on such a watch for ever, before they asked for a leader (etcd#8980)."""
    cluster = shared_etcd_cluster
    victim = cluster.followers()[0]
    with client_to(url_from(cluster, victim)) as client:
        get(client)
        watching = Watching(client)
        watching.next()
        try:
            FAULTS[fault](cluster, victim)
            put(client)  # whoever finds that the member does not answer ends the streams with it
            assert isinstance(watching.end(), BackendUnavailable)
            again = Watching(client)
            again.next()
            put(client)
            assert again.next().events
        finally:
            cluster.heal()


def test_a_cut_off_member_ends_its_stream_by_itself(shared_etcd_cluster: EtcdCluster) -> None:
    cluster = shared_etcd_cluster
    victim = cluster.followers()[0]
    with client_to(cluster.servers[victim].url) as client:
        watching = Watching(client)
        watching.next()
        try:
            cluster.partition(victim)
            assert "no leader" in str(watching.end())
        finally:
            cluster.heal()


def test_a_member_without_a_leader_is_asked_again_until_there_is_one(
    shared_etcd_cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All members that are named are cut off; then they are not."""
    monkeypatch.setattr(_failover, "LONGEST_PAUSE", 60.0)  # each is twice the one before: time is left for the last try
    cluster = shared_etcd_cluster
    victim = cluster.followers()[0]
    with client_to(cluster.servers[victim].url) as client:
        try:
            cluster.partition(victim)
            started = time.monotonic()
            with pytest.raises(BackendUnavailable, match="sees no leader") as caught:
                put(client, 5)
            assert 1 < time.monotonic() - started < 20
            assert not caught.value.sent
            monkeypatch.undo()
            heals = threading.Thread(target=cluster.heal)
            heals.start()
            put(client, 20)
            heals.join()
        finally:
            cluster.heal()


def test_nobody_answers_and_each_is_named() -> None:
    with bind_free_port() as one, bind_free_port() as two:
        ports = one.getsockname()[1], two.getsockname()[1]
        with client_to(f"etcd://app:s3cret@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}") as client:
            started = time.monotonic()
            with pytest.raises(BackendUnavailable, match="no endpoint answered") as caught:
                put(client)
            assert time.monotonic() - started < 4, "at once"
            assert all(f"etcd://127.0.0.1:{port}" in str(caught.value) for port in ports)
            assert caught.value.backend == client.address
            assert not caught.value.sent
            assert "s3cret" not in str(caught.value)


def test_a_frozen_one_does_not_take_all_the_time(shared_etcd: EtcdServer, etcd_server: EtcdServer) -> None:
    """Even if there is no more of it than a call may take: the next call begins elsewhere."""
    with client_to(f"etcd://127.0.0.1:{etcd_server.port},127.0.0.1:{shared_etcd.port}") as client:
        etcd_server.pause()
        put(client, 4)
    with client_to(f"etcd://127.0.0.1:{etcd_server.port},127.0.0.1:{shared_etcd.port}") as client:
        with pytest.raises(BackendUnavailable):
            put(client, 0.2)
        assert client._first is client._endpoints[1]
        put(client, 4)
    etcd_server.resume()


def test_shares() -> None:
    assert share(6, 3) == 2
    assert share(0.6, 3) == 0.3, "a busy cluster takes longer than a third of that"
    assert share(0.2, 3) == 0.2
    assert share(-1, 3) < 0


def test_a_call_costs_one_endpoint_only(shared_etcd_cluster: EtcdCluster) -> None:
    """The others are not even connected to."""
    with client_to(shared_etcd_cluster.url) as client:
        put(client)
        assert [endpoint.channel is not None for endpoint in client._endpoints] == [True, False, False]


def test_a_user_logs_in_with_whoever_answers() -> None:
    users = {"app": ("s3cret", "locks/")}
    with EtcdCluster(tls=True, users=users) as cluster, client_to(cluster.url) as client:
        put(client)
        cluster.kill(0)
        put(client)
    assert "s3cret" not in repr(vars(client))
