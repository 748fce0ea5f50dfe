"""A blocking call under distlock fails the test on every event loop, and other people's do not."""

from __future__ import annotations

import time

import anyio
import anyio.to_thread
import pytest

from distlock._core.drive import drive

from .blocking import BlockingError, may_block


async def block() -> None:
    time.sleep(0)  # noqa: ASYNC251 - this is what must be noticed


@pytest.mark.anyio
async def test_blocking_under_distlock_is_an_error():
    with pytest.raises(BlockingError):
        drive(block())


@pytest.mark.anyio
async def test_a_test_itself_may_block():
    await block()


@pytest.mark.anyio
async def test_blocking_in_a_worker_thread_is_fine():
    await anyio.to_thread.run_sync(lambda: drive(block()))


@pytest.mark.anyio
async def test_blocking_can_be_allowed():
    with may_block():
        drive(block())
    with pytest.raises(BlockingError):
        drive(block())


@pytest.mark.anyio
@pytest.mark.may_block
async def test_blocking_can_be_allowed_for_a_whole_test():
    drive(block())


def test_blocking_without_an_event_loop_is_fine():
    drive(block())
