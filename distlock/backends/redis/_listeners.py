"""Who listens for all that wait with an inbox: one of their threads, or the inbox's own."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from ..base import now
from ._ear import Ear
from ._waiting import Waiting

__all__ = ("THREAD", "Listeners")

THREAD = "the inbox's thread"


class Listeners:
    """What is common to all that wait; guarded by ``_mutex``."""

    def _reset(self) -> None:
        self._mutex = threading.RLock()  # a signal's handler may come to it in the thread that has it
        self._changed = threading.Condition(self._mutex)  # there is something for the thread to do
        self._waiting: dict[str, Waiting] = {}
        self._elsewhere: set[str] = set()  # those of which no thread waits here
        self._closed = False
        self._ear: Ear | None = None
        self._reader: str | None = None  # the claim, or THREAD, that listens
        self._reading = 0  # in this thread
        self._broken: BaseException | None = None
        self._due = math.inf  # who listens sleeps no longer; when all is reckoned up, it may turn out to be later
        self._overdue = False

    def _take_over(self, reader: str) -> Ear | None:
        """The ear, if it is for this one to listen now. (With the mutex.)"""
        if self._broken is not None or self._ear is None:
            self._pass_on(reader)
            return None
        if self._reader is None and not self._elsewhere:
            self._reader, self._reading = reader, threading.get_ident()
        elif self._reader is not None and self._reading == threading.get_ident():
            return self._ear  # in a signal's handler: who listens goes on only after this one
        elif self._reader is THREAD and not self._elsewhere:
            self._ear.ring()  # it need not any more
        return self._ear if self._reader == reader else None

    def _pass_on(self, reader: str) -> None:
        """It listens no more; someone else has to. (With the mutex.)"""
        if self._reader not in (reader, None):
            return
        self._reader = None
        if self._elsewhere or self._broken is not None or self._closed:
            self._changed.notify()
            return
        for waiting in self._waiting.values():  # the first to come is the first to be told
            if waiting.turn is not None:
                waiting.stir()
                return

    def _is_to_listen(self) -> bool:
        """Whether to listen; False, as soon as there is something else to do."""
        with self._mutex:
            while True:
                if self._reader is None and self._elsewhere and self._broken is None:
                    self._reader, self._reading = THREAD, threading.get_ident()
                if self._reader is THREAD:
                    if self._elsewhere:
                        return True
                    self._pass_on(THREAD)
                left = self._due - now()
                if self._closed or self._broken is not None or self._overdue or left <= 0:
                    return False
                self._changed.wait(None if left == math.inf else min(left, threading.TIMEOUT_MAX))

    def _dismiss(self, ear: Ear) -> None:
        """Closes it, once nobody listens to it any more."""
        with self._mutex:
            while self._reader not in (None, THREAD):
                ear.ring()
                self._changed.wait(0.1)
            self._reader = None
        ear.close()

    def _wake(self, claim_ids: Sequence[str]) -> None:
        with self._mutex:
            found = [self._waiting[one] for one in claim_ids if one in self._waiting]
            for waiting in found:
                waiting.woken = True
                waiting.stir()
                if self._reader == waiting.claim.id and self._ear is not None:
                    self._ear.ring()
        for waiting in found:
            if waiting.wake is not None:
                waiting.wake()

    def _nudge(self) -> None:
        """Whoever listens, and the thread, look what there is to do."""
        with self._mutex:
            self._changed.notify()
            if self._reader is not None and self._ear is not None:
                self._ear.ring()
