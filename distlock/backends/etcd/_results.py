"""Results: locks whose work can be completed, and then is not granted any more.

A record is put in the transaction that deletes the whole line, and nobody comes into the line where there is a record.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from ..base import BackendError, BackendUnavailable, Claim, Done, Grant, now
from ._backend import EtcdBackend
from ._client import Answer, Client
from ._entrance import TRIES, Entrance
from ._errors import LeaseNotFound
from ._places import Place
from ._requests import complete, forget, unless_done
from ._rpc import LEASE_GRANT, RANGE, TXN, pb
from ._turns import Turn, Turns

__all__ = ("EtcdResults",)

SHARED = 16
"""A record may be kept for a part in so many longer than asked for, so that others end with it."""
MOST = 1000
"""Records under one lease: etcd deletes them in one step, in which it does nothing else."""


def _packed(claim_id: str, record: bytes) -> bytes:
    """A version, whose it is, and the record."""
    return b"1 %s %s" % (claim_id.encode(), record)


def _unpacked(value: bytes) -> tuple[str, bytes]:
    """Whose it is, and the record."""
    version, _, rest = value.partition(b" ")
    claim_id, _, record = rest.partition(b" ")
    return (claim_id.decode(errors="replace"), record) if version == b"1" else ("", value)


class _Entrance(Entrance):
    """Where it is asked in the same step whether the work is done."""

    def _transact(
        self, place: Place, claim: Claim, request: pb.TxnRequest, deadline: float
    ) -> Answer[pb.TxnResponse] | Done:
        answer = super()._transact(place, claim, unless_done(request, self._layout.record(claim.key)), deadline)
        if isinstance(answer, Done) or answer.value.succeeded:
            return answer
        kvs = answer.value.responses.pop().response_range.kvs
        if not kvs:
            return answer
        place.unknown = place.unknown or answer.again
        return Done(claim, _unpacked(kvs[0].value)[1], in_flight=place.unknown)


class EtcdResults(EtcdBackend):
    """As thread-safe. Names are written into the keys encoded, whatever the locks' layout: a line is deleted by its
    prefix, in which no other's may be."""

    _entering: ClassVar[type[Entrance]] = _Entrance

    def __init__(self, connect: Callable[[], Client], namespace: str, op_timeout: float) -> None:
        super().__init__(connect, namespace, op_timeout)
        self._leases = _Leases(self._client)

    def complete(self, grant: Grant, record: bytes, keep: float, deadline: float) -> bool:
        claim = grant.claim
        place = self._places.find(claim.id)
        if place is None or place.revision != grant.token:  # by an earlier request, perhaps
            kv = self._record(claim.key, deadline)
            return kv is not None and _unpacked(kv.value)[0] == claim.id
        ours = self._completed(place, grant, _packed(claim.id, record), keep, deadline)
        self._turned_away(place, claim)
        return ours

    def _completed(self, place: Place, grant: Grant, value: bytes, keep: float, deadline: float) -> bool:
        claim, at = grant.claim, self._layout.record(grant.claim.key)
        for _ in range(TRIES):
            lease = self._leases.get(keep, deadline)
            request = complete(place.key, grant.token, place.prefix, at, value, lease)
            try:
                txn = self._client.call(TXN, request, deadline, key=claim.key).value
            except LeaseNotFound:
                self._leases.drop(lease)
                continue
            if txn.succeeded:
                return True
            kvs = txn.responses[0].response_range.kvs
            return bool(kvs) and _unpacked(kvs[0].value)[0] == claim.id
        raise BackendUnavailable(
            f"the leases of its records end as soon as they are granted [{self.address}]",
            key=claim.key,
            backend=self.address,
            sent=True,
        )

    def _record(self, key: str, deadline: float) -> pb.KeyValue | None:
        request = pb.RangeRequest(key=self._layout.record(key))
        kvs = self._client.call(RANGE, request, deadline, key=key).value.kvs
        return kvs[0] if kvs else None

    def recorded(self, key: str, deadline: float) -> tuple[bytes, float | None] | None:
        kv = self._record(key, deadline)
        return None if kv is None else (_unpacked(kv.value)[1], self._left(kv.lease, deadline))

    def forget(self, key: str, deadline: float) -> bool:
        answer = self._client.call(TXN, forget(self._layout.record(key)), deadline, key=key)
        return answer.value.succeeded or answer.again

    def records(self, prefix: str, deadline: float) -> Iterator[str]:
        for kv in self._listed(*self._layout.records(prefix), keys_only=True):
            yield self._layout.name_of_record(kv.key)

    def after_fork(self) -> None:
        super().after_fork()
        self._leases.after_fork()


@dataclass(slots=True)
class _Lease:
    id: int
    keep: float
    """Seconds for which it was made."""
    ends_at: float
    """Not before that, and a little later most often."""
    granted: bool = False
    records: int = 0
    """About so many."""

    def serves(self, keep: float) -> bool:
        """A record that is to be kept for so many seconds from now on may end with it."""
        return self.records < MOST and self.ends_at - now() >= keep


class _Leases:
    """Those with which records end. Thread-safe.

    A lease is more for a cluster to remember than a key. So records that are to be kept for as long share one, which is
    that much longer. It is never kept alive, and not given back: a record outlives the process that wrote it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: it has its own."""
        self._making = Turns()
        self._current: dict[int, _Lease] = {}

    def get(self, keep: float, deadline: float) -> int:
        """One that lasts for ``keep`` seconds from now on."""
        ttl = math.ceil(keep + max(keep / SHARED, 1.0))
        lease = self._current.get(ttl)
        if lease is None or not lease.granted or not lease.serves(keep):
            lease = self._renewed(ttl, keep, deadline)
        lease.records += 1
        return lease.id

    def drop(self, gone: int) -> None:
        """etcd does not know it any more."""
        for ttl, lease in list(self._current.items()):
            if lease.id == gone:
                self._current.pop(ttl, None)

    def _renewed(self, ttl: int, keep: float, deadline: float) -> _Lease:
        turn = Turn()
        if not self._making.take(ttl, turn, deadline):  # another thread is at it: one lease, not two
            address = self._client.address
            what = "the lease of a record was not granted in time"
            raise BackendUnavailable(f"{what} [{address}]", backend=address, sent=False)
        try:
            lease = self._current.get(ttl)
            if lease is None or not lease.serves(keep):
                for other, each in list(self._current.items()):
                    if not each.serves(each.keep):
                        self._current.pop(other, None)
                ours = secrets.randbits(62) | 1 << 61  # to choose: it is asked for again, if the answer is lost
                lease = self._current[ttl] = _Lease(ours, keep, now() + ttl)
            if not lease.granted:
                self._grant(lease.id, ttl, deadline)
                lease.granted = True
            return lease
        finally:
            self._making.leave(ttl, turn)

    def _grant(self, lease: int, ttl: int, deadline: float) -> None:
        try:
            self._client.call(LEASE_GRANT, pb.LeaseGrantRequest(ttl=ttl, id=lease), deadline)
        except BackendError as error:
            if "lease already exists" not in str(error):  # by an earlier request that was not answered
                raise
