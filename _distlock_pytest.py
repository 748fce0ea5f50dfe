"""The pytest plugin. Outside the package, so that pytest's start imports nothing of distlock where nobody uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from distlock import AsyncLease, Lease, Manager
    from distlock.testing import VirtualClock

__all__ = ("distlock_clock", "distlock_lose", "distlock_manager")

# Named after the package, as fixtures of plugins are: `manager` and `clock` are everybody's.


@pytest.fixture
def distlock_manager() -> Iterator[Manager]:
    """A fresh in-memory manager, which the bare `lock` and `locked` use too, until the end of the test."""
    from distlock.testing import in_memory

    with in_memory() as manager:
        yield manager


@pytest.fixture
def distlock_lose() -> Callable[[Lease | AsyncLease], None]:
    """A function that makes a lease lost: `distlock.testing.lose`."""
    from distlock.testing import lose

    return lose


@pytest.fixture
def distlock_clock(distlock_manager: Manager) -> Iterator[VirtualClock]:
    """A `distlock.testing.VirtualClock`, over `distlock_manager`: time-outs and loss without waiting."""
    from distlock.testing import VirtualClock

    with VirtualClock() as clock:
        yield clock
