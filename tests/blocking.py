"""Fails a test when code under distlock makes a blocking call inside an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import blockbuster
import pytest
import trio

import distlock

__all__ = ("BlockingError", "may_block", "no_blocking")

BlockingError = blockbuster.BlockingError

_allowed = 0


def _running_loop() -> object:
    """What blockbuster asks to learn whether a loop runs in this thread; it knows asyncio only."""
    if not _allowed and trio.lowlevel.in_trio_run():
        return trio
    if not _allowed:
        return asyncio.get_running_loop()
    raise RuntimeError("blocking is allowed")


@contextmanager
def no_blocking() -> Iterator[None]:
    """Inside, a blocking call with distlock on the stack raises `BlockingError` in every event loop.

    The suite that ships in ``distlock.testing`` is test code: it may block where it means to.
    """
    suite = ModuleType("distlock.testing")  # a stand-in: pytest has yet to rewrite its asserts
    suite.__path__ = [str(Path(distlock.__file__).parent / "testing")]
    detector = blockbuster.BlockBuster("distlock", excluded_modules=[suite])
    detector.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", "lock_data")  # its tracer's
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockbuster.blockbuster, "asyncio", SimpleNamespace(get_running_loop=_running_loop))
        detector.activate()
        try:
            yield
        finally:
            detector.deactivate()


@contextmanager
def may_block() -> Iterator[None]:
    """Inside, blocking is the point of the test."""
    global _allowed
    _allowed += 1
    try:
        yield
    finally:
        _allowed -= 1
