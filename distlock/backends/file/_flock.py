"""The system calls: lock a file by its name, and give it up so that in the end nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import struct

from ..base import ConfigurationError

try:
    import fcntl
except ModuleNotFoundError:  # pragma: no cover - Windows
    raise ConfigurationError("the file backend needs flock(2), which this system does not have") from None

__all__ = ("LockFile",)

# Waiting processes keep a read lock of the other kind (fcntl(2), "open file description locks") on the same
# file, which the kernel takes back when they die; so the one that would delete the file can ask whether anyone waits.
# Where they are missing (macOS) it is deleted even so, and waiters open the new one.
_SET: int | None = getattr(fcntl, "F_OFD_SETLK", None)
_GET: int | None = getattr(fcntl, "F_OFD_GETLK", None)
_READ = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0)
_WRITE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_NONE = struct.pack("h", fcntl.F_UNLCK)

LONGEST_RECORD = 16384


class LockFile:
    """An open file. `FileNotFoundError`: there is no folder for it.

    A lock on a file that was deleted or moved is worth nothing, as others make a new file of that name: whoever
    gets a lock looks whether the file is still in place.
    """

    __slots__ = ("_identity", "fd", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd: int = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        found = os.fstat(self.fd)
        # No other file has the same as long as this one is open.
        self._identity = found.st_ino, found.st_dev

    def try_lock(self) -> bool:
        """False: it is someone else's."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def announce(self) -> None:
        """Puts a sign on it that someone waits."""
        if _SET is not None:
            fcntl.fcntl(self.fd, _SET, _READ)

    def lock(self) -> None:
        """Waits in the kernel."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def in_place(self) -> bool:
        """What others find by the name is this file."""
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (found.st_ino, found.st_dev) == self._identity

    def is_awaited(self) -> bool:
        """Someone else waits for it."""
        return _GET is not None and fcntl.fcntl(self.fd, _GET, _WRITE)[:2] != _NONE

    def read(self) -> bytes:
        """What it says."""
        return os.pread(self.fd, LONGEST_RECORD, 0)

    def write(self, record: bytes) -> None:
        """What it says from now on."""
        os.pwrite(self.fd, record, 0)

    def unlock(self) -> None:
        """Said aloud, as a child that was forked behind our back may have the file open as well."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Without unlocking; but what no other process has open the kernel unlocks."""
        os.close(self.fd)

    def remove(self) -> None:
        """The end of one that is locked: deletes it, unless someone waits for it, and unlocks it."""
        try:
            if self.in_place() and not self.is_awaited():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
            self.unlock()
        finally:
            self.close()
