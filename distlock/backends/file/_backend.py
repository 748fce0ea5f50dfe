"""Locks as files: one file a key, locked with `flock(2)` for as long as the lease is held."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from ..base import (
    BackendError,
    BackendUnavailable,
    Busy,
    Claim,
    Done,
    Fault,
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
from ._flock import LONGEST_RECORD, LockFile
from ._idle import IdleFiles
from ._line import Line
from ._record import Record, TokenClock, file_name

__all__ = ("FREE", "FileBackend", "Held")

TRIES, PAUSE = 12, 0.0002
"""How often, and after how many seconds, to look again at a file that is just being deleted.

Each pause is twice the one before, 0.8 s in all: whoever deletes it may have to wait for its processor.
"""
FREE = b"0"
"""The first byte of a file that nobody holds, in place of the version of a record."""


@dataclass(slots=True)
class Held:
    """A locked file. The end of the process frees it."""

    file: LockFile
    token: int
    # A claim may be given up by two threads at once, and by a signal handler within; its file, which is
    # soon in other hands, only by one. What Ctrl-C interrupts can be tried again.
    mutex: AbstractContextManager[object] = field(default_factory=threading.RLock)
    in_hand: bool = False
    lent: bool = False
    """Another process may have it open, and keep others out for as long as it works under it."""


class FileBackend(SyncBackend):
    """Thread-safe. The kernel keeps the locks: a holder that dies frees its own at once."""

    guarantees: Guarantees = Guarantees(
        backend="file",
        scope="machine",
        fenced=True,
        fair=False,
        dead_holder="at once",
        owner_reentrant=False,
        extend=True,
        excepted=frozenset({Fault.DELETED, Fault.STOPPED_WAITER, Fault.FOREIGN_MACHINE, Fault.CLOCK_SET_BACK}),
    )

    def __init__(self, folder: Path, namespace: str = "default") -> None:
        self.address: str = f"file://{folder}"
        self._place = folder, namespace
        self._folder = folder / namespace
        self._clock = TokenClock(self._folder)
        self._held: dict[str, Held] = {}
        self._lines: dict[str, Line] = {}
        self._mutex = threading.Lock()
        self._closed = False
        self._idle = IdleFiles()
        weakref.finalize(self, self._idle.close)  # at exit too
        self.path_of: Callable[[str], str] = lru_cache(maxsize=512)(
            lambda key: f"{self._folder}{os.sep}{file_name(key)}"
        )

    def results(self) -> SyncBackend:
        from ._results import FileResults

        folder, namespace = self._place
        return FileResults(folder, f"{namespace}+results")  # no namespace has a plus

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        asked_at = now()
        if self._closed:
            raise BackendError(f"this manager was closed [{self.address}]", key=claim.key, backend=self.address)
        held = self._held.get(claim.id)
        if held is None:
            try:
                held = self._lock_now(claim)
            except OSError as error:
                raise self._mapped(error, claim.key) from error
        if held is None:
            return Busy(claim, self._holder(self.path_of(claim.key)))
        return Grant(claim, held.token, proven_until(asked_at, claim.ttl))

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        claim = busy.claim
        with self._mutex:
            line = self._lines.get(claim.key)
            if line is None:
                line = self._lines[claim.key] = Line(
                    self.path_of(claim.key),
                    self._mutex,
                    self._line_ended,
                    self._give_back,
                    partial(self._is_settled, claim.key),
                )
            try:
                line.join(claim, wake)
            except RuntimeError as error:
                self._line_ended(line)
                raise BackendError(
                    f"no thread can be started to wait in ({error}) [{self.address}]",
                    key=claim.key,
                    backend=self.address,
                ) from error
        return _Watch(line, claim.id)

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        if line := self._lines.get(claim.key):
            line.leave(claim.id)
        self._free(claim.id)

    def release(self, grant: Grant, deadline: float) -> bool:
        return self._free(grant.claim.id, released=True)

    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        return [self.extend(grant, grant.claim.ttl, deadline) for grant in grants]

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        asked_at = now()
        held = self._held.get(grant.claim.id)
        try:
            if held is not None and held.file.in_place():
                if held.file.is_revoked(held.token):  # given up when that is known here: see `_freed`
                    return Renewal(LeaseState.LOST)
                return Renewal(LeaseState.HELD, proven_until(asked_at, ttl))
        except OSError as error:
            raise self._mapped(error, grant.claim.key) from error
        self._free(grant.claim.id)  # the file was deleted: nobody else can see that we hold it
        return Renewal(LeaseState.LOST)

    def descriptors(self, grant: Grant) -> Sequence[int]:
        held = self._held.get(grant.claim.id)
        if held is None:
            return ()
        held.lent = True
        return (held.file.fd,)

    def revoke(self, key: str, token: int, deadline: float) -> bool:
        """The kernel takes no lock away: its holder is asked to give it up, and nobody gets in before it does."""
        try:
            file = LockFile(self.path_of(key), create=False)
            try:
                record = Record.read(file.read())
                if record is None or record.token != token or record.holder(file.path) is None:
                    return False
                file.revoke(token)
                return True
            finally:
                file.close()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._mapped(error, key) from error

    def inspect(self, key: str, deadline: float) -> Inspection:
        """Of the waiters, those of this process only: the kernel tells nobody of the others."""
        return Inspection(key, self._holder(self.path_of(key)), self._waiters(key))

    def list(self, prefix: str, deadline: float) -> Iterator[Inspection]:
        try:
            paths = [path for path in self._folder.iterdir() if path.suffix == ".lock"]
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._mapped(error, None) from error
        for path in paths:
            try:
                record = _read(str(path))
            except OSError as error:
                raise self._mapped(error, None) from error
            holder = record.holder(str(path)) if record is not None else None
            if record is not None and holder is not None and record.key.startswith(prefix):
                yield Inspection(record.key, holder, self._waiters(record.key))

    def close(self) -> None:
        """Threads that wait in the kernel cannot be called back: each ends when it is its turn."""
        self._closed = True
        with self._mutex:
            lines = list(self._lines.values())
        for line in lines:
            line.leave_all()
        for claim_id in list(self._held):
            self._free(claim_id)
        self._idle.close()

    def after_fork(self) -> None:
        LockFile.after_fork()
        self._idle.after_fork()
        self._held, self._lines, self._mutex = {}, {}, threading.Lock()

    def _lock_now(self, claim: Claim) -> Held | None:
        line = self._lines.get(claim.key)
        file = None if line is None else line.take(claim.id)
        if file is None:
            file = self._try_lock(self.path_of(claim.key))
        try:
            return None if file is None else self._entered(claim, file)
        except BaseException:  # Ctrl-C at any step
            if file is not None and claim.id not in self._held:
                file.remove()
            raise
        finally:
            if line is not None:
                line.taken()

    def _entered(self, claim: Claim, file: LockFile) -> Held:
        token = self._clock.next()
        left = file.read()
        if left[:1] != FREE and (last := Record.read(left)):
            token = max(token, last.token + 1)  # of a holder that died
        file.write(Record.line(claim, token, now()))
        held = self._held[claim.id] = Held(file, token)
        return held

    def _try_lock(self, path: str) -> LockFile | None:
        tries = 0
        while True:
            file = self._idle.take(path) or self._opened(path)
            try:
                if file.try_lock():
                    if file.in_place():
                        return file
                elif tries == TRIES or file.read()[:1] != FREE:
                    file.close()
                    return None
                else:  # nobody's: someone is about to delete it
                    time.sleep(PAUSE * 2**tries)
                    tries += 1
            except BaseException:
                file.close()
                raise
            file.close()  # deleted before it was locked, or about to be

    def _opened(self, path: str) -> LockFile:
        try:
            return LockFile(path)
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True)
            return LockFile(path)

    def _is_settled(self, key: str) -> bool:
        """Nobody needs this lock any more. For stores of results."""
        return False

    def _free(self, claim_id: str, *, released: bool = False) -> bool:
        return self._end(claim_id, lambda held: self._freed(held, claim_id, released))

    def _end(self, claim_id: str, how: Callable[[Held], bool]) -> bool:
        """What ends a hold, for one at a time. False: there is none."""
        held = self._held.get(claim_id)
        if held is None:
            return False
        with held.mutex:
            if held.in_hand or self._held.get(claim_id) is not held:
                return held.in_hand
            try:
                held.in_hand = True
                return how(held)
            finally:
                held.in_hand = False

    def _freed(self, held: Held, claim_id: str, released: bool) -> bool:
        file = held.file
        try:
            if not file.in_place():  # it was deleted: the lock was worth nothing
                self._held.pop(claim_id, None)
                file.unlock()
                file.close()
                return False
        except OSError:  # the folder is out of order: nobody knows
            pass
        if not held.lent:
            self._give_back(file, claim_id)
            return True
        self._held.pop(claim_id, None)
        with contextlib.suppress(OSError):
            if released:
                file.remove()  # not kept for the next one: it is not ours alone
            else:  # lost: not unlocked, as the one that it was lent to may still be at work
                file.close()
        return True

    def _give_back(self, file: LockFile, claim_id: str = "") -> None:
        """Unlocks it. It is not deleted here: others may wait for it, in other processes too."""
        try:
            file.write(FREE)
            file.unlock()
            self._held.pop(claim_id, None)  # not before: what Ctrl-C interrupts can be tried again
        except OSError:  # the disk is out of order; the kernel frees a file that is closed
            self._held.pop(claim_id, None)
            with contextlib.suppress(OSError):
                file.remove()
        else:
            self._idle.keep(file)

    def _line_ended(self, line: Line) -> None:
        """Called with the mutex held."""
        self._lines = {key: other for key, other in self._lines.items() if other is not line}

    def _holder(self, path: str) -> Holder | None:
        try:
            record = _read(path)
        except OSError as error:
            raise self._mapped(error, None) from error
        return record.holder(path) if record is not None else None

    def _waiters(self, key: str) -> tuple[Waiter, ...]:
        line = self._lines.get(key)
        claims = line.claims() if line is not None else []
        return tuple(Waiter.read(claim.owner or claim.id, claim.about) for claim in claims)

    def _mapped(self, error: OSError, key: str | None) -> BackendError:
        what = f"{error.strerror or error} ({error.filename or self._folder}) [{self.address}]"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return BackendError(f"the disk is full; free some space: {what}", key=key, backend=self.address)
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return BackendError(f"too many open files; raise the limit: {what}", key=key, backend=self.address)
        return BackendUnavailable(
            f"the folder of the locks cannot be used; is it there, a folder, and writable? {what}",
            key=key,
            backend=self.address,
        )


class _Watch:
    __slots__ = ("_claim_id", "_line")

    def __init__(self, line: Line, claim_id: str) -> None:
        self._line = line
        self._claim_id = claim_id

    def close(self) -> None:
        self._line.leave(self._claim_id)


def _read(path: str) -> Record | None:
    try:
        with open(path, "rb") as file:
            return Record.read(file.read(LONGEST_RECORD))
    except FileNotFoundError:
        return None
