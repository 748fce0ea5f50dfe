"""What a store knows of work that is done once: to look at, and to forget."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from .._clock import now
from .._core.acquire import Line
from .._core.drive import drive
from .._core.release import results
from .._options import check_key
from .records import Operation, read

__all__ = ("Results",)

log = logging.getLogger("distlock.idempotency")


class Results:
    """Thread-safe. By `Manager.results`.

    What it gives is already old when you read it: for people and their tools, not for decisions.
    """

    def __init__(self, line: Callable[[], Line], async_line: Callable[[], Line]) -> None:
        """The way to the store of results, in both colours."""
        self._line = line
        self._async_line = async_line

    def get(self, key: str) -> Operation | None:
        """The work under ``key``, whether it is done or in progress; None if there is neither."""
        return drive(_get(self._line(), check_key(key)))

    async def get_async(self, key: str) -> Operation | None:
        """`get` for asyncio and trio."""
        return await _get(self._async_line(), check_key(key))

    def list(self, prefix: str = "") -> Sequence[Operation]:
        """All work whose key starts with ``prefix``, in no order. One request or two for each."""
        return drive(_list(self._line(), prefix))

    async def list_async(self, prefix: str = "") -> Sequence[Operation]:
        """`list` for asyncio and trio."""
        return await _list(self._async_line(), prefix)

    def forget(self, key: str) -> bool:
        """Deletes what is kept of ``key``: the next request under it is done again. Logged.

        What is in progress is left alone. False: nothing was kept.
        """
        return drive(_forget(self._line(), check_key(key)))

    async def forget_async(self, key: str) -> bool:
        """`forget` for asyncio and trio."""
        return await _forget(self._async_line(), check_key(key))


async def _get(line: Line, key: str) -> Operation | None:
    kept = await results(line).recorded(key, now() + line.op_timeout)
    if kept is not None:
        return read(key, *kept)
    found = await line.backend.inspect(key, now() + line.op_timeout)
    if found.holder is not None:
        return Operation.of_holder(key, found.holder, found.waiters)
    # It may have been completed between the two.
    kept = await results(line).recorded(key, now() + line.op_timeout)
    return None if kept is None else read(key, *kept)


async def _list(line: Line, prefix: str) -> Sequence[Operation]:
    found = await line.backend.list(prefix, now() + line.op_timeout)
    operations = {
        each.key: Operation.of_holder(each.key, each.holder, each.waiters) for each in found if each.holder is not None
    }
    for key in await results(line).records(prefix, now() + line.op_timeout):
        kept = await results(line).recorded(key, now() + line.op_timeout)
        if kept is not None:
            operations[key] = read(key, *kept)
    return tuple(operations.values())


async def _forget(line: Line, key: str) -> bool:
    forgotten = await results(line).forget(key, now() + line.op_timeout)
    what = "forgotten by force" if forgotten else "to be forgotten, but nothing was kept of it"
    log.warning("the outcome of %r was %s [%s]", key, what, line.address)
    return forgotten
