"""A backend of a third party, whole: locks as rows of an SQLite file, with a ttl and without a queue.

Waiters are told when to ask again by the ttl of the holder, and by a release within the same process.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
)

WAITING: dict[str, dict[str, tuple[Claim, Wake]]] = {}
"""By file: who waits in this process."""

SCHEMA = """
create table if not exists locks
  (key text primary key, claim text, owner text, token int, since real, ends real, about text);
create table if not exists tokens (last int); insert into tokens select 0 where not exists (select * from tokens);
"""


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

    def __init__(self, path: str) -> None:
        self.address: str = f"sqlite://{path}"
        self._path = path
        self._waiting = WAITING.setdefault(path, {})
        with self._step() as db:
            db.executescript(SCHEMA)

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy:
        asked_at, t = now(), time.time()
        with self._step() as db:
            db.execute("delete from locks where key = ? and ends <= ?", (claim.key, t))
            row = db.execute(
                "select claim, token, owner, about, since, ends from locks where key = ?", (claim.key,)
            ).fetchone()
            if row is None:
                db.execute("update tokens set last = last + 1")
                (token,) = db.execute("select last from tokens").fetchone()
                owner = claim.owner or claim.id
                db.execute("insert into locks values (?, ?, ?, ?, ?, ?, ?)",
                           (claim.key, claim.id, owner, token, t, t + claim.ttl, claim.about))  # fmt: skip
            elif row[0] != claim.id:
                return Busy(claim, _holder(t, *row[1:]), retry_after=row[5] - t)
            else:
                token = row[1]
                db.execute("update locks set ends = ? where claim = ?", (t + claim.ttl, claim.id))
        return Grant(claim, token, proven_until(asked_at, claim.ttl))

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        self._waiting[busy.claim.id] = (busy.claim, wake)
        wake()  # it may have become free since
        return _Watch(self._waiting, busy.claim.id)

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        self._waiting.pop(claim.id, None)
        self._delete(claim)

    def release(self, grant: Grant, deadline: float) -> bool:
        return self._delete(grant.claim)

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        return [self.extend(grant, grant.claim.ttl, deadline) for grant in grants]

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        asked_at, t = now(), time.time()
        with self._step() as db:
            done = db.execute(
                "update locks set ends = max(ends, ?) where claim = ? and ends > ?", (t + ttl, grant.claim.id, t)
            )
        return Renewal(LeaseState.HELD, proven_until(asked_at, ttl)) if done.rowcount else Renewal(LeaseState.LOST)

    def inspect(self, key: str, deadline: float) -> Inspection:
        (found,) = [*self.list(key, deadline)] or [Inspection(key, None)]
        return Inspection(key, found.holder, self._waiters(key)) if found.key == key else Inspection(key, None)

    def list(self, prefix: str, deadline: float) -> Iterator[Inspection]:
        t = time.time()
        with self._step() as db:
            rows = db.execute("select key, token, owner, about, since, ends from locks where ends > ?", (t,)).fetchall()
        for key, *rest in rows:
            if key.startswith(prefix):
                yield Inspection(key, _holder(t, *rest), self._waiters(key))

    def lose(self, key: str) -> None:
        with self._step() as db:
            db.execute("delete from locks where key = ?", (key,))

    def close(self) -> None:
        pass

    def after_fork(self) -> None:
        self._waiting.clear()

    def _delete(self, claim: Claim) -> bool:
        with self._step() as db:
            done = db.execute("delete from locks where claim = ? and ends > ?", (claim.id, time.time()))
        for waiting, wake in list(self._waiting.values()):
            if waiting.key == claim.key:
                wake()
        return done.rowcount > 0

    def _waiters(self, key: str) -> tuple[Waiter, ...]:
        claims = [claim for claim, _ in list(self._waiting.values()) if claim.key == key]
        return tuple(Waiter.read(claim.owner or claim.id, claim.about) for claim in claims)

    @contextmanager
    def _step(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self._path, timeout=5, isolation_level=None)
        try:
            db.execute("begin immediate")
            yield db
            db.execute("commit") if db.in_transaction else None
        except sqlite3.Error as error:
            raise BackendUnavailable(f"{error} [{self.address}]", backend=self.address) from error
        finally:
            db.close()


class _Watch:
    def __init__(self, waiting: dict[str, tuple[Claim, Wake]], claim_id: str) -> None:
        self._waiting, self._claim_id = waiting, claim_id

    def close(self) -> None:
        self._waiting.pop(self._claim_id, None)


def _holder(t: float, token: int, owner: str, about: str, since: float, ends: float) -> Holder:
    return Holder.found(owner, about, token=token, held_for=t - since, ttl=ends - t)
