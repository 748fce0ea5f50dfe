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
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._closed = False

    def take(self, path: str) -> LockFile | None:
        """The file, out of here; anything may have happened to it meanwhile."""
        with self._changed:
            found = self._files.pop(path, None)
        return None if found is None else found[0]

    def keep(self, file: LockFile) -> None:
        """Unlocked, in case that it is wanted again."""
        with self._changed:
            before = self._files.pop(file.path, None)
            self._files[file.path] = file, now() + LINGER
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="distlock-idle-files", daemon=True)
                self._thread.start()
            crowded = len(self._files) > MOST
        if before is not None:  # two of one path: the other one will be deleted
            before[0].close()
        if crowded or self._closed:
            self._end_oldest()

    def close(self) -> None:
        """Deletes all, and whatever comes later at once."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        while self._files:
            self._end_oldest()

    def after_fork(self) -> None:
        """In a forked child: the files are the parent's. Closed, not unlocked."""
        for file, _ in self._files.values():
            file.close()
        self._reset()

    def _run(self) -> None:
        while True:
            with self._changed:
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
        with self._changed:
            if not self._files:  # someone took it
                return
            _, (file, _) = self._files.popitem(last=False)
        with contextlib.suppress(OSError):  # the folder is gone, or cannot be written any more
            if file.try_lock():
                file.remove()
            else:  # someone else's; it is for them to delete
                file.close()
