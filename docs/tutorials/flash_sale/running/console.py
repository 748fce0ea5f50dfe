"""What the commands share: how they speak, and how they end."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

import anyio

from .processes import CannotStart

__all__ = ("ending_in_order", "run", "say")

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CANNOT_START = 2
INTERRUPTED = 130
"""What a shell reports of a program that Ctrl-C ended: 128 + SIGINT."""


def say(line: str) -> None:
    """To the person, on stderr."""
    print(f"flash_sale: {line}", file=sys.stderr, flush=True)


@contextmanager
def ending_in_order(interrupted: int = INTERRUPTED) -> Iterator[None]:
    """Around all that a command does. SIGTERM and SIGHUP do what Ctrl-C does, and the status is ``interrupted`` then;
    only the first of them counts, for what is being ended in order is not to be interrupted."""
    told = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            raise KeyboardInterrupt

    for each in _heard():
        signal.signal(each, end)
    try:
        yield
    except KeyboardInterrupt:
        say("it has ended")
        sys.exit(interrupted)
    except Exception as error:
        problem = next((part for part in _parts(error) if isinstance(part, CannotStart)), None)
        if problem is None:
            raise
        say(str(problem))
        sys.exit(CANNOT_START)


def run(work: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """``anyio.run`` in a block of `ending_in_order`. A signal cancels ``work`` first: raised wherever the loop is just
    then, it would end in a traceback."""

    async def cancellable() -> T:
        loop, told = asyncio.get_running_loop(), list[int]()
        before = {each: signal.getsignal(each) for each in _heard()}
        with anyio.CancelScope() as scope:

            def end(number: int, frame: FrameType | None) -> None:
                told.append(number)
                loop.call_soon_threadsafe(scope.cancel)

            try:
                for each in before:
                    signal.signal(each, end)
                result = await work(*arguments)
            finally:
                for each, handler in before.items():
                    signal.signal(each, handler)
        if told:
            raise Told(told[0])
        return result

    try:
        return anyio.run(cancellable)
    except Told as error:
        signal.raise_signal(error.number)
        raise


def _parts(error: BaseException) -> Iterator[BaseException]:
    """What a task group has put together; on Python 3.10, too."""
    for each in getattr(error, "exceptions", ()):
        yield from _parts(each)
    yield error


class Told(Exception):
    """By a signal, to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _heard() -> list[signal.Signals]:
    """Those that are not to be ignored, as SIGHUP is under nohup."""
    return [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
