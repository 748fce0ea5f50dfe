"""What is written in etcd only while a lock is held."""

from __future__ import annotations

import pytest

import distlock
from distlock import LockLost, NotHeld
from distlock.backends.etcd import Guard

from .etcd_servers import EtcdServer


def test_a_transaction_of_the_users_own_is_carried_out_while_the_lock_is_held(shared_etcd: EtcdServer) -> None:
    """etcd.io, "How to do distributed locking": with a lease alone, a write may come when another has the lock."""
    etcd3 = pytest.importorskip("etcd3")
    client = etcd3.client(port=shared_etcd.port, timeout=10)

    def write(guard: Guard, value: str) -> bool:
        done, _ = client.transaction(
            compare=[client.transactions.create(guard.key) == guard.create_revision],
            success=[client.transactions.put("balance", value)],
            failure=[],
        )
        return bool(done)

    with distlock.connect(shared_etcd.url) as locks, distlock.connect(shared_etcd.url) as others:
        with locks.lock("k") as lease:
            guard = lease.guard()
            assert guard.create_revision == lease.token
            assert write(guard, "1")
            lease.extend(120.0)
            assert write(guard, "2"), "the revision stays"
            others.force_release("k", token=lease.token)
            with others.lock("k") as other:
                assert not write(guard, "3")
                assert write(other.guard(), "4")
            with pytest.raises(LockLost):
                lease.extend()
            with pytest.raises(LockLost):
                lease.guard()
            lease._done = True
        with pytest.raises(NotHeld):
            other.guard()
        assert client.get("balance")[0] == b"4"
    client.delete("balance")
    client.close()
