"""Two processes that hand one lock to each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..testing.torture._colour import Colour
from ._fight import Mutex

__all__ = ("BOARD", "LAST", "STOP", "SURELY_QUEUED", "Duelist")

NAP = 0.0002
SURELY_QUEUED = 0.002
"""Seconds after which one that was about to ask waits in earnest."""

LAST, STAMP, ASKING, DONE, STOP = 0, 1, 2, 4, 6  # places on the board; the third and fourth are two each
BOARD = 7
"""How many numbers of 64 bits the two have in common."""


class Duelist:
    """One of the two."""

    def __init__(self, board: Any, me: int) -> None:
        self.board, self.me, self.other = board, me, 1 - me

    @staticmethod
    def clear(board: Any) -> None:
        """Before each turn, when neither plays."""
        board[:] = [-1, *[0] * (BOARD - 1)]

    async def ping_pong(self, mutex: Mutex, seconds: float, rest: float, colour: Colour) -> list[tuple[int, int]]:
        """Hands over only to one that waits already, and asks again only after it got in.

        Gives the moments of each hand-over to this one in ns, by the monotonic clock: just before the other's release,
        and when it was in. ``rest``: seconds between the other's wish and the release.
        """
        board, me, other = self.board, self.me, self.other
        found: list[tuple[int, int]] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until and not board[STOP]:
            board[ASKING + me] = 1
            if not await mutex.acquire():
                raise TimeoutError("the lock was not handed over in time")
            entered = time.monotonic_ns()
            board[ASKING + me] = 0
            if board[LAST] == other:
                found.append((board[STAMP], entered))
            board[LAST] = me
            await self._until(lambda: board[ASKING + other] or board[DONE + other], colour)
            await colour.sleep(rest)
            board[STAMP] = time.monotonic_ns()
            await mutex.release()
            await self._until(lambda: board[LAST] == other or board[DONE + other], colour)
        board[DONE + me] = 1
        return found

    async def _until(self, true: Callable[[], object], colour: Colour) -> None:
        while not true() and not self.board[STOP]:
            await colour.sleep(NAP)
