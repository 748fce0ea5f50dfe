"""Which blocks are open, and where: what `current`, leaving a block and the deadlock check look up."""

from __future__ import annotations

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

    def pop(self) -> T:
        """The innermost block of the running thread or task; if that has none, the sole one open elsewhere.

        The second case is a framework that enters a block in one thread of its pool and leaves it in another.
        """
        here = current_actor()
        if here not in self._stacks:
            elsewhere = [block for stack in list(self._stacks.values()) for block in stack]
            if len(elsewhere) != 1:
                raise RuntimeError(
                    f"a lock block is left in a thread or task that did not enter it, and {len(elsewhere)} are open"
                    " elsewhere: use acquire() and release the lease it returns"
                )
            self.remove(elsewhere[0])
            return elsewhere[0]
        block = self._stacks[here][-1]
        self.remove(block)
        return block

    def remove(self, block: T) -> None:
        """``block`` is left, wherever it was opened."""
        here = current_actor()
        for actor in (here, *(other for other in list(self._stacks) if other is not here)):
            stack = self._stacks.get(actor)
            if stack is not None and block in stack:
                stack.remove(block)
                if not stack:
                    self._stacks.pop(actor, None)
                return
