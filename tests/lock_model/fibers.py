"""Threads that run one at a time, and a time that passes only when all of them wait.

What distlock takes from `threading`, `time` and `_thread` is given it from here, so that its own threads (watchdog,
inbox, dialers) run as they are. A fiber is a real thread that has the baton, or waits for it; who is next is decided by
the heap of events alone, which makes a history repeatable.
"""

from __future__ import annotations

import heapq
import math
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ("SIM", "Condition", "Event", "Fiber", "Host", "Killed", "Lock", "RLock", "Sim", "Spinning", "Threading")

Action = Callable[[], object]
TICK = 1e-6
"""Seconds that every wait takes longer than it was asked to: no timer is exact, and none comes early."""
STUCK = 30.0
"""Real seconds that a fiber may run."""
MOST = 20_000
"""Events in one moment, after which something spins."""


class Killed(BaseException):
    """The process of this thread was killed: it does nothing any more."""


class Spinning(AssertionError):
    """Something goes round and round in no time."""


class Host(Protocol):
    """A machine with a process: a clock that goes at a rate of its own, and threads that may all stand still."""

    rate: float
    offset: float
    dead: bool
    stopped: bool
    late: list[Action]
    fibers: list[Fiber]


class Sim:
    """The one simulation of this process."""

    def __init__(self) -> None:
        self.idle: list[_Worker] = []
        self.stuck = False
        self.baton = allocate_lock()
        self.baton.acquire()
        self.reset()

    def reset(self) -> None:
        """Another history begins."""
        self.t = 0.0
        self.here: Host | None = None
        self.fiber: Fiber | None = None
        self.events: list[tuple[float, int, Action]] = []
        self.count = self.steps = self.fibers = 0
        self.after: Action = _nothing
        """Called when an event is over."""
        self.failures: list[BaseException] = []

    def wait_for_baton(self) -> None:
        """Until the fiber that runs waits or ends."""
        if self.stuck or not self.baton.acquire(timeout=STUCK):
            self.stuck = True  # whatever runs after this would wait as long
            raise RuntimeError("a fiber waits for something that is not simulated")

    def end(self) -> None:
        """No thread of it is left, for tests that fork."""
        while self.idle:
            self.idle.pop().end()

    def now(self) -> float:
        """`distlock._clock.now`, of the machine that asks."""
        host = self.here
        return self.t if host is None else host.offset + host.rate * self.t

    def at(self, t: float, action: Action, host: Host | None = None) -> None:
        """Does it at that time; of a stopped host, when that goes on."""
        self.count += 1
        if host is not None:
            run = action

            def action() -> None:
                if host.stopped:
                    host.late.append(run)
                elif not host.dead:
                    run()

        heapq.heappush(self.events, (max(t, self.t), self.count, action))

    def run(self, until: float) -> None:
        """Lets the time pass."""
        spins, moment = 0, -1.0
        while self.events and self.events[0][0] <= until:
            t, _, action = heapq.heappop(self.events)
            spins = spins + 1 if t == moment else 0
            if spins > MOST:
                raise Spinning(f"at {t}")
            self.t = moment = t
            self.steps += 1
            action()
            self.after()
            if self.failures:
                raise self.failures[0]
        self.t = max(self.t, until)

    def next_event(self) -> float:
        """When something happens next."""
        return self.events[0][0] if self.events else math.inf

    def sleep(self, seconds: float) -> None:
        """`time.sleep`."""
        self.park(seconds, [])

    def park(self, seconds: float | None, *waiters: list[Fiber] | deque[Fiber]) -> bool:
        """The fiber that runs waits in these lists, until it is roused or for so long; False: for so long."""
        fiber = self.fiber
        if fiber is None:
            raise RuntimeError("only fibers may wait")
        return fiber.park(seconds, waiters)

    def rouse(self, fibers: list[Fiber] | deque[Fiber]) -> None:
        """All of them go on."""
        for fiber in list(fibers):
            fiber.rouse()


def _nothing() -> None:
    pass


