"""What the commands share: how they speak, and how they end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .processes import CannotStart

__all__ = ("ending_in_order", "say")

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

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) != signal.SIG_IGN:  # as under nohup
            signal.signal(each, end)
    try:
        yield
    except CannotStart as error:
        say(str(error))
        sys.exit(CANNOT_START)
    except KeyboardInterrupt:
        say("it has ended")
        sys.exit(interrupted)
