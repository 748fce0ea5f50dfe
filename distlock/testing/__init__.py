"""What proves a backend: one suite, in sync code, asyncio and trio. Needs pytest (``pydistlock[testing]``).

::

    from functools import partial

    import distlock.testing
    import pytest

    class TestMine(distlock.testing.Conformance):
        @pytest.fixture
        def store(self):
            return distlock.testing.Store(connect=partial(distlock.connect, "mine://…"), lose=my_store.delete)
"""

from .colours import COLOURS, Task, World, case
from .conformance import Conformance
from .faults import Store, Tap, redis_store

__all__ = ("COLOURS", "Conformance", "Store", "Tap", "Task", "World", "case", "redis_store")
