"""Which blocks are open, and where: what `current`, leaving a block and the deadlock check look up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from .actor import current_actor

__all__ = ("Blocks",)

T = TypeVar("T")


class Blocks(Generic[T]):
    """Stacks of open blocks by thread or task. Safe from any thread: each step is one dict or list operation.

    Keyed by the object, which the key keeps alive, so that a reused id never finds someone else's block.
    """

    def __init__(self) -> None:
        self._stacks: dict[object, list[T]] = {}

    def push(self, block: T) -> None:
        """``block`` opens in the running thread or task."""
        self._stacks.setdefault(current_actor(), []).append(block)

    def of(self, actor: object) -> tuple[T, ...]:
        """Outermost first."""
        return tuple(self._stacks.get(actor, ()))

    def innermost(self) -> T | None:
        """Of the running thread or task."""
        stack = self._stacks.get(current_actor())
        return stack[-1] if stack else None

    def take(self, wanted: Callable[[T], bool]) -> T:
        """Out of here: the innermost such block of the running thread or task; if it has none, the sole one open
        elsewhere.

        The second case is a framework that enters a block in one thread of its pool and leaves it in another.
        """
        here = current_actor()
        for block in reversed(self._stacks.get(here, ())):
            if wanted(block):
                self._remove(here, block)
                return block
        elsewhere = [(actor, block) for actor, stack in list(self._stacks.items()) for block in stack if wanted(block)]
        if len(elsewhere) != 1:
            raise RuntimeError(
                f"a lock block is left in a thread or task that did not enter it, and {len(elsewhere)} are open"
                " elsewhere: use acquire() and release the lease it returns"
            )
        self._remove(*elsewhere[0])
        return elsewhere[0][1]

    def remove(self, block: T) -> None:
        """``block`` is left, wherever it was opened."""
        for actor in (current_actor(), *self._stacks):
            if block in self._stacks.get(actor, ()):
                self._remove(actor, block)
                return

    def _remove(self, actor: object, block: T) -> None:
        stack = self._stacks[actor]
        stack.remove(block)
        if not stack:
            self._stacks.pop(actor, None)
