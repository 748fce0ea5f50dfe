"""Which blocks are open, and where: what `current`, leaving a block and the deadlock check look up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from .actor import current_actor

__all__ = ("Blocks",)

T = TypeVar("T")


class Blocks(Generic[T]):
    """Stacks of open blocks by thread or task, which they keep alive. Thread-safe.

    Keyed by the object, which the key keeps alive, so that a reused id never finds someone else's block.
    """

    def __init__(self) -> None:
        self._stacks: dict[object, list[T]] = {}
        self._lock = threading.RLock()  # a signal's handler may come to it in the thread that holds it

    def after_fork(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self._lock = threading.RLock()

    def push(self, block: T, actor: object) -> None:
        """``block`` opens in the thread or task ``actor``."""
        with self._lock:
            self._stacks.setdefault(actor, []).append(block)

    def of(self, actor: object) -> tuple[T, ...]:
        """Outermost first."""
        return tuple(self._stacks.get(actor, ()))

    def innermost(self) -> T | None:
        """Of the running thread or task."""
        stack = self._stacks.get(current_actor())
        return stack[-1] if stack else None

    def find(self, wanted: Callable[[T], bool]) -> T:
        """The innermost such block of the running thread or task; if it has none, the sole one open elsewhere.

        The second case is a framework that enters a block in one thread of its pool and leaves it in another.
        """
        for block in reversed(self._stacks.get(current_actor(), ())):
            if wanted(block):
                return block
        with self._lock:
            elsewhere = [block for stack in self._stacks.values() for block in stack if wanted(block)]
        if len(elsewhere) != 1:
            raise RuntimeError(
                f"a lock block is left in a thread or task that did not enter it, and {len(elsewhere)} are open"
                " elsewhere: use acquire() and release the lease it returns"
            )
        return elsewhere[0]

    def remove(self, block: T, actor: object) -> None:
        """``block``, which opened in ``actor``, is left, wherever that may be."""
        with self._lock:
            stack = self._stacks.get(actor, [])
            if block in stack:
                stack.remove(block)
                if not stack:
                    del self._stacks[actor]
