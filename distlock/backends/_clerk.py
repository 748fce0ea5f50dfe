"""A thread for what has to be done at a certain time, or in the background."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable

from .base import now

__all__ = ("Clerk",)

log = logging.getLogger("distlock")

Job = Callable[[], object]


class Clerk:
    """Thread-safe. Starts its thread with the first job, and keeps it until it is closed: asleep, if there is none."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: the thread stayed behind, and so does what it had to do."""
        self._jobs: list[tuple[float, int, Job]] = []
        self._count = itertools.count()
        # Re-entrant: a signal's handler, or a finalizer, may come to it in the thread that has it. Entered as what it
        # is, by one step of C; a Condition's `with` is Python, in the midst of which Ctrl-C would leave it locked.
        self._mutex = threading.RLock()
        self._changed = threading.Condition(self._mutex)
        self._closed = False
        self._thread: threading.Thread | None = None

    def at(self, when: float, job: Job) -> None:
        """Does ``job`` then, or soon after. It must keep a deadline of its own: all others wait for it."""
        with self._mutex:
            if self._closed:
                return
            first = not self._jobs or when < self._jobs[0][0]
            heapq.heappush(self._jobs, (when, next(self._count), job))
            if self._thread is None:
                self._start()
            elif first:
                self._changed.notify()

    def soon(self, job: Job) -> None:
        """Does ``job`` next."""
        self.at(now(), job)

    def close(self, timeout: float) -> None:
        """Ends the thread; what it has not begun is not done."""
        with self._mutex:
            self._closed = True
            self._jobs.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _start(self) -> None:
        self._thread = thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no room for one more thread; or the interpreter is going down
            self._thread = None  # whoever comes next tries again
            log.warning("%s does not work: %s", self._name, error)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except Exception:
                log.exception("a job of a backend met a bug, and was left undone")
            del job  # else what it holds on to would live until the next

    def _next(self) -> Job | None:
        with self._mutex:
            while not self._closed:
                wait = self._jobs[0][0] - now() if self._jobs else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._jobs)[2]
                self._changed.wait(None if wait is None else min(wait, threading.TIMEOUT_MAX))
        return None
