"""The same requests over asyncio connections. Waiting and renewal stay with the threads of the sync backend."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import anyio
from anyio.to_thread import run_sync
from redis.exceptions import NoScriptError, RedisError, ResponseError

from ..base import BackendError, Busy, Claim, Grant, Inspection, Renewal, Subscription, Wake, now
from ._connect import AsyncConnection, Server, mapped
from ._pool import LONGEST_IDLE, MOST_IDLE, Reply, is_broken, is_stale, released
from ._scripts import ACQUIRE, INSPECT, RELEASE, RENEW, REVOKE, Script
from ._values import NO_INBOX, inspection, renewals

if TYPE_CHECKING:
    from ._backend import RedisBackend

__all__ = ("AsyncRedisBackend",)

MOST = 64
"""Requests of one event loop that ask for something at the same time."""


class AsyncRedisBackend:
    """For one event loop of asyncio. Its connections are closed with that loop."""

    def __init__(self, sync: RedisBackend) -> None:
        self._sync = sync
        self._pool = AsyncPool(sync.server, sync.op_timeout)
        self._connecting = anyio.CapacityLimiter(4)

    async def acquire(self, claim: Claim, deadline: float) -> Grant | Busy:
        inbox = self._sync.inbox.expect(claim) if claim.wait else NO_INBOX
        asked_at = now()
        try:
            reply = await self._pool.send(self._sync.asking(claim, inbox), deadline, claim.key, ACQUIRE)
        except BaseException:
            self._sync.inbox.forget_unwatched(claim.id)
            raise
        return self._sync.answered(claim, asked_at, reply)

    async def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        inbox = self._sync.inbox
        if inbox.listening:
            return inbox.watch(busy, wake, deadline)
        # It connects. Cancelled, it is waited for (no longer than op_timeout); the withdrawal undoes it.
        return await run_sync(inbox.watch, busy, wake, deadline, limiter=self._connecting)

    async def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        self._sync.inbox.forget(claim.id)
        frame = self._sync.leaving(claim, queued=True, in_flight=in_flight)
        await self._pool.send(frame, deadline, claim.key, RELEASE)

    async def release(self, grant: Grant, deadline: float) -> bool:
        frame = self._sync.leaving(grant.claim, in_flight=grant.in_flight)
        return released(await self._pool.send(frame, deadline, grant.claim.key, RELEASE))

    async def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        asked_at = now()
        frame = self._sync.renewing([(grant.claim, ttl)])
        reply = await self._pool.send(frame, deadline, grant.claim.key, RENEW)
        return renewals([ttl], asked_at, reply.value)[0]

    async def revoke(self, key: str, token: int, deadline: float) -> bool:
        return released(await self._pool.send(self._sync.revoking(key, token), deadline, key, REVOKE))

    async def inspect(self, key: str, deadline: float) -> Inspection:
        reply = await self._pool.send(self._sync.inspecting(key), deadline, key, INSPECT)
        return inspection(key, reply.value)

    async def list(self, prefix: str, deadline: float) -> Sequence[Inspection]:
        return await run_sync(lambda: tuple(self._sync.list(prefix, deadline)), limiter=self._connecting)

    async def aclose(self) -> None:
        await self._pool.aclose()


class AsyncPool:
    """`Pool` for asyncio."""

    def __init__(self, server: Server, op_timeout: float) -> None:
        self._server = server
        self._op_timeout = op_timeout
        self._idle: deque[tuple[AsyncConnection, float]] = deque()
        # A crowd of tasks shares some connections, and never keeps out who gives a lock back.
        self._asking = asyncio.Semaphore(MOST)
        self._giving = asyncio.Semaphore(MOST_IDLE)
        self._guard: AsyncGenerator[None, None] | None = None
        self._closed = False

    async def send(self, frame: bytes, deadline: float, key: str | None, script: Script) -> Reply:
        """The reply to one request of ``script``."""
        places = self._giving if script is RELEASE else self._asking
        try:
            with anyio.fail_after(max(0.0, deadline - now())) if places.locked() else nullcontext():
                await places.acquire()
        except TimeoutError as error:
            raise mapped(error, self._server.address, key=key, sent=False) from error
        try:
            return await self._send(frame, deadline, key, script)
        finally:
            places.release()

    async def _send(self, frame: bytes, deadline: float, key: str | None, script: Script) -> Reply:
        connection = await self._idle_connection()
        if connection is None:
            return Reply(await self._send_fresh(frame, deadline, key, script), again=False)
        try:
            return Reply(await self._exchange(connection, frame, deadline, script), again=False)
        except (RedisError, OSError) as error:
            if is_stale(error):
                await self._clear()
            if not is_broken(error):
                raise mapped(error, self._server.address, key=key) from error
        try:
            return Reply(await self._send_fresh(frame, deadline, key, script), again=True)
        except BackendError as error:
            error.sent = True  # the first try may have got through
            raise

    async def _idle_connection(self) -> AsyncConnection | None:
        while self._idle:
            connection: Any
            connection, since = self._idle.pop()
            # What asyncio has seen die is not written to: its transport would break on that (before Python 3.12.2).
            dead = connection._writer.is_closing() or connection._reader.at_eof()
            if not dead and now() - since < LONGEST_IDLE:
                return connection  # type: ignore[no-any-return]
            await _drop(connection)
        return None

    async def _send_fresh(self, frame: bytes, deadline: float, key: str | None, script: Script) -> Any:
        if self._guard is None:
            self._guard = self._close_with_loop()
            await self._guard.__anext__()
        connection = self._server.async_connection(self._op_timeout)
        try:
            with anyio.fail_after(max(0.0, deadline - now())):
                await connection.connect()
        except (RedisError, OSError) as error:
            await _drop(connection)
            raise mapped(error, self._server.address, key=key, sent=False) from error
        except BaseException:
            await _drop(connection)
            raise
        try:
            return await self._exchange(connection, frame, deadline, script)
        except (RedisError, OSError) as error:
            raise mapped(error, self._server.address, key=key) from error

    async def _exchange(self, connection: AsyncConnection, frame: bytes, deadline: float, script: Script) -> Any:
        try:
            with anyio.fail_after(max(0.0, deadline - now())):
                try:
                    reply = await _ask(connection, frame)
                except NoScriptError:
                    reply = await _ask(connection, script.whole(frame))  # the server has forgotten it
        except ResponseError as error:
            await (_drop(connection) if is_stale(error) else self._give_back(connection))
            raise
        except BaseException:  # the reply may still come: this connection must not be used again
            await _drop(connection)
            raise
        await self._give_back(connection)
        return reply

    async def _give_back(self, connection: AsyncConnection) -> None:
        if self._closed or len(self._idle) >= MOST_IDLE:
            await _drop(connection)
        else:
            self._idle.append((connection, now()))

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        """asyncio ends open async generators before it closes a loop: the one hook there is for that moment."""
        try:
            yield
        finally:
            self._guard = None  # asyncio has hooked it to its loop, which it would keep alive
            await self._clear()

    async def _clear(self) -> None:
        while self._idle:
            await _drop(self._idle.pop()[0])

    async def aclose(self) -> None:
        """Drops the idle connections, and those in use when they come back."""
        self._closed = True
        if self._guard is not None:
            await self._guard.aclose()


async def _ask(connection: AsyncConnection, frame: bytes) -> Any:
    await connection.send_packed_command(frame, check_health=False)
    return await connection.read_response(disable_decoding=True)


async def _drop(connection: Any) -> None:
    """Closes it at once. TLS would take leave first, for which a loop that ends has no time."""
    if connection._writer is not None:
        connection._writer.transport.abort()
    await connection.disconnect(nowait=True)
