"""Those of this process that wait for one file: one thread waits in the kernel for all of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from ..base import PROVISIONAL, Claim, Wake
from ._flock import LockFile

__all__ = ("Line",)


class Line:
    """First come, first served within the process; between processes it is the kernel that chooses.

    The thread cannot be called back from flock(2). When everyone has left, it stays until it is its turn, gives
    the lock up at once, and ends.
    """

    def __init__(
        self,
        path: str,
        mutex: threading.Lock,
        ended: Callable[[Line], object],
        give_back: Callable[[LockFile], object],
        is_settled: Callable[[], bool],
    ) -> None:
        """``is_settled``: nobody needs the lock any more, as all who ask are told."""
        self._path = path
        self._ended = ended
        self._give_back = give_back
        self._is_settled = is_settled
        self._mutex = mutex  # entered as what it is, see `IdleFiles`
        self._changed = threading.Condition(mutex)
        self._waiting: OrderedDict[str, tuple[Claim, Wake]] = OrderedDict()
        self._file: LockFile | None = None
        """Locked, and on offer to whoever is first."""
        self._thread: threading.Thread | None = None

    def join(self, claim: Claim, wake: Wake) -> None:
        """``wake`` is called when ``claim`` may `take` the lock. The mutex is held."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="distlock-flock", daemon=True)
            thread.start()  # it needs the mutex first
            self._thread = thread
        self._waiting[claim.id] = (claim, wake)

    def take(self, claim_id: str) -> LockFile | None:
        """The locked file, if it is on offer to this claim. `taken` has to be called next."""
        with self._mutex:
            if self._file is None or self._first_is_not(claim_id):
                return None
            file, self._file = self._file, None
            del self._waiting[claim_id]
            return file

    def taken(self) -> None:
        """Wakes the thread; not from `take`, as the two would then run in turns while the lock is still awaited."""
        with self._mutex:
            self._changed.notify_all()

    def leave(self, claim_id: str) -> None:
        """This claim waits no longer; what was on offer to it goes to the next."""
        with self._mutex:
            if self._waiting.pop(claim_id, None):
                self._changed.notify_all()

    def leave_all(self) -> None:
        """Nobody waits any longer."""
        with self._mutex:
            wakes = [wake for _, wake in self._waiting.values()]
            self._waiting.clear()
            self._changed.notify_all()
        for wake in wakes:
            wake()

    def tell_all(self) -> None:
        """Whoever waits asks again."""
        with self._mutex:
            wakes = [wake for _, wake in self._waiting.values()]
        for wake in wakes:
            wake()

    def claims(self) -> list[Claim]:
        """Who waits, in order."""
        with self._mutex:
            return [claim for claim, _ in self._waiting.values()]

    def _run(self) -> None:
        while True:
            file = self._locked()
            settled = file is not None and self._is_settled()
            with self._mutex:
                if file is not None and settled:  # for other processes, while ours ask
                    self._give_back(file)
                    file = None
                if file is None:
                    self._say_so()
                self._file = file
                self._offer()
                left, self._file = self._file, None
                if left is not None:  # nobody took it
                    self._give_back(left)
                if not self._waiting:
                    self._ended(self)
                    return

    def _offer(self) -> None:
        """To one after the other, until it is taken or everyone has left. The mutex is held.

        If nobody comes, other processes get their chance before it is offered again.
        """
        for _ in range(len(self._waiting)):
            if self._file is None or not self._waiting:
                return
            first, (_, wake) = next(iter(self._waiting.items()))
            self._changed.release()  # else the one that wakes up would have to wait for it
            try:
                wake()
            finally:
                self._changed.acquire()
            if not self._changed.wait_for(partial(self._first_is_not, first), PROVISIONAL):
                self._waiting.move_to_end(first)  # stopped or starved: the others need not wait for it

    def _first_is_not(self, claim_id: str) -> bool:
        return next(iter(self._waiting), None) != claim_id

    def _say_so(self) -> None:
        """There is no lock to wait for: the file cannot be opened, or nobody needs it. Those who wait find out by
        asking. The mutex is held."""
        for _, wake in self._waiting.values():
            wake()
        self._changed.wait_for(lambda: not self._waiting, PROVISIONAL)

    def _locked(self) -> LockFile | None:
        """Waits in the kernel. None: the file cannot be opened any more."""
        while True:
            try:
                file = LockFile(self._path)
            except OSError:
                return None
            in_place = False
            try:
                file.lock()
                in_place = file.in_place()
            except OSError:
                return None
            finally:
                if not in_place:
                    file.close()
            if in_place:
                return file
