"""Lock files that were just given up: kept open for a moment, as the next one to want them is often here."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict

from ..base import now
from ._flock import LockFile

__all__ = ("IdleFiles",)

LINGER = 0.1
"""Seconds. To make and to delete a file costs more than all the rest of a lock."""
MOST = 32


class IdleFiles:
    """Thread-safe. A thread deletes what nobody has asked for, and ends when nothing is left."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._files: OrderedDict[str, tuple[LockFile, float]] = OrderedDict()
        # Re-entrant: the backend's finalizer may run in a thread that holds it. Entered as what it is, by one step
        # of C; a Condition's `with` is Python, in the middle of which Ctrl-C would leave it locked for ever.
        self._mutex = threading.RLock()
        self._changed = threading.Condition(self._mutex)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._forked = False

    def take(self, path: str) -> LockFile | None:
        """The file, out of here; anything may have happened to it meanwhile."""
        with self._mutex:
            found = self._files.pop(path, None)
        return None if found is None else found[0]

    def keep(self, file: LockFile) -> None:
        """Unlocked, in case that it is wanted again."""
        with self._mutex:
            before = self._files.pop(file.path, None)
            self._files[file.path] = file, now() + LINGER
            ends_now = self._closed or len(self._files) > MOST or not self._is_watched()
        if before is not None:
            _end(before[0], deleting=not before[0].same_as(file))
        if ends_now:
            self._end_oldest()

    def _is_watched(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="distlock-idle-files", daemon=not self._forked)
            try:
                thread.start()
            except RuntimeError:  # no room for one more, or the interpreter is going down
                return False
            self._thread = thread
        return True

    def close(self) -> None:
        """Deletes all, and whatever comes later at once."""
        with self._mutex:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        while self._files:
            self._end_oldest()
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)  # it may have one in hand

    def after_fork(self) -> None:
        """In a forked child: the files are the parent's. One of multiprocessing ends without a word, but waits for
        threads that are no daemons."""
        self._reset()
        self._forked = True

    def _run(self) -> None:
        while True:
            with self._mutex:
                oldest = next(iter(self._files.values()), None)
                if oldest is None or self._closed:
                    self._thread = None
                    return
                left = oldest[1] - now()
                if left > 0:
                    self._changed.wait(left)
                    continue
            self._end_oldest()

    def _end_oldest(self) -> None:
        with self._mutex:
            if not self._files:  # someone took it
                return
            _, (file, _) = self._files.popitem(last=False)
        _end(file, deleting=True)


def _end(file: LockFile, *, deleting: bool) -> None:
    with contextlib.suppress(OSError):  # the folder is gone, or cannot be written any more
        if deleting and file.try_lock():
            file.remove()
        else:  # someone else's; it is for them to delete
            file.close()
