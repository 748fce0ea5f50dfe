"""An etcd server for the length of a benchmark, and the least that can be said to it."""

from __future__ import annotations

import queue
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from distlock.backends.etcd._rpc import RANGE, WATCH, pb
from distlock.bench import _etcd
from distlock.bench._etcd import unary
from tests.etcd_servers import EtcdServer, require_etcd

from ._machine import SERVER, description, pin, versions

__all__ = ("RawLock", "RawQueue", "conditions", "etcd3_at", "port_of", "requests_of", "server", "unary")

PEERS = ("grpcio", "protobuf", "cslab-etcd3", "aetcd")


@contextmanager
def server(processor: int | None) -> Iterator[EtcdServer]:
    """A server of our own that waits for no disk, bound to ``processor``."""
    with EtcdServer() as store:
        pin(store.pid, processor)
        yield store


def port_of(url: str) -> int:
    """The other way."""
    return int(url.rpartition(":")[2])


def conditions(*, pinned: bool = False) -> dict[str, str]:
    """What readers must know of this run."""
    version = subprocess.run([require_etcd(), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        **description(),
        "etcd": f"{version.split()[2]}, without fsync",
        **versions(PEERS),
        "client and server on processors of their own": "yes" if pinned and SERVER is not None else "no",
    }


def etcd3_at(url: str) -> Any:
    """A client of cslab-etcd3."""
    import etcd3

    return etcd3.client(port=port_of(url))


def requests_of(store: EtcdServer) -> dict[str, float]:
    """How many requests the server has received so far, by method; each message of a stream is one."""
    methods = ("Range", "Txn", "Put", "DeleteRange", "Watch", "Status", "Authenticate")
    leases = ("LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases")
    prefix = "grpc_server_msg_received_total{grpc_method="
    return {name: store.metric(f'{prefix}"{name}",') for name in (*methods, *leases)}


class RawLock(_etcd.RawLock):
    """The least that any lock on etcd does: a transaction that puts a key if there is none, and a deletion."""

    def __init__(self, port: int, key: str) -> None:
        super().__init__(grpc.insecure_channel(f"127.0.0.1:{port}"), key)


class RawQueue(RawLock):
    """The least that a queue costs: a transaction that also tells whom to wait for, a watch of that one, a deletion."""

    def __init__(self, port: int, key: str) -> None:
        super().__init__(port, key)
        lease = self.take.success[0].request_put.lease
        prefix = f"{key}/".encode()
        own = prefix + uuid.uuid4().hex.encode()
        newest = pb.RangeRequest(
            key=prefix,
            range_end=prefix[:-1] + b"0",
            limit=1,
            sort_order=pb.RangeRequest.DESCEND,
            sort_target=pb.RangeRequest.CREATE,
            keys_only=True,
        )
        self.take = pb.TxnRequest(
            success=[
                pb.RequestOp(request_range=newest),
                pb.RequestOp(request_put=pb.PutRequest(key=own, lease=lease)),
            ]
        )
        self.give = pb.DeleteRangeRequest(key=own)
        self.range = unary(self.channel, RANGE)
        self.wishes: queue.SimpleQueue[pb.WatchRequest] = queue.SimpleQueue()
        stream = self.channel.stream_stream(WATCH.path, WATCH.request.SerializeToString, WATCH.reply.FromString)
        self.news = stream(iter(self.wishes.get, None))

    def __enter__(self) -> None:
        reply = self.txn(self.take)
        before = reply.responses[0].response_range.kvs
        if before:
            self._outwait(before[0].key, reply.header.revision)

    def _outwait(self, key: bytes, revision: int) -> None:
        # From now on, not from that revision on: etcd looks only every 0.1 s after watches that begin in the past.
        wish = pb.WatchCreateRequest(key=key, filters=[pb.WatchCreateRequest.NOPUT])
        self.wishes.put(pb.WatchRequest(create_request=wish))
        told = next(self.news)
        while not told.created:  # the cancellation of the last one
            told = next(self.news)
        this = told.watch_id
        still = pb.RangeRequest(key=key, max_create_revision=revision, keys_only=True)
        if told.header.revision == revision or self.range(still).kvs:
            while not (told.events and told.watch_id == this):
                told = next(self.news)
        self.wishes.put(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=this)))

    def __exit__(self, *_: object) -> None:
        self.delete(self.give)
