"""The one clock by which holding a lock is proven.

It must never step and must go on while the machine sleeps: a lease ends on the server whether or not
the laptop lid is closed. On Linux that is ``CLOCK_BOOTTIME`` (``CLOCK_MONOTONIC`` stops in suspend, see
clock_gettime(2)); on macOS ``CLOCK_MONOTONIC`` goes on in sleep while ``time.monotonic`` does not.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from functools import partial

__all__ = ("now", "seconds_left")

now: Callable[[], float]
"""Seconds on a clock that never steps and never stops."""

# Functions of C: a lock asks for the time eight times between its acquiring and its release.
if sys.platform == "linux":
    now = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
elif sys.platform == "darwin":  # pragma: no cover - not run in CI
    now = partial(time.clock_gettime, time.CLOCK_MONOTONIC)
else:  # pragma: no cover - not run in CI
    now = time.monotonic


def seconds_left(deadline: float) -> float:
    """Seconds until ``deadline``, never negative; ``inf`` stays ``inf``."""
    return deadline if deadline == math.inf else max(0.0, deadline - now())
