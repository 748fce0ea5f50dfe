"""Who may reach the locks, and where they are: chroots, users, ACLs, TLS, and clients that are there already."""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import quote

import pytest
from kazoo.client import KazooClient, KazooState

import distlock
from distlock import BackendError, BackendUnavailable, ConfigurationError, LockLost, NotHeld
from distlock.backends.zookeeper import Guard, open_client

from .zookeeper_servers import ZooKeeperServer
from .zookeeper_tools import queue_of


def test_a_chroot_is_made_and_kept(shared_zookeeper: ZooKeeperServer) -> None:
    client = shared_zookeeper.client()
    with (
        distlock.connect(f"{shared_zookeeper.url}/apps/shop") as locks,
        distlock.connect(shared_zookeeper.url) as others,
        locks.lock("k"),
        others.lock("k", timeout=0) as lease,
    ):
        assert lease.token
        assert len(client.get_children("/apps/shop/distlock/default/k")) == 1
        assert [seen.key for seen in locks.list()] == ["k"]
    assert client.exists("/apps/shop")


def test_a_transaction_of_the_users_own_is_carried_out_while_the_lock_is_held(
    shared_zookeeper: ZooKeeperServer,
) -> None:
    """Kleppmann, "How to do distributed locking": with a lease alone, a write may come when another has the lock."""
    url = f"{shared_zookeeper.url}/shop"
    shared_zookeeper.client().ensure_path("/shop")
    client = KazooClient(f"{shared_zookeeper.hosts}/shop")
    client.start()

    def write(guard: Guard, value: bytes) -> bool:
        transaction = client.transaction()
        transaction.check(guard.path, guard.version)
        transaction.set_data("/balance", value)
        return not any(isinstance(result, Exception) for result in transaction.commit())

    with distlock.connect(url) as locks, distlock.connect(url) as others:
        with locks.lock("k") as lease:
            client.create("/balance", b"0")
            guard = lease.guard()
            assert isinstance(guard, Guard)
            assert write(guard, b"1")
            others.force_release("k", token=lease.token)
            with others.lock("k") as other:
                assert not write(guard, b"2")
                newer = other.guard()
                assert isinstance(newer, Guard)
                assert write(newer, b"3")
            with pytest.raises(LockLost):
                lease.extend()
            with pytest.raises(LockLost):
                lease.guard()
            lease._done = True
        with pytest.raises(NotHeld):
            other.guard()
    assert client.get("/balance")[0] == b"3"
    client.stop()
    client.close()


def test_a_ready_client_lends_what_it_knows_and_goes_on(shared_zookeeper: ZooKeeperServer) -> None:
    shared_zookeeper.client().ensure_path("/lent")
    client = KazooClient(f"{shared_zookeeper.hosts}/lent", timeout=10.0, auth_data={("digest", "me:s3cret")})
    client.start()
    with distlock.connect(client) as locks:
        assert locks.address == f"zookeeper://{shared_zookeeper.hosts}/lent"
        with locks.lock("k"):
            assert client.get_children("/distlock/default/k")
    assert client.state == KazooState.CONNECTED
    client.stop()
    with distlock.connect(client) as locks, locks.lock("k"):  # nor need it be started
        assert not client.connected
    client.close()


def test_a_ready_client_may_have_another_layout(shared_zookeeper: ZooKeeperServer) -> None:
    client = KazooClient(shared_zookeeper.hosts)
    backend = open_client(client, namespace="default", op_timeout=5, layout="kazoo", path="/locks")
    with distlock.connect(backend) as locks, locks.lock("k"):
        (name,) = shared_zookeeper.children("/locks/k")
        assert name.endswith("__lock__0000000000")
    client.close()


def test_nodes_of_a_creator_are_nobody_elses(shared_zookeeper: ZooKeeperServer) -> None:
    url = f"zookeeper://me:s3%2Fcret@{shared_zookeeper.hosts}/mine?acl=creator"
    other = f"zookeeper://you:s3cret@{shared_zookeeper.hosts}/mine"
    mine = KazooClient(shared_zookeeper.hosts, auth_data={("digest", "me:s3/cret")})
    mine.start()
    with distlock.connect(url) as locks, distlock.connect(other) as others, locks.lock("k"):
        for lock in (others.lock("k"), others.lock("another")):
            with pytest.raises(BackendError, match="the user may not do this; the nodes' ACLs") as caught:
                lock.try_acquire()
            assert "s3cret" not in str(caught.value)
        with pytest.raises(BackendError, match="ACLs"):
            others.inspect("k")
    mine.delete("/mine", recursive=True)
    mine.stop()
    mine.close()


def test_a_creator_has_to_be_someone(shared_zookeeper: ZooKeeperServer) -> None:
    with distlock.connect(f"{shared_zookeeper.url}?acl=creator") as locks, pytest.raises(BackendError, match="a user"):
        locks.lock("k").try_acquire()


def test_locks_are_the_users_of_sasl() -> None:
    pytest.importorskip("puresasl")
    with ZooKeeperServer(users={"app": "s3cret"}) as server:
        url = f"zookeeper://app:s3cret@{server.hosts}?auth=sasl&acl=creator"
        with distlock.connect(url) as locks, locks.lock("k"):
            client = KazooClient(
                server.hosts, sasl_options={"mechanism": "DIGEST-MD5", "username": "app", "password": "s3cret"}
            )
            client.start()
            (name,) = client.get_children("/distlock/default/k")
            acls = client.get_acls(f"/distlock/default/k/{name}")[0]
            assert [(acl.id.scheme, acl.id.id) for acl in acls] == [("sasl", "app")]
            client.stop()
            client.close()
        with distlock.connect(f"zookeeper://app:wr0ng@{server.hosts}?auth=sasl") as locks:
            with pytest.raises(BackendError) as caught:
                locks.lock("k").try_acquire()
            assert "refused the user or the password" in str(caught.value)
            assert "wr0ng" not in str(caught.value)


def test_locks_are_reached_by_tls() -> None:
    if not hasattr(KazooClient(), "check_hostname"):
        with pytest.raises(ConfigurationError, match=r"kazoo 2\.11"), distlock.connect("zk+tls://h") as locks:
            locks.lock("k").try_acquire()
        return
    with ZooKeeperServer(tls=True) as server:
        files = f"ca={quote(server.authority.ca)}&cert={quote(server.authority.client)}"
        url = f"zookeeper+tls://127.0.0.1:{server.secure_port}?{files}"
        with distlock.connect(url) as locks, locks.lock("k"):
            assert len(queue_of(server, "k")) == 1
        with (
            distlock.connect(f"zookeeper://127.0.0.1:{server.secure_port}", op_timeout=2) as locks,
            pytest.raises(BackendUnavailable),
        ):
            locks.lock("k").try_acquire()
        # In a process of its own: kazoo leaves the socket open, and its log the error with it.
        script = "import sys, distlock; distlock.connect(sys.argv[1]).lock('k').try_acquire()"
        command = [sys.executable, "-c", script, f"zookeeper+tls://127.0.0.1:{server.secure_port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "BackendUnavailable" in done.stderr
        assert "CERTIFICATE_VERIFY_FAILED" in done.stderr


def test_nobody_is_there(shared_zookeeper: ZooKeeperServer) -> None:
    with (
        distlock.connect("zookeeper://127.0.0.1:1,127.0.0.1:2") as locks,
        pytest.raises(BackendUnavailable, match="no server can be reached; is it running") as caught,
    ):
        locks.lock("k").try_acquire()
    assert not caught.value.sent
    assert isinstance(caught.value.backend, str)
