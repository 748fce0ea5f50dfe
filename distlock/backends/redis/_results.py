"""Work that is done once: claimed as a lock is, and then recorded, in one script each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from anyio.to_thread import run_sync

from ..base import Claim, Grant
from ._aio import AsyncRedisBackend, by_a_scope
from ._backend import RedisBackend
from ._pool import released
from ._scripts import RECORDED, Dialect, Script, bulk, bulks, lock_keys, record_key
from ._values import milliseconds, recorded

__all__ = ("AsyncRedisResults", "RedisResults")

RECORD = b"}:r"
"""How the name of a record ends, and no other."""


class RedisResults(RedisBackend):
    """Thread-safe. Connects when it is first asked."""

    @property
    def dialect(self) -> Dialect:
        return super().dialect.results

    def complete(self, grant: Grant, record: bytes, keep: float, deadline: float) -> bool:
        frame = self.completing(grant.claim, record, keep)
        return bool(self._pool.send(frame, deadline, grant.claim.key, self.dialect.complete).value)

    def recorded(self, key: str, deadline: float) -> tuple[bytes, float | None] | None:
        return self.read(self._pool.send(self.reading(key), deadline, key, RECORDED).value)

    def forget(self, key: str, deadline: float) -> bool:
        return released(self._pool.send(self.forgetting(key), deadline, key))

    def records(self, prefix: str, deadline: float) -> Iterator[str]:
        return self._keys(prefix, deadline, self.recorded_in)

    def _twin(self) -> AsyncRedisBackend:
        return AsyncRedisResults(self)

    # Requests and replies, shared by both colours.

    def _make_head(self, script: Script, key: str, arg_count: int) -> bytes:
        # Those that are the locks' own leave the last key alone.
        keys = lock_keys(self.namespace, key) + self.clock_of(key) + record_key(self.namespace, key)
        return script.head(5, keys, arg_count)

    def completing(self, claim: Claim, record: bytes, keep: float) -> bytes:
        """The request to record."""
        return self._head(self.dialect.complete, claim.key, 3) + bulks((claim.id.encode(), milliseconds(keep), record))

    def reading(self, key: str) -> bytes:
        """The request to look at a record."""
        return RECORDED.head(1, record_key(self.namespace, key), 0)

    @staticmethod
    def read(reply: Any) -> tuple[bytes, float | None] | None:
        """What came of `reading`."""
        return None if reply is None else recorded(*reply)

    def forgetting(self, key: str) -> bytes:
        """The request to delete a record."""
        return b"*2\r\n" + bulk(b"DEL") + record_key(self.namespace, key)

    def keys_in(self, names: Sequence[bytes]) -> Iterator[str]:
        return super().keys_in([name for name in names if not name.endswith(RECORD)])

    def recorded_in(self, names: Sequence[bytes]) -> Iterator[str]:
        """The keys of the records among keys of the server."""
        return super().keys_in([name for name in names if name.endswith(RECORD)])


class AsyncRedisResults(AsyncRedisBackend):
    """The same for one event loop of asyncio."""

    _sync: RedisResults

    async def complete(self, grant: Grant, record: bytes, keep: float, deadline: float) -> bool:
        key, script = grant.claim.key, self._sync.dialect.complete
        frame = self._sync.completing(grant.claim, record, keep)
        try:
            return bool((await self._pool.send(frame, deadline, key, script)).value)
        except asyncio.CancelledError:
            if not by_a_scope():
                raise
            return bool((await self._shielded(frame, deadline, key, script)).value)

    async def recorded(self, key: str, deadline: float) -> tuple[bytes, float | None] | None:
        return self._sync.read((await self._pool.send(self._sync.reading(key), deadline, key, RECORDED)).value)

    async def forget(self, key: str, deadline: float) -> bool:
        return released(await self._pool.send(self._sync.forgetting(key), deadline, key))

    async def records(self, prefix: str, deadline: float) -> Sequence[str]:
        return await run_sync(lambda: tuple(self._sync.records(prefix, deadline)), limiter=self._connecting)
