"""What came of work that is done once: a file a key, beside the file that is locked while the work is done."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote

from .._dice import DICE
from ..base import BackendError, Busy, Claim, Done, Grant
from ._backend import FREE, FileBackend, Held
from ._record import file_name

__all__ = ("FileResults",)

RECORD, PART = "record", "part"
"""Endings: of what is kept, and of what is being written."""
FOLDERS = 256
"""That records are spread over, so that one of them is read at once even if there are a million records."""
CHANCE, LOOKS = 32, 100
"""One of so many completions looks at so many records, whether they are over: three for each new one, so that those
that are over never outnumber the others for long, whoever completes what and however long its process lives."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file of a record: a line that says whose it is and until when, and the record."""

    claim_id: str
    expires: int | None
    """Microseconds on the clock that tokens come from, which no change of the wall clock moves before the next boot.
    None: of a file that is torn or not ours nobody knows more than that something was done."""
    key: str
    record: bytes

    @staticmethod
    def text(claim: Claim, expires: int, record: bytes) -> bytes:
        """What the file says. The leading 1 is the version of the format."""
        return f"1 {claim.id} {expires} {len(record)} {quote(claim.key, safe='')}\n".encode() + record

    @classmethod
    def read(cls, data: bytes) -> _Kept:
        line, _, record = data.partition(b"\n")
        fields = line.decode(errors="replace").split(" ")
        try:
            version, claim_id, expires, length, key = fields
            if version == "1" and int(length) == len(record):
                return cls(claim_id, int(expires), unquote(key), record)
        except ValueError:
            pass
        return cls("", None, "", b"")


class FileResults(FileBackend):
    """Locks whose work can be completed. Thread-safe.

    Whoever writes or deletes a record has its lock, except `forget`; and whoever is given the lock looks for a record
    before relying on it. A record is read without the lock: it comes to its name whole, and in one step.
    """

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        # First without the lock, as those who come when it is done are not to keep each other out.
        return self._done(claim) or self._asked(claim, deadline)

    def _asked(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        answer = super().acquire(claim, deadline)
        # It may have been completed since; and then whoever has the lock now is not at the work, but looks as we do.
        try:
            done = self._done(claim)
            if isinstance(answer, Grant):
                if done is None:
                    _remove(self._path(claim.key))  # one that is over, if there is any
                else:
                    self._free(claim.id)
        except BaseException as error:
            self._free(claim.id)
            if isinstance(error, OSError):
                raise self._mapped(error, claim.key) from error
            raise
        return done or answer

    def complete(self, grant: Grant, record: bytes, keep: float, deadline: float) -> bool:
        claim = grant.claim
        try:
            if not self._end(claim.id, lambda held: self._completed(held, claim, record, keep)):
                kept = self._kept(self._path(claim.key))
                return kept is not None and kept.claim_id == claim.id  # by a try that was interrupted
        except OSError as error:
            raise self._mapped(error, claim.key) from error
        if line := self._lines.get(claim.key):
            line.tell_all()
        if not DICE.randrange(CHANCE):
            with suppress(OSError):
                self._sweep()
        return True

    def recorded(self, key: str, deadline: float) -> tuple[bytes, float | None] | None:
        kept = self._found(key)
        return None if kept is None else (kept.record, self._seconds_left(kept))

    def forget(self, key: str, deadline: float) -> bool:
        if self._found(key) is None:
            return False
        try:
            return _remove(self._path(key))
        except OSError as error:
            raise self._mapped(error, key) from error

    def records(self, prefix: str, deadline: float) -> Iterator[str]:
        try:
            for folder in range(FOLDERS):
                for path in self._files(folder):
                    kept = self._kept(path) if path.endswith(RECORD) else None
                    if kept is not None and kept.key.startswith(prefix) and kept.key:
                        yield kept.key
        except OSError as error:
            raise self._mapped(error, None) from error

    def _is_settled(self, key: str) -> bool:
        try:
            return self._found(key) is not None
        except BackendError:  # which whoever asks is told
            return True

    def _completed(self, held: Held, claim: Claim, record: bytes, keep: float) -> bool:
        if not held.file.in_place() or held.file.is_revoked(held.token):
            self._freed(held, claim.id, released=False)
            return False
        self._write(claim, _Kept.text(claim, self._clock.next() + int(keep * 1e6), record))
        self._freed(held, claim.id, released=True)
        return True

    def _write(self, claim: Claim, text: bytes) -> None:
        path = self._path(claim.key)
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            os.makedirs(folder, exist_ok=True)
            _sync(os.path.dirname(folder))
        part = f"{path.removesuffix(RECORD)}{PART}"
        try:
            with open(part, "wb", opener=_private) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # a lock need not outlive the machine; that something was done must
            os.rename(part, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
        _sync(folder)

    def _done(self, claim: Claim) -> Done | None:
        kept = self._found(claim.key)
        return None if kept is None else Done(claim, kept.record, self._seconds_left(kept))

    def _found(self, key: str) -> _Kept | None:
        try:
            return self._kept(self._path(key))
        except OSError as error:
            raise self._mapped(error, key) from error

    def _kept(self, path: str) -> _Kept | None:
        """None: there is none, or it is over."""
        try:
            with open(path, "rb", opener=_private) as file:
                kept = _Kept.read(file.read())
        except FileNotFoundError:
            return None
        return None if kept.expires is not None and self._clock.next() >= kept.expires else kept

    def _seconds_left(self, kept: _Kept) -> float | None:
        return None if kept.expires is None else max(0.0, (kept.expires - self._clock.next()) / 1e6)

    def _path(self, key: str) -> str:
        return f"{self._folder}{os.sep}{_place(key)}"

    def _files(self, folder: int) -> list[str]:
        path = self._folder / f"{folder:02x}"
        try:
            return [f"{path}{os.sep}{name}" for name in os.listdir(path)]
        except FileNotFoundError:
            return []

    def _sweep(self) -> None:
        """Deletes some of what is over, and what was being written when its process died."""
        paths = self._files(DICE.randrange(FOLDERS))
        first = DICE.randrange(len(paths) or 1)
        for path in (paths[first:] + paths[:first])[:LOOKS]:
            if path.endswith(PART) or (path.endswith(RECORD) and self._kept(path) is None):
                self._remove_locked(path)

    def _remove_locked(self, path: str) -> None:
        """Under its lock: without it, this could be a record of work that has just been done again."""
        name = os.path.basename(path).partition(".")[0]
        file = self._try_lock(f"{self._folder}{os.sep}{name}.lock")
        if file is None:  # it is in use again
            return
        try:
            file.write(FREE)  # whoever comes meanwhile tries again in a moment, and does not take it for held
            if path.endswith(PART) or self._kept(path) is None:
                _remove(path)
        finally:
            file.remove()


@lru_cache(maxsize=512)
def _place(key: str) -> str:
    return f"{zlib.crc32(key.encode()) % FOLDERS:02x}{os.sep}{file_name(key, RECORD)}"


def _private(path: str, flags: int) -> int:
    """Opens a file of results: for nobody else's eyes. A link that someone has laid there is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _remove(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _sync(folder: str) -> None:
    """What is in it has its name there after a loss of power too."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
