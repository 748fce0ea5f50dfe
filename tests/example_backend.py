"""A backend of a third party, whole: locks as rows of an SQLite file, with a ttl and without a queue.

Waiters ask again when the holder's ttl has passed, and at once after a release within the same process. Its times
count from the start of the machine, so its file belongs where a restart clears it, as in /run.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TypeVar

from distlock.backends.base import (
    BackendUnavailable,
    Busy,
    Claim,
    Grant,
    Guarantees,
    Holder,
    Inspection,
    LeaseState,
    Renewal,
    Subscription,
    SyncBackend,
    Waiter,
    Wake,
    now,
    proven_until,
    seconds_left,
)

T = TypeVar("T")

SCHEMA = (
    "create table if not exists locks ("
    "key text primary key, claim text, owner text, token integer, since real, ends real, about text)",
    "create table if not exists last (token integer)",
    "insert into last select 0 where not exists (select * from last)",
)
EXPIRE = "delete from locks where key = ? and ends <= ?"
GIVE = "insert into locks select ?, ?, ?, token, ?, ?, ? from last"
PROLONG = "update locks set ends = max(ends, ?) where claim = ? and ends > ?"
SHOW = "select key, claim, owner, about, token, since, ends from locks where ends > ?"
WAITING: dict[str, dict[str, tuple[Claim, Wake]]] = {}
"""Who waits in this process, by file."""
TURN = threading.Lock()
"""SQLite lets those who wait try again after a pause each, which some lose for seconds."""


class SQLiteBackend(SyncBackend):
    guarantees: Guarantees = Guarantees(
        backend="sqlite",
        scope="machine",
        fenced=True,
        fair=False,
        dead_holder="ttl",
        owner_reentrant=False,
        extend=True,
    )

    def __init__(self, path: str, namespace: str = "default") -> None:
        self.address: str = f"sqlite://{path}"
        self._file = f"{path}.{namespace}"
        self._waiting = WAITING.setdefault(self._file, {})

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy:
        asked_at = now()

        def step(db: sqlite3.Connection) -> Grant | Busy:
            t = now()
            db.execute(EXPIRE, (claim.key, t))
            holder = db.execute(SHOW + " and key = ?", (t, claim.key)).fetchone()
            if holder is None:
                db.execute("update last set token = token + 1")
                db.execute(GIVE, (claim.key, claim.id, claim.owner or claim.id, t, t + claim.ttl, claim.about))
            elif holder[1] != claim.id:
                return Busy(claim, _holder(holder), retry_after=holder[-1] - t)
            else:  # the reply to an earlier request was lost
                db.execute(PROLONG, (t + claim.ttl, claim.id, t))
            (token,) = db.execute("select token from locks where claim = ?", (claim.id,)).fetchone()
            return Grant(claim, token, proven_until(asked_at, claim.ttl))

        return self._transact(step, deadline)

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        self._waiting[busy.claim.id] = busy.claim, wake
        wake()  # it may have become free since
        return _Watch(self._waiting, busy.claim.id)

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        self._give_up(claim, deadline)

    def release(self, grant: Grant, deadline: float) -> bool:
        return self._give_up(grant.claim, deadline)

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        return [self.extend(grant, grant.claim.ttl, deadline) for grant in grants]

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        asked_at, t = now(), now()
        parameters = (t + ttl, grant.claim.id, t)
        if self._transact(lambda db: db.execute(PROLONG, parameters).rowcount, deadline):
            return Renewal(LeaseState.HELD, proven_until(asked_at, ttl))
        return Renewal(LeaseState.LOST)

    def revoke(self, key: str, token: int, deadline: float) -> bool:
        return self._delete("delete from locks where key = ? and token = ?", (key, token), key, deadline)

    def inspect(self, key: str, deadline: float) -> Inspection:
        return next((seen for seen in self.list(key, deadline) if seen.key == key), Inspection(key, None))

    def list(self, prefix: str, deadline: float) -> Iterator[Inspection]:
        rows = self._transact(lambda db: db.execute(SHOW, (now(),)).fetchall(), deadline)
        waiting = [claim for claim, _ in [*self._waiting.values()]]
        for row in rows:
            waiters = [Waiter.read(claim.owner or claim.id, claim.about) for claim in waiting if claim.key == row[0]]
            if row[0].startswith(prefix):
                yield Inspection(row[0], _holder(row), tuple(waiters))

    def lose(self, key: str) -> None:
        self._transact(lambda db: db.execute("delete from locks where key = ?", (key,)), now() + 5)

    def _give_up(self, claim: Claim, deadline: float) -> bool:
        query = "delete from locks where claim = ? and ends > ?"
        return self._delete(query, (claim.id, now()), claim.key, deadline)

    def _delete(self, query: str, parameters: tuple[object, ...], key: str, deadline: float) -> bool:
        deleted = self._transact(lambda db: db.execute(query, parameters).rowcount, deadline)
        for waiting, wake in [*self._waiting.values()]:
            if waiting.key == key:
                wake()
        return deleted > 0

    def _transact(self, step: Callable[[sqlite3.Connection], T], deadline: float) -> T:
        try:
            with TURN, closing(sqlite3.connect(self._file, timeout=seconds_left(deadline), isolation_level=None)) as db:
                db.execute("pragma synchronous = off")
                db.execute("begin immediate")
                for statement in SCHEMA:
                    db.execute(statement)
                outcome = step(db)
                db.execute("commit")
                return outcome
        except sqlite3.Error as error:
            raise BackendUnavailable(f"{error} [{self.address}]", backend=self.address, sent=True) from error


class _Watch:
    def __init__(self, waiting: dict[str, tuple[Claim, Wake]], claim_id: str) -> None:
        self._waiting, self._claim_id = waiting, claim_id

    def close(self) -> None:
        self._waiting.pop(self._claim_id, None)


def _holder(row: tuple[str, str, str, str, int, float, float]) -> Holder:
    _, _, owner, about, token, since, ends = row
    t = now()
    return Holder.found(owner, about, token=token, held_for=t - since, ttl=ends - t)


def open_url(url: str, *, namespace: str, op_timeout: float) -> SQLiteBackend:
    """What the entry point names: ``sqlite:///file``."""
    return SQLiteBackend(url.removeprefix("sqlite://"), namespace)
