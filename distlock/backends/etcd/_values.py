"""The layout of the keys, and what they hold.

::

    distlock/<namespace>/<name>/<lease in hex>-<claim id>         a holder or a waiter, in the order of create revisions
    distlock/~withdrawn/<namespace>/<claim id>/<lease in hex>     a claim that must come to nothing, if it comes late
    distlock/~results/<namespace>/<name>                          what came of the work that was claimed as <name>

Go's ``concurrency.Mutex`` and ``etcdctl lock`` look at the prefix ``distlock/<namespace>/<name>/`` and at create
revisions alone, so that they keep us out and we them. A name is percent-encoded; in the raw layout it is
written as it is, and a lock whose name begins with another's and ``/`` is in its way, as it is in Go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple
from urllib.parse import quote, unquote

from .._records import read
from ..base import Claim, Holder, Inspection, Waiter
from ._rpc import pb

__all__ = ("Guard", "Layout", "holder", "inspection", "waiting_ttl", "whole_seconds")

ROOT = "distlock"
LONGEST_WAIT = 10
"""Seconds. Whoever waits does so under a lease no longer than this, so that one that died keeps nobody for its ttl."""


class Guard(NamedTuple):
    """What a transaction in etcd compares, to be carried out only while a lock is held."""

    key: bytes
    create_revision: int
    """Of that key: not 0, which is that of a key that is not there."""


class Layout:
    """Where the keys of one namespace are."""

    def __init__(self, namespace: str, *, raw: bool = False) -> None:
        self._raw = raw
        self._start = f"{ROOT}/{namespace}/"
        self._late = f"{ROOT}/~withdrawn/{namespace}/"  # no namespace has a ~ in it
        self._results = f"{ROOT}/~results/{namespace}/"
        self.prefix: Callable[[str], bytes] = lru_cache(maxsize=512)(self._prefix)

    def _prefix(self, name: str) -> bytes:
        return f"{self._start}{self._written(name)}/".encode()

    def _written(self, name: str) -> str:
        return name if self._raw else quote(name, safe="")

    def own(self, claim: Claim, lease: int) -> bytes:
        """The key of a claim."""
        return self.prefix(claim.key) + b"%x-%s" % (lease, claim.id.encode())

    def late(self, claim_id: str) -> bytes:
        """Under it stands what withdraws a claim that may still be on its way."""
        return f"{self._late}{claim_id}/".encode()

    def span(self, prefix: str) -> tuple[bytes, bytes]:
        """The first key of all locks whose names start with ``prefix``, and the end of them."""
        return self._span(self._start, prefix)

    def _span(self, folder: str, prefix: str) -> tuple[bytes, bytes]:
        start = f"{folder}{self._written(prefix)}".encode()
        return start, end_of(start)

    def name_of(self, key: bytes) -> str:
        """The lock that a key belongs to."""
        return self._read(key[len(self._start) :].rpartition(b"/")[0])

    def _read(self, written: bytes) -> str:
        name = written.decode(errors="replace")
        return name if self._raw else unquote(name)

    # Of results.

    def record(self, name: str) -> bytes:
        """The key of what came of the work."""
        return f"{self._results}{self._written(name)}".encode()

    def records(self, prefix: str) -> tuple[bytes, bytes]:
        """The first key of all records whose names start with ``prefix``, and the end of them."""
        return self._span(self._results, prefix)

    def name_of_record(self, key: bytes) -> str:
        """The work that a record is of."""
        return self._read(key[len(self._results) :])


def end_of(prefix: bytes) -> bytes:
    """The first key after all those that begin with ``prefix``. (None of ours ends in 0xff, which is no UTF-8.)"""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def whole_seconds(ttl: float) -> int:
    """A lease of etcd lasts for whole seconds."""
    return math.ceil(ttl)


def waiting_ttl(ttl: float) -> int:
    """Of the lease under which a claim waits."""
    return min(whole_seconds(ttl), LONGEST_WAIT)


def _name(kv: pb.KeyValue) -> str:
    return kv.key.rpartition(b"/")[2].decode(errors="replace")


def holder(kv: pb.KeyValue, ttl: float | None = None) -> Holder:
    """Who holds a lock: the one whose key was there first."""
    owner, about = read(kv.value, _name(kv))
    return Holder.found(owner, about, token=kv.create_revision, held_for=None, ttl=ttl)


def found(kvs: Sequence[pb.KeyValue]) -> Callable[[], Holder] | None:
    """The holder, for who wants to know."""
    return partial(holder, kvs[0]) if kvs else None


def inspection(name: str, kvs: Iterable[pb.KeyValue], ttl: Callable[[int], float | None]) -> Inspection:
    """A lock, of its keys in the order of their create revisions."""
    line = list(kvs)
    if not line:
        return Inspection(name, None)
    first = holder(line[0], ttl(line[0].lease) if line[0].lease else None)
    return Inspection(name, first, tuple(Waiter.read(*read(kv.value, _name(kv))) for kv in line[1:]))
