"""The etcd servers that tests start are what they are said to be, and end with the tests."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from .etcd_servers import MIN_TTL, EtcdCluster, EtcdServer, require_etcd, require_etcdctl
from .programs import wait_until


def test_it_keeps_what_it_is_given(shared_etcd):
    shared_etcd.put("b", "1")
    shared_etcd.put("a", "2")
    assert (shared_etcd.keys(), shared_etcd.get("a"), shared_etcd.get("c")) == (["b", "a"], "2", None)
    assert (shared_etcd.delete("a"), shared_etcd.keys()) == (1, ["b"])


def test_nothing_is_left_behind():
    with EtcdServer() as server:
        pid, folder = server.pid, server.folder
    assert not psutil.pid_exists(pid)
    assert not folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_cluster_dies_with_the_process_that_started_it():
    code = (
        "import sys, tests.etcd_servers as s\n"
        "cluster = s.EtcdCluster().__enter__()\n"
        "pids = [cluster._network.pid, *(server.pid for server in cluster.servers)]\n"
        "print(*pids, *(server.folder for server in cluster.servers), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        words = child.stdout.readline().split()
        members = [os.pidfd_open(int(pid)) for pid in words[:4]]
        child.kill()
        child.wait()
    try:
        for member in members:
            assert select.select([member], [], [], 10)[0] == [member]
    finally:
        for member in members:
            os.close(member)
        for folder in words[4:]:
            shutil.rmtree(folder)


@pytest.mark.parametrize("crash", [False, True])
def test_a_restart_keeps_the_address_and_the_data(etcd_server, crash):
    before = etcd_server.url
    etcd_server.put("k", "1")
    etcd_server.restart(crash=crash)
    assert (etcd_server.url, etcd_server.get("k")) == (before, "1")


def test_a_restart_may_lose_all_data(etcd_server):
    etcd_server.put("k", "1")
    etcd_server.restart(data=False)
    assert etcd_server.keys() == []


def test_a_paused_server_is_silent_until_it_is_resumed(etcd_server):
    etcd_server.pause()
    with pytest.raises(TimeoutError):
        etcd_server.status()
    etcd_server.resume()
    wait_until(lambda: etcd_server.status()[1] != "0", "it to answer")


def test_leases_may_be_short_and_are_seen_with_their_keys(shared_etcd):
    assert int(shared_etcd.call("lease/grant", TTL=MIN_TTL)["TTL"]) == MIN_TTL
    wait_until(lambda: not shared_etcd.leases(), "it to end")
    lease = shared_etcd.call("lease/grant", TTL=60)
    assert shared_etcd.leases() == [int(lease["ID"])]
    shared_etcd.call("kv/put", key="aw==", lease=lease["ID"])
    assert shared_etcd.lease_keys(int(lease["ID"])) == ["k"]
    shared_etcd.revoke(int(lease["ID"]))
    assert (shared_etcd.keys(), shared_etcd.leases()) == ([], [])


def test_a_flush_leaves_no_key_and_no_lease(shared_etcd):
    shared_etcd.call("kv/put", key="aw==", lease=shared_etcd.call("lease/grant", TTL=60)["ID"])
    shared_etcd.put("\x01")
    shared_etcd.flush()
    assert (shared_etcd.keys(), shared_etcd.leases()) == ([], [])


def test_what_is_compacted_is_forgotten(shared_etcd):
    shared_etcd.put("k", "1")
    before = shared_etcd.revision()
    shared_etcd.put("k", "2")
    shared_etcd.compact()
    with pytest.raises(RuntimeError, match="compacted"):
        shared_etcd.call("kv/range", key="aw==", revision=before)


def test_requests_are_counted(shared_etcd):
    before = shared_etcd.metric('grpc_server_started_total{grpc_method="Put"')
    shared_etcd.put("k")
    assert shared_etcd.metric('grpc_server_started_total{grpc_method="Put"') == before + 1


def test_etcdctl_talks_to_it():
    for server in (EtcdServer(), EtcdServer(client_certificates=True, users={"app": ("p w", "app/")})):
        with server:
            server.put("app/k", "1")
            found = subprocess.run(server.etcdctl("get", "-w", "json", "app/k"), capture_output=True, check=True)
            assert json.loads(found.stdout)["count"] == 1


@pytest.fixture(scope="module")
def guarded():
    with EtcdServer(client_certificates=True, users={"app": ("p w", "app/")}, token_ttl=1) as server:
        yield server


def test_tls_is_verified_by_its_authority(guarded):
    with socket.create_connection(guarded.address) as link, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(link, server_hostname="127.0.0.1")


def test_a_client_needs_a_certificate(guarded):
    context = ssl.create_default_context(cafile=guarded.authority.ca)
    with socket.create_connection(guarded.address, timeout=10) as link:
        secure = context.wrap_socket(link, server_hostname="127.0.0.1")
        with secure, pytest.raises(ssl.SSLError, match="certificate"):  # TLS 1.3 tells who reads
            secure.recv(100)


def test_a_user_has_its_prefix_alone(guarded):
    def put(key: str) -> subprocess.CompletedProcess[str]:
        command = [word for word in guarded.etcdctl("put", key, "1") if not word.startswith(("--user", "--password"))]
        return subprocess.run([*command, "--user=app", "--password=p w"], capture_output=True, text=True)

    assert put("app/k").returncode == 0
    refused = put("other")
    assert refused.returncode
    assert "permission denied" in refused.stderr
    assert guarded.url.startswith("etcd+tls://app:p%20w@127.0.0.1:")


def test_a_token_ends(guarded):
    guarded.keys()
    token = guarded._token
    time.sleep(4)  # any use of it would prolong it
    guarded.keys()
    assert guarded._token != token


def test_a_taken_port_is_not_the_end(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        programs = sys.modules["tests.etcd_servers"]
        bind, left = programs.bind_free_port, [taken]
        monkeypatch.setattr(programs, "bind_free_port", lambda: left.pop().dup() if left else bind())
        with EtcdServer() as server:
            assert server.port != taken.getsockname()[1]


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(RuntimeError, match="no-such-option"), EtcdServer("--no-such-option"):
        pass


@pytest.mark.parametrize("require", [require_etcd, require_etcdctl])
def test_without_it_a_test_fails_in_ci_and_is_skipped_elsewhere(monkeypatch, require):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="scripts/install-servers"):
        require()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="scripts/install-servers"):
        require()


# Three of them


def test_members_are_one_store(shared_etcd_cluster):
    shared_etcd_cluster.servers[0].put("k", "1")
    assert [server.get("k") for server in shared_etcd_cluster.servers] == ["1"] * 3


@pytest.mark.parametrize("loss", ["kill", "pause", "partition"])
@pytest.mark.parametrize("of", ["leader", "follower"])
def test_two_of_three_go_on(shared_etcd_cluster, loss, of):
    cluster = shared_etcd_cluster
    number = cluster.leader() if of == "leader" else cluster.followers()[0]
    getattr(cluster, loss)(number)
    assert number not in cluster.left
    assert cluster.leader() != number
    for left in cluster.left:
        cluster.servers[left].put(f"k{left}", "1")
    cluster.heal()
    assert len(cluster.servers[number].keys()) == 2


def test_a_member_that_is_cut_off_answers_that_it_has_no_leader(shared_etcd_cluster):
    cluster = shared_etcd_cluster
    number = cluster.leader()
    cluster.partition(number)
    assert cluster.servers[number].status()[1] == "0"
    assert not cluster.servers[number].serves()
    cluster.heal()
    assert cluster.servers[number].serves()


def test_nothing_passes_between_a_member_that_is_cut_off_and_the_others(shared_etcd_cluster):
    cluster = shared_etcd_cluster
    number = cluster.followers()[0]
    ids = [server.status()[0] for server in cluster.servers]

    def received() -> list[float]:
        pairs = [pair for other in cluster.left for pair in ((other, number), (number, other))]
        return [
            cluster.servers[to].metric(f'etcd_network_peer_received_bytes_total{{From="{ids[sender]}"')
            for to, sender in pairs
        ]

    cluster.partition(number)
    before = received()
    time.sleep(1.5)  # of heartbeats, or of its candidacy
    assert received() == before
    cluster.heal()
    wait_until(lambda: received() != before, "them to hear of each other")


def test_the_leader_is_who_is_told_to_lead(shared_etcd_cluster):
    for number in range(3):
        shared_etcd_cluster.lead(number)
        assert shared_etcd_cluster.leader() == number


def test_a_cluster_of_users_by_tls():
    with EtcdCluster(client_certificates=True, users={"app": ("pw", "app/")}) as cluster:
        for number, server in enumerate(cluster.servers):
            server.put(f"app/{number}")
        assert len(cluster.any.keys()) == 3
        assert cluster.url.count("127.0.0.1") == 3
        assert Path(cluster.servers[2].authority.ca) == Path(cluster.servers[0].authority.ca)
