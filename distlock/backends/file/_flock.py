"""The system calls: lock a file by its name, and give it up so that in the end nothing is left behind."""

from __future__ import annotations

import contextlib
import os
from typing import ClassVar

from ..base import ConfigurationError

try:
    import fcntl
except ModuleNotFoundError:  # pragma: no cover - Windows
    raise ConfigurationError("the file backend needs flock(2), which this system does not have") from None

__all__ = ("LockFile",)

LONGEST_RECORD = 32768


class LockFile:
    """An open file. `FileNotFoundError`: there is no folder for it; or no file, if it was not to be created.

    A lock on a file that was deleted or moved is worth nothing, as others make a new file of that name: whoever
    gets a lock looks whether the file is still in place.
    """

    __slots__ = ("_identity", "fd", "path")

    everywhere: ClassVar[set[LockFile]] = set()
    """All that are open in this process, whoever has them in hand just now."""

    def __init__(self, path: str, *, create: bool = True) -> None:
        self.path = path
        # A link that someone has laid there is not followed: what it leads to would be written over.
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        self.fd: int = os.open(path, flags, 0o666)
        self.everywhere.add(self)
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

    def read(self) -> bytes:
        """What it says."""
        return os.pread(self.fd, LONGEST_RECORD, 0)

    def write(self, record: bytes) -> None:
        """What it says from now on."""
        os.pwrite(self.fd, record, 0)

    def revoke(self, token: int) -> None:
        """Leaves word to the holder of this token to give it up; behind the record, where it harms no other."""
        os.pwrite(self.fd, token.to_bytes(8, "big"), LONGEST_RECORD)

    def is_revoked(self, token: int) -> bool:
        """Such word was left."""
        return os.pread(self.fd, 8, LONGEST_RECORD) == token.to_bytes(8, "big")

    def unlock(self) -> None:
        """Said aloud, as a child that was forked behind our back may have the file open as well."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Without unlocking; but what no other process has open the kernel unlocks."""
        self.everywhere.discard(self)
        os.close(self.fd)

    @classmethod
    def after_fork(cls) -> None:
        """In a forked child: closed, not unlocked, as the lock belongs to the open file, which is the parent's too."""
        for file in list(cls.everywhere):
            with contextlib.suppress(OSError):
                file.close()

    def same_as(self, other: LockFile) -> bool:
        """Both are open files of one file."""
        return self._identity == other._identity

    def remove(self) -> None:
        """The end of one that is locked. Whoever waits for it finds that it is gone, and makes a new one."""
        try:
            if self.in_place():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
            self.unlock()
        finally:
            self.close()
