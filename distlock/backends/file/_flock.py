"""The system calls: lock a file by its name, and give it up so that nothing is left behind.

A file is deleted when its lock is given up, unless someone waits for it. A lock on a deleted file is worth
nothing, as others make a new file of that name: whoever gets a lock looks whether the file still has a name.
"""

from __future__ import annotations

import contextlib
import os
import struct

from ..base import ConfigurationError

try:
    import fcntl
except ModuleNotFoundError:  # pragma: no cover - Windows
    raise ConfigurationError("the file backend needs flock(2), which this system does not have") from None

__all__ = ("free", "is_named", "lock", "try_lock")

# Waiting processes keep a read lock of the other kind (fcntl(2), "open file description locks") on the same
# file, which the kernel takes back when they die; so the one that gives the lock up can ask whether anyone waits.
# Where they are missing (macOS) the file is always deleted, and waiters open the new one.
_SET: int | None = getattr(fcntl, "F_OFD_SETLK", None)
_GET: int | None = getattr(fcntl, "F_OFD_GETLK", None)
_READ = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0)
_WRITE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_NONE = struct.pack("h", fcntl.F_UNLCK)


def try_lock(path: str) -> int | None:
    """The open file, locked; None if it is someone else's. `FileNotFoundError`: there is no folder."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_named(fd):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # deleted between open and flock


def open_to_wait(path: str) -> int:
    """The open file, with a sign on it that someone waits."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if _SET is not None:
        fcntl.fcntl(fd, _SET, _READ)
    return fd


def lock(fd: int) -> bool:
    """Waits in the kernel. False: the file has no name any more."""
    fcntl.flock(fd, fcntl.LOCK_EX)
    return is_named(fd)


def is_named(fd: int) -> bool:
    """The file was not deleted."""
    return os.fstat(fd).st_nlink > 0


def free(fd: int, path: str) -> bool:
    """Gives the lock up. False: the file had been deleted meanwhile, and the lock was worth nothing."""
    try:
        if not is_named(fd):
            return False
        if _GET is not None and fcntl.fcntl(fd, _GET, _WRITE)[:2] != _NONE:
            os.ftruncate(fd, 0)  # someone waits for this very file; what it says is over
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        # Said aloud, as a child that was forked behind our back may have the file open as well.
        fcntl.flock(fd, fcntl.LOCK_UN)
        return True
    finally:
        os.close(fd)
