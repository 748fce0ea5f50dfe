"""Runs the core's coroutines without an event loop."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def drive(coro: Coroutine[Any, Any, T]) -> T:
    """Runs ``coro`` to its end in this thread.

    Over `Immediate` nothing in it ever suspends: each await is a plain call. A coroutine that does suspend
    would wait for an event loop that is not there, which is a bug and said so.
    """
    try:
        coro.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    coro.close()
    raise RuntimeError("distlock: a coroutine suspended outside an event loop; this is a bug in distlock or a backend")
