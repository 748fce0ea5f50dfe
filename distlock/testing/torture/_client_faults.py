"""Faults of the clients: processes that die, stop, fork, starve or are kept from their event loops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from ..._types import Fault, Guarantees
from ._faults import Arena, Hurt, Victim, in_background
from ._plan import Plan

__all__ = ("CLIENT_FAULTS",)


@contextmanager
def _kill(arena: Arena) -> Iterator[str]:
    victim = arena.dice.choice(arena.workers)
    victim.kill()
    yield victim.name


@contextmanager
def _stopped(victims: Sequence[Victim]) -> Iterator[str]:
    with ExitStack() as heal:
        for victim in victims:
            os.kill(victim.pid, signal.SIGSTOP)
            heal.callback(os.kill, victim.pid, signal.SIGCONT)
        yield " ".join(victim.name for victim in victims)


@contextmanager
def _again_and_again(arena: Arena, order: str, pause: float) -> Iterator[str]:
    """The order to one worker after the other, ``pause`` seconds apart at most."""
    victims = list(arena.workers)

    def tell(over: threading.Event) -> None:
        while not over.wait(arena.dice.uniform(0.0, pause)):
            arena.dice.choice(victims).tell(order)

    with in_background(tell):
        yield " ".join(victim.name for victim in victims)


def _told(order: str, least: float, most: float) -> Callable[[Arena], AbstractContextManager[str]]:
    """The order to one worker, for so many ttls from and to."""

    @contextmanager
    def strike(arena: Arena) -> Iterator[str]:
        victim = arena.dice.choice(arena.workers)
        victim.tell(f"{order} {arena.plan.ttl * arena.dice.uniform(least, most):.3f}")
        yield victim.name

    return strike


@contextmanager
def _starved(arena: Arena) -> Iterator[str]:
    """As many busy processes as are needed for every worker to get a fraction of a processor only."""
    code = "import os; run = os.getppid()\nwhile os.getppid() == run: pass"
    program = [sys.executable, "-S", "-c", code]
    # Without a stderr: Ctrl-C reaches them, too, and each would print a traceback.
    busy: list[subprocess.Popen[bytes]] = []
    try:
        while len(busy) < 4 * (os.cpu_count() or 1):
            busy.append(subprocess.Popen(program, stderr=subprocess.DEVNULL))  # noqa: S603 - ourselves
        yield "all"
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _outlive(plan: Plan, guarantees: Guarantees) -> bool:
    """Locks in the memory of a process end with it."""
    return guarantees.scope != "process"


def _loops(plan: Plan, guarantees: Guarantees) -> bool:
    """Threads cannot be cancelled."""
    return set(plan.colours[: plan.workers]) != {"sync"}


CLIENT_FAULTS: tuple[Hurt, ...] = (
    Hurt("kill -9 of a worker", _kill, fits=_outlive),
    Hurt(
        "SIGSTOP of a worker beyond the ttl",
        lambda arena: _stopped([arena.dice.choice(arena.workers)]),
        lasts=(1.2, 2.5),
        excused=frozenset({Fault.STOPPED_WAITER}),
    ),
    Hurt(
        "SIGSTOP of a worker within the ttl",
        lambda arena: _stopped([arena.dice.choice(arena.workers)]),
        lasts=(0.1, 0.8),
        excused=frozenset({Fault.STOPPED_WAITER}),
    ),
    Hurt(
        "SIGSTOP of all workers",
        lambda arena: _stopped(arena.workers),
        excused=frozenset({Fault.STOPPED_WAITER}),
    ),
    Hurt("cancellation", lambda arena: _again_and_again(arena, "cancel", 0.05), fits=_loops),
    Hurt("fork while holding", lambda arena: _again_and_again(arena, "fork", 0.5)),
    Hurt("blocked event loop", _told("block", 1.2, 2.0), lasts=(2.0, 2.5)),
    Hurt("busy thread in a worker", _told("burn", 0.5, 1.0), lasts=(1.0, 1.5)),
    Hurt("starved of processor time", _starved, lasts=(0.5, 1.0)),
)
