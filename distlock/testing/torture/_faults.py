"""What the nemesis can do. A fault is a few lines: how it hurts and heals, for how long, and what it excuses."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..._types import Fault, Guarantees
from ._plan import Plan

__all__ = ("Arena", "Hurt", "Victim", "in_background")


class Victim(Protocol):
    """A worker process, as faults see it."""

    name: str
    """``"w0"``."""
    pid: int

    def tell(self, order: str) -> None:
        """An order that it obeys in a thread of its own: ``"block 3.0"`` blocks its event loop for three seconds,
        ``"burn 3.0"`` has a thread of it burn processor time, ``"cancel"`` cancels one actor that waits or holds,
        ``"fork"`` forks a child that uses and releases what it inherited, and ends."""

    def kill(self) -> None:
        """SIGKILL. Another process takes its place once the fault has healed."""


class Arena(Protocol):
    """What a fault may touch."""

    plan: Plan
    dice: random.Random
    """All chance in a fault comes from here, so that a seed repeats it."""

    @property
    def workers(self) -> Sequence[Victim]:
        """Those that run."""
        raise NotImplementedError


def _always(plan: Plan, guarantees: Guarantees) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Hurt:
    """One kind of fault."""

    name: str
    """``"SIGSTOP of a worker"``."""
    strike: Callable[[Arena], AbstractContextManager[str]]
    """Hurts when it is entered, gives the name of whom it struck, and heals when it is left."""
    lasts: tuple[float, float] = (0.5, 2.5)
    """From and to how many ttls."""
    rest: float = 1.0
    """How many ttls of peace follow it, at least."""
    excused: frozenset[Fault] = frozenset()
    """Which exceptions of `distlock.Guarantees` it is a case of. What a backend does not except is not excused."""
    fits: Callable[[Plan, Guarantees], bool] = _always
    """Whether there is anything to hurt in such a run; if not, it is left out."""


@contextmanager
def in_background(act: Callable[[threading.Event], None]) -> Iterator[None]:
    """``act`` goes on beside the block, until the event that it is given says that this is over.

    What it raises comes out at the end.
    """
    over = threading.Event()
    with ThreadPoolExecutor(1, "torture-fault") as thread:
        acting = thread.submit(act, over)
        try:
            yield
        finally:
            over.set()
        acting.result()
