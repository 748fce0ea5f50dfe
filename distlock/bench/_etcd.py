"""etcd, asked by bare grpcio, and by HTTP for its metrics."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc

from ..backends.etcd._endpoints import endpoints_of
from ..backends.etcd._rpc import AUTHENTICATE, DELETE_RANGE, LEASE_GRANT, LEASE_REVOKE, TXN, Method, pb
from ..backends.etcd._url import Place
from ._measure import Unknown
from ._servers import Usage

__all__ = ("EtcdServer", "RawLock", "unary")

LEASED = 600
"""Seconds: longer than any run."""
TIMEOUT = 5.0
CONNECTIONS = Unknown("etcd does not tell; name its process by --pid")


def unary(channel: grpc.Channel, method: Method[Any, Any]) -> Callable[..., Any]:
    """A call, with nothing between it and grpcio."""
    return channel.unary_unary(method.path, method.request.SerializeToString, method.reply.FromString)


class RawLock:
    """The least that any lock on etcd does: a transaction that puts a key if there is none, and a deletion."""

    def __init__(self, channel: grpc.Channel, key: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.channel, self.metadata = channel, metadata
        self.txn, self.delete = unary(channel, TXN), unary(channel, DELETE_RANGE)
        request = pb.LeaseGrantRequest(ttl=LEASED)
        self.lease = unary(channel, LEASE_GRANT)(request, timeout=TIMEOUT, metadata=metadata).id
        name = key.encode()
        self.take = pb.TxnRequest(
            compare=[pb.Compare(target=pb.Compare.CREATE, key=name, create_revision=0)],
            success=[pb.RequestOp(request_put=pb.PutRequest(key=name, value=b"v" * 20, lease=self.lease))],
        )
        self.give = pb.DeleteRangeRequest(key=name)

    def run(self, count: int) -> None:
        """Takes and gives back the lock so many times."""
        txn, delete, take, give, metadata = self.txn, self.delete, self.take, self.give, self.metadata
        for _ in range(count):
            assert txn(take, metadata=metadata).succeeded
            assert delete(give, metadata=metadata).deleted == 1


class EtcdServer:
    """The members that a URL names."""

    floor = "a transaction that puts a key if there is none, a deletion"

    def __init__(self, url: str, key: str) -> None:
        self._place = Place.parse(url)
        self._endpoint = endpoints_of(self._place)[0]
        channel = self._endpoint.open()
        metadata: tuple[tuple[str, str], ...] = ()
        if self._place.user is not None:
            login = pb.AuthenticateRequest(name=self._place.user, password=self._place.password or "")
            metadata = (("token", unary(channel, AUTHENTICATE)(login, timeout=TIMEOUT).token),)
        self._lock = RawLock(channel, key, metadata)
        self.run = self._lock.run

    def requests(self) -> float | Unknown:
        """Messages of gRPC, of all members together; each of a stream is one."""
        return self._metric("grpc_server_msg_received_total{")

    def usage(self) -> Usage:
        """Of all members together."""
        return Usage(
            self._metric("process_cpu_seconds_total "), self._metric("process_resident_memory_bytes "), CONNECTIONS
        )

    def _metric(self, name: str) -> float | Unknown:
        """A counter, summed over its labels."""
        try:
            pages = [self._page(endpoint) for endpoint in self._place.endpoints]
        except OSError as error:
            return Unknown(f"its /metrics cannot be read: {error}")
        lines = [line for page in pages for line in page.splitlines() if line.startswith(name)]
        if not lines:
            return Unknown(f"its /metrics have no {name.rstrip(' {')}")
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def _page(self, endpoint: str) -> str:
        tls = self._place.tls
        ways: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]  # directly, as grpc asks it
        if tls is not None:
            ways.append(urllib.request.HTTPSHandler(context=_context(tls.ca)))
        url = f"{'http' if tls is None else 'https'}://{endpoint}/metrics"
        with urllib.request.build_opener(*ways).open(url, timeout=TIMEOUT) as answer:
            return str(answer.read().decode())

    def close(self) -> None:
        """Deletes the key, and the lease that it was under."""
        lock = self._lock
        try:
            revoke = unary(lock.channel, LEASE_REVOKE)
            revoke(pb.LeaseRevokeRequest(id=lock.lease), timeout=TIMEOUT, metadata=lock.metadata)
        except grpc.RpcError:
            pass  # it expires by itself
        finally:
            self._endpoint.close()


def _context(authority: bytes | None) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.decode() if authority else None)
