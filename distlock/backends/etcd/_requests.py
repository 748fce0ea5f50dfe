"""The transactions: what is asked in one step.

Of the keys of a lock the one with the lowest create revision holds it. A transaction's operations run in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from ._rpc import pb
from ._values import end_of

__all__ = (
    "attach",
    "complete",
    "confirm",
    "enter",
    "first_of",
    "forget",
    "gets",
    "leave",
    "line_of",
    "pass_over",
    "unless_done",
)

_EQUAL, _GREATER = pb.Compare.EQUAL, pb.Compare.GREATER
_CREATE, _MOD = pb.Compare.CREATE, pb.Compare.MOD
_ASCEND, _DESCEND = pb.RangeRequest.ASCEND, pb.RangeRequest.DESCEND
_BY_CREATE = pb.RangeRequest.CREATE


def _none_in(prefix: bytes) -> pb.Compare:
    """No key begins with it. (A comparison with a range holds if it does for every key there, so for none.)"""
    return pb.Compare(result=_EQUAL, target=_CREATE, key=prefix, range_end=end_of(prefix), create_revision=0)


# What is the same for all claims of a lock is made once.
_nobody_in = lru_cache(maxsize=512)(_none_in)


def _created(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(result=_EQUAL, target=_CREATE, key=key, create_revision=revision)


def _none_before(prefix: bytes, revision: int) -> pb.Compare:
    return pb.Compare(
        result=_GREATER, target=_CREATE, key=prefix, range_end=end_of(prefix), create_revision=revision - 1
    )


def _get(key: bytes, *, keys_only: bool = False) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key, keys_only=keys_only))


def _put(key: bytes, value: bytes, lease: int) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


def _delete(key: bytes, end: bytes = b"") -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end))


@lru_cache(maxsize=512)
def _first(prefix: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_range=first_of(prefix))


def _before(prefix: bytes, revision: int) -> pb.RequestOp:
    """The key that was created last, of those created before a revision; for 0 of all."""
    return pb.RequestOp(
        request_range=pb.RangeRequest(
            key=prefix,
            range_end=end_of(prefix),
            limit=1,
            sort_order=_DESCEND,
            sort_target=_BY_CREATE,
            keys_only=True,
            max_create_revision=revision - 1 if revision else 0,
        )
    )


@lru_cache(maxsize=512)
def _last(prefix: bytes) -> pb.RequestOp:
    return _before(prefix, 0)


def first_of(prefix: bytes) -> pb.RangeRequest:
    """The holder."""
    return pb.RangeRequest(key=prefix, range_end=end_of(prefix), limit=1, sort_order=_ASCEND, sort_target=_BY_CREATE)


def line_of(prefix: bytes) -> pb.RangeRequest:
    """The holder and those who wait, in order."""
    return pb.RangeRequest(key=prefix, range_end=end_of(prefix), sort_order=_ASCEND, sort_target=_BY_CREATE)


def enter(prefix: bytes, own: bytes, value: bytes, late: bytes, hold: int, wait: int) -> pb.TxnRequest:
    """Own key, under the lease ``hold``, if nobody else is there; else, if ``wait`` is not 0, under that one in the
    queue, of which the last (who is waited for) and the first are found before it is put."""
    look, not_withdrawn = [_get(own), _first(prefix)], _none_in(late)
    if wait:
        queue = pb.TxnRequest(
            compare=[_created(own, 0), not_withdrawn],
            success=[_last(prefix), _first(prefix), _put(own, value, wait)],
            failure=look,
        )
        look = [pb.RequestOp(request_txn=queue)]
    return pb.TxnRequest(compare=[_nobody_in(prefix), not_withdrawn], success=[_put(own, value, hold)], failure=look)


def confirm(prefix: bytes, own: bytes, revision: int) -> pb.TxnRequest:
    """Whether own key, of that create revision, is the first; else what became of it, who is before it, and who is
    first."""
    return pb.TxnRequest(
        compare=[_created(own, revision), _none_before(prefix, revision)],
        failure=[_get(own), _before(prefix, revision), _first(prefix)],
    )


def pass_over(prefix: bytes, own: bytes, revision: int) -> pb.TxnRequest:
    """Own key is deleted, if it is the first."""
    return pb.TxnRequest(compare=[_created(own, revision), _none_before(prefix, revision)], success=[_delete(own)])


def attach(own: bytes, value: bytes, revision: int, mod_revision: int, lease: int) -> pb.TxnRequest:
    """Own key moves to another lease, if nothing has become of it since; its create revision stays."""
    same = pb.Compare(result=_EQUAL, target=_MOD, key=own, mod_revision=mod_revision)
    return pb.TxnRequest(
        compare=[_created(own, revision), same], success=[_put(own, value, lease)], failure=[_get(own)]
    )


def leave(own: bytes, revision: int, tombs: Sequence[tuple[bytes, int]]) -> pb.TxnRequest:
    """Own key is deleted if it has that create revision, or whatever it is for 0; what is late comes to nothing."""
    late = [_put(tomb, b"", lease) for tomb, lease in tombs]
    if not revision:
        return pb.TxnRequest(success=[_delete(own), *late])
    return pb.TxnRequest(compare=[_created(own, revision)], success=[_delete(own), *late], failure=late)


def gets(keys: Iterable[bytes], *, keys_only: bool = False) -> pb.TxnRequest:
    """What some keys are, at one moment."""
    return pb.TxnRequest(success=[_get(key, keys_only=keys_only) for key in keys])


# Of results. A record and a line are never there at the same time: who has a key in the line need not ask for a record.


def unless_done(request: pb.TxnRequest, record: bytes) -> pb.TxnRequest:
    """The same `enter` or `confirm`, if there is no such record; if it fails, its last answer is the record."""
    for otherwise in request.failure:
        if otherwise.HasField("request_txn"):
            otherwise.request_txn.compare.append(_created(record, 0))
    request.compare.append(_created(record, 0))
    request.failure.append(_get(record))
    return request


def complete(own: bytes, revision: int, prefix: bytes, record: bytes, value: bytes, lease: int) -> pb.TxnRequest:
    """A record instead of the whole line, if own key is there with that create revision; else the record there is."""
    return pb.TxnRequest(
        compare=[_created(own, revision)],
        success=[_put(record, value, lease), _delete(prefix, end_of(prefix))],
        failure=[_get(record)],
    )


def forget(record: bytes) -> pb.TxnRequest:
    """The record is deleted, if there is one."""
    there = pb.Compare(result=_GREATER, target=_CREATE, key=record, create_revision=0)
    return pb.TxnRequest(compare=[there], success=[_delete(record)])