class Fiber:
    """A thread of a host. It is begun by `start`, as those of `threading` are."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] = _nothing,
        name: str = "",
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        assert SIM.here is not None
        self.host: Host = SIM.here
        self.host.fibers.append(self)
        SIM.fibers += 1
        self.number = SIM.fibers
        self.name = name
        self.done = self._begun = False
        self.error: BaseException | None = None
        self._call = lambda: target(*args, **(kwargs or {}))
        self._go = allocate_lock()
        self._go.acquire()
        self._joining: list[Fiber] = []
        self._turn = 0
        self._waits: Sequence[list[Fiber] | deque[Fiber]] = ()
        self._parked = self._roused = False
        self._thrown: BaseException | None = None

    def start(self) -> None:
        """Runs it, when its turn comes."""
        SIM.at(SIM.t, self._begin, self.host)

    def _begin(self) -> None:
        worker = SIM.idle.pop() if SIM.idle else _Worker()
        worker.job, self._begun = self, True
        self._switch(worker.go)

    def join(self, timeout: float | None = None) -> None:
        if not self.done:
            SIM.park(timeout, self._joining)

    def is_alive(self) -> bool:
        return not self.done

    def run(self) -> None:
        """In its worker."""
        try:
            self._call()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - who joins it looks
            self.error = error
        self.done = True
        SIM.rouse(self._joining)

    def park(self, seconds: float | None, waits: Sequence[list[Fiber] | deque[Fiber]]) -> bool:
        self._check()
        self._turn += 1
        turn = self._turn
        self._waits, self._parked, self._roused = waits, True, False
        for each in waits:
            each.append(self)
        if seconds is not None and seconds < threading.TIMEOUT_MAX:
            SIM.at(SIM.t + max(0.0, seconds) / self.host.rate + TICK, lambda: self._resume(turn), self.host)
        elif not waits:
            raise RuntimeError("a wait without an end")
        SIM.fiber = SIM.here = None
        SIM.baton.release()
        self._go.acquire()
        self._check()
        return self._roused

    def _check(self) -> None:
        if self.host.dead:
            raise Killed
        if self._thrown is not None:
            thrown, self._thrown = self._thrown, None
            raise thrown

    def throw(self, error: BaseException) -> None:
        """Raises it where the fiber waits, as a signal's handler would."""
        self._thrown = error
        if self._parked:
            self._leave(roused=False)
        else:
            SIM.at(SIM.t, _nothing)

    def rouse(self) -> None:
        """It goes on, in its turn."""
        if self._parked:
            self._leave(roused=True)

    def _leave(self, *, roused: bool) -> None:
        turn, self._roused = self._turn, roused
        self._unlist()
        SIM.at(SIM.t, lambda: self._resume(turn), self.host)

    def _unlist(self) -> None:
        self._parked = False
        for each in self._waits:
            if self in each:
                each.remove(self)
        self._waits = ()

    def _resume(self, turn: int) -> None:
        if turn == self._turn and not self.done:
            self._turn += 1
            self._unlist()
            self._switch(self._go)

    def kill(self) -> None:
        """Its host is dead: what it does on its way out has no effect."""
        self._turn += 1
        self._unlist()
        if self._begun and not self.done:
            self._switch(self._go)
        self.done = True

    def _switch(self, lock: Any) -> None:
        SIM.fiber, SIM.here = self, self.host
        lock.release()
        SIM.wait_for_baton()
        SIM.fiber = SIM.here = None


class _Worker:
    """A real thread, which serves one fiber after the other."""

    def __init__(self) -> None:
        self.job: Fiber | None = None
        self.go = allocate_lock()
        self.go.acquire()
        self._thread = threading.Thread(target=self._run, name="fiber", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.go.release()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self.go.acquire()
            job, self.job = self.job, None
            if job is None:
                return
            job.run()
            del job
            SIM.idle.append(self)
            SIM.baton.release()


class Lock:
    """`threading.Lock`. Held in a main program without a host, it is as good as free: nobody else runs."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[Fiber] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        until = math.inf if timeout < 0 else SIM.now() + timeout
        while self._held:
            if not blocking or SIM.now() >= until:
                return False
            SIM.park(None if until == math.inf else until - SIM.now(), self._waiting)
        self._held = True
        return True

    def release(self) -> None:
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self._held = False
        if self._waiting:
            self._waiting[0].rouse()

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock:
    """`threading.RLock`. Nobody in distlock waits with one in hand, but in a condition: so it is always free."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass


class Condition(RLock):
    """`threading.Condition`."""

    def __init__(self, lock: object = None) -> None:
        self._waiting: deque[Fiber] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        return SIM.park(timeout, self._waiting)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        until = math.inf if timeout is None else SIM.now() + timeout
        while not (result := predicate()) and SIM.now() < until:
            self.wait(None if until == math.inf else until - SIM.now())
        return result

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._waiting))):
            self._waiting[0].rouse()

    def notify_all(self) -> None:
        SIM.rouse(self._waiting)


class Event:
    """`threading.Event`."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[Fiber] = []

    def set(self) -> None:
        self._set = True
        SIM.rouse(self._waiting)

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            SIM.park(timeout, self._waiting)
        return self._set


class Threading:
    """What stands for the module `threading`."""

    Condition = Condition
    Event = Event
    Lock = Lock
    RLock = RLock
    Thread = Fiber
    TIMEOUT_MAX = threading.TIMEOUT_MAX

    @staticmethod
    def get_ident() -> int:
        return 0 if SIM.fiber is None else SIM.fiber.number

    @staticmethod
    def current_thread() -> Fiber | None:
        return SIM.fiber


SIM = Sim()
