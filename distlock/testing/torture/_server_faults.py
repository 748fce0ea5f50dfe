"""What happens to servers: they stand still, die, forget, hand over, and their clocks jump.

Each says of which exceptions of `distlock.Guarantees` it is a case. One that a store has to bear says none.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from ..._types import Fault
from ._faults import Arena, Hurt, in_background

__all__ = ("Clock", "Server", "again_and_again", "clock_jumps", "kills", "once", "stops", "swaps")


class Server(Protocol):
    """A server process, as faults see it."""

    @property
    def pid(self) -> int: ...

    @property
    def address(self) -> tuple[str, int]: ...

    def kill(self) -> None:
        """SIGKILL; on return it is dead."""

    def start(self) -> None:
        """At the same address, with the data that it has; on return it answers."""

    def forget(self) -> None:
        """Its data is deleted, while it is dead."""


class Clock(Protocol):
    """The wall clock of servers."""

    def jump(self, seconds: float) -> None:
        """Forwards, or backwards if it is negative."""

    def stop(self) -> None:
        """It stands still."""

    def go_on(self) -> None:
        """From where it stands."""


Servers = Callable[[], Sequence[Server]]
"""Those of which one is struck: all, or the leader alone, as they are at that moment."""


def stops(whom: str, servers: Servers, *excused: Fault) -> tuple[Hurt, Hurt]:
    """SIGSTOP and SIGCONT, before a lease has ended and after. What it does then is nobody's excuse, unless another
    may have taken its place meanwhile."""
    strike = partial(_stopped, servers)
    return (
        Hurt(f"{whom} stopped, less than the ttl", strike, (0.1, 0.8), excused=frozenset(excused)),
        Hurt(f"{whom} stopped, more than the ttl", strike, (1.2, 2.5), excused=frozenset(excused)),
    )


def kills(
    name: str,
    servers: Servers,
    *excused: Fault,
    all_of_them: bool = False,
    meanwhile: Callable[[Server], object] = lambda _: None,
) -> Hurt:
    """SIGKILL, and after a while a new start, of one of them, or all. ``meanwhile`` is done to each that is dead, as
    `Server.forget`."""
    return Hurt(name, partial(_killed, servers, all_of_them, meanwhile), (0.0, 1.5), excused=frozenset(excused))


def clock_jumps(clock: Clock) -> tuple[Hurt, ...]:
    """By up to three ttls."""
    jump = frozenset({Fault.STORE_CLOCK_JUMP})
    return (
        Hurt("clock jumps forwards", partial(_jumped, clock, 1), (0.1, 1.0), excused=jump),
        Hurt("clock jumps backwards", partial(_jumped, clock, -1), (0.1, 1.0), excused=jump),
        Hurt("clock stands still", partial(_still, clock), (0.5, 2.5), excused=jump),
    )


def once(name: str, act: Callable[[Arena], str], *excused: Fault, rest: float = 1.0) -> Hurt:
    """Something that is over when it has happened. ``act`` says to whom."""
    return swaps(name, act, lambda: None, *excused, lasts=(0.0, 0.0), rest=rest)


def swaps(
    name: str,
    act: Callable[[Arena], str],
    undo: Callable[[], object],
    *excused: Fault,
    lasts: tuple[float, float] = (0.2, 2.0),
    rest: float = 1.0,
) -> Hurt:
    """Something that is undone after a while. ``act`` says what happened to whom; both return when it has happened."""
    return Hurt(name, partial(_swapped, act, undo), lasts, rest, frozenset(excused))


def again_and_again(name: str, whom: str, act: Callable[[], object], *excused: Fault) -> Hurt:
    """Something small that happens so often that it falls between any two requests. An `OSError` or `RuntimeError` of
    it means that it did not happen this time."""
    return Hurt(name, partial(_repeated, whom, act), (0.5, 2.5), excused=frozenset(excused))


@contextmanager
def _stopped(servers: Servers, arena: Arena) -> Iterator[str]:
    server = arena.dice.choice(servers())
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield _name(server)
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def _killed(servers: Servers, all_of_them: bool, meanwhile: Callable[[Server], object], arena: Arena) -> Iterator[str]:
    struck = servers() if all_of_them else [arena.dice.choice(servers())]
    try:
        names = ", ".join(map(_name, struck))
        for server in struck:
            server.kill()
        yield names
    finally:
        for server in struck:
            meanwhile(server)
        _side_by_side([server.start for server in struck])  # one alone may be no majority


@contextmanager
def _jumped(clock: Clock, direction: int, arena: Arena) -> Iterator[str]:
    seconds = direction * arena.plan.ttl * arena.dice.uniform(0.05, 3.0)
    clock.jump(seconds)
    yield f"by {seconds:+.3f} s"


@contextmanager
def _still(clock: Clock, arena: Arena) -> Iterator[str]:
    clock.stop()
    try:
        yield "the server's clock"
    finally:
        clock.go_on()


@contextmanager
def _swapped(act: Callable[[Arena], str], undo: Callable[[], object], arena: Arena) -> Iterator[str]:
    try:
        yield act(arena)
    finally:
        undo()


@contextmanager
def _repeated(whom: str, act: Callable[[], object], arena: Arena) -> Iterator[str]:
    def repeat(over: threading.Event) -> None:
        while not over.wait(pause):
            try:
                act()
            except (OSError, RuntimeError):
                continue

    pause = arena.plan.ttl * arena.dice.uniform(0.002, 0.05)
    with in_background(repeat):
        yield whom


def _side_by_side(calls: Sequence[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()


def _name(server: Server) -> str:
    return f"{server.address[0]}:{server.address[1]} (pid {server.pid})"
