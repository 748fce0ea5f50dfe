"""Tests of code that uses locks, and the proof of a backend.

For the first, `in_memory`, `lose` and `VirtualClock`, and pytest's fixtures ``distlock_manager``, ``distlock_lose``
and ``distlock_clock``, which are there by themselves. For the second, one suite, in sync code, asyncio and trio; it
needs pytest (``pydistlock[testing]``)::

    from functools import partial

    import distlock.testing
    import pytest

    class TestMine(distlock.testing.Conformance):
        @pytest.fixture
        def store(self):
            return distlock.testing.Store(connect=partial(distlock.connect, "mine://…"), lose=my_store.delete)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .aids import in_memory, lose
    from .clock import VirtualClock
    from .colours import COLOURS, Task, World, case
    from .conformance import Conformance, OnceConformance
    from .faults import Store, Tap, redis_store
    from .proxy import FaultProxy, Traffic

__all__ = (
    "COLOURS",
    "Conformance",
    "FaultProxy",
    "OnceConformance",
    "Store",
    "Tap",
    "Task",
    "Traffic",
    "VirtualClock",
    "World",
    "case",
    "in_memory",
    "lose",
    "redis_store",
)

# Imported when asked for: who tests with unittest has no pytest, which the suite needs.
_HOMES = {
    "aids": ("in_memory", "lose"),
    "clock": ("VirtualClock",),
    "colours": ("COLOURS", "Task", "World", "case"),
    "conformance": ("Conformance", "OnceConformance"),
    "faults": ("Store", "Tap", "redis_store"),
    "proxy": ("FaultProxy", "Traffic"),
}


if not TYPE_CHECKING:  # else every name would pass for one of ours

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                return getattr(importlib.import_module(f".{home}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
