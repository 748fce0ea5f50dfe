"""The same requests over an asyncio connection. Waiting and renewal stay with the threads of the sync backend."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any

import anyio
from anyio.to_thread import run_sync
from redis.exceptions import NoScriptError, RedisError, ResponseError

from ..base import BackendError, Busy, Claim, Done, Grant, Inspection, Renewal, Subscription, Wake, now
from ._aio_link import AsyncLink
from ._connect import Target
from ._errors import mapped
from ._pool import LONGEST_IDLE, Reply, is_broken, is_stale, released
from ._routes import AsyncPatient, AsyncRoute
from ._scripts import INSPECT, RENEW, Script
from ._values import NO_INBOX, inspection, renewals

if TYPE_CHECKING:
    from ._backend import RedisBackend

__all__ = ("AsyncRedisBackend", "by_a_scope")


class AsyncRedisBackend:
    """For one event loop of asyncio. Its connection is closed with that loop."""

    shields = True

    def __init__(self, sync: RedisBackend) -> None:
        self._sync = sync
        self._pool = self._make_route()
        self._connecting = anyio.CapacityLimiter(4)

    def _make_route(self) -> AsyncRoute:
        route: AsyncRoute = AsyncPool(self._sync.server, self._sync.op_timeout)
        return AsyncPatient(route) if self._sync.server.moves else route

    async def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        inbox = self._sync.inbox.expect(claim) if claim.wait else NO_INBOX
        asked_at = now()
        try:
            reply = await self._pool.send(
                self._sync.asking(claim, inbox), deadline, claim.key, self._sync.dialect.acquire
            )
        except BaseException:
            self._sync.inbox.forget_unwatched(claim.id)
            raise
        return self._sync.answered(claim, asked_at, reply, inbox)

    async def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        inbox = self._sync.inbox
        if inbox.connected:
            return inbox.watch(busy, wake, deadline)
        # It connects. Cancelled, it is waited for (no longer than op_timeout); the withdrawal undoes it.
        return await run_sync(inbox.watch, busy, wake, deadline, limiter=self._connecting)

    async def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        self._sync.inbox.forget(claim.id)
        frame = self._sync.leaving(claim, queued=True, in_flight=in_flight)
        try:
            await self._pool.send(frame, deadline, claim.key, self._sync.dialect.release)
        except asyncio.CancelledError:
            if not by_a_scope():
                raise
            await self._shielded(frame, deadline, claim.key, self._sync.dialect.release)

    async def release(self, grant: Grant, deadline: float) -> bool:
        frame = self._sync.leaving(grant.claim, in_flight=grant.in_flight)
        try:
            return released(await self._pool.send(frame, deadline, grant.claim.key, self._sync.dialect.release))
        except asyncio.CancelledError:
            if not by_a_scope():
                raise
            return released(await self._shielded(frame, deadline, grant.claim.key, self._sync.dialect.release))

    async def _shielded(self, frame: bytes, deadline: float, key: str, script: Script) -> Reply:
        """Of what gives back, which is never cut short. A shield costs as much as a request and few are cancelled, so
        that it is put up when that has come, and asked again behind it."""
        reply: Reply | None = None
        with anyio.CancelScope(shield=True):
            reply = await self._pool.send(frame, deadline, key, script)
        assert reply is not None  # nobody cancels that scope
        return Reply(reply.value, again=True)

    async def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        asked_at = now()
        frame = self._sync.renewing([(grant.claim, ttl)])
        reply = await self._pool.send(frame, deadline, grant.claim.key, RENEW)
        return renewals([ttl], asked_at, reply.value)[0]

    async def revoke(self, key: str, token: int, deadline: float) -> bool:
        return released(
            await self._pool.send(self._sync.revoking(key, token), deadline, key, self._sync.dialect.revoke)
        )

    async def inspect(self, key: str, deadline: float) -> Inspection:
        reply = await self._pool.send(self._sync.inspecting(key), deadline, key, INSPECT)
        return inspection(key, reply.value)

    async def list(self, prefix: str, deadline: float) -> Sequence[Inspection]:
        return await run_sync(lambda: tuple(self._sync.list(prefix, deadline)), limiter=self._connecting)

    async def aclose(self) -> None:
        await self._pool.aclose()


class AsyncPool:
    """`Pool` for asyncio: one connection for all tasks, opened for whoever comes first and lent to all who wait."""

    def __init__(self, server: Target, op_timeout: float) -> None:
        self._server = server
        self._op_timeout = op_timeout
        self._link: AsyncLink | None = None
        self._connecting: asyncio.Task[AsyncLink | Exception] | None = None
        self._guard: AsyncGenerator[None, None] | None = None
        self._closed = False

    async def send(
        self, frame: bytes, deadline: float, key: str | None = None, script: Script | None = None, replies: int = 1
    ) -> Reply:
        """The reply to one request, of ``script`` if it runs one; of several in one ``frame``, the list of ``replies``,
        in which errors are values."""
        link = self._link
        if link is None or link.lost is not None:
            link = await self._connected(deadline, key)
        value = await link.ask(frame, deadline, replies)
        if type(value) is int:  # as most are
            return Reply(value, False)
        try:
            return Reply(await _checked(link, value, frame, deadline, script, replies), again=False)
        except (RedisError, OSError) as error:
            if not (link.proven and is_broken(error)):
                raise mapped(error, self._server.address, key=key) from error
        try:
            link = await self._connected(deadline, key)
            value = await link.ask(frame, deadline, replies)
            return Reply(await _checked(link, value, frame, deadline, script, replies), again=True)
        except BackendError as error:
            problem, cause = error, error.__cause__
        except (RedisError, OSError) as error:
            problem, cause = mapped(error, self._server.address, key=key), error
        problem.sent = True  # the first try may have got through
        raise problem from cause

    async def _connected(self, deadline: float, key: str | None) -> AsyncLink:
        outcome: AsyncLink | Exception | None = None
        while outcome is None:
            if self._link is not None and self._link.lost is None:
                return self._link
            connecting = self._connecting
            if connecting is None or connecting.done():
                # The task and the context of one caller are not those of all.
                start = asyncio.get_running_loop().create_task
                connecting = self._connecting = Context().run(start, self._connect())
            await asyncio.wait({connecting}, timeout=max(0.0, deadline - now()))
            if not connecting.done():
                outcome = TimeoutError("the server did not answer in time")
            elif not connecting.cancelled():  # by who cancels all tasks there are
                outcome = connecting.result()
        if isinstance(outcome, AsyncLink):
            return outcome
        if isinstance(outcome, (RedisError, OSError)):
            raise mapped(outcome, self._server.address, key=key, sent=False) from outcome
        raise outcome

    async def _connect(self) -> AsyncLink | Exception:
        if self._guard is None:
            self._guard = self._close_with_loop()
            await self._guard.__anext__()
        self._end_link()
        connection = self._server.async_connection(self._op_timeout)
        try:
            with anyio.fail_after(self._op_timeout):
                await connection.connect()
            self._link = link = await AsyncLink.over(connection, LONGEST_IDLE)
            link.last = self._closed
            return link
        except Exception as error:  # noqa: BLE001 - it is raised to those who wait
            await _drop(connection)
            return error
        except BaseException:
            await _drop(connection)
            raise

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        """asyncio ends open async generators before it closes a loop: the one hook there is for that moment."""
        try:
            yield
        finally:
            self._guard = None  # asyncio has hooked it to its loop, which it would keep alive
            connecting, self._connecting = self._connecting, None
            if connecting is not None and not connecting.done():
                connecting.cancel()
                await asyncio.wait({connecting})
            self._end_link()

    def _end_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    async def aclose(self) -> None:
        """Drops the connection; another that is needed afterwards, as soon as it has served."""
        self._closed = True
        if self._guard is not None:
            await self._guard.aclose()


def by_a_scope() -> bool:
    """Whether it is a cancel scope that has cancelled: `Task.cancel` is not held off by a shield."""
    return anyio.current_effective_deadline() == -math.inf


async def _checked(
    link: AsyncLink, value: Any, frame: bytes, deadline: float, script: Script | None, replies: int
) -> Any:
    """``value``, which ``frame`` got; raised if it is an error, and asked for again if the server wants the script."""
    if script is not None and any(isinstance(error, NoScriptError) for error in _errors(value, replies)):
        value = await link.ask(script.whole(frame), deadline, replies)
    for error in _errors(value, replies):
        if isinstance(error, ResponseError) and is_stale(error):
            link.close(ConnectionError(str(error)))  # the address leads to another server by now
    if isinstance(value, Exception):
        raise value
    return value


def _errors(value: Any, replies: int) -> list[Exception]:
    values = value if replies > 1 and isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, Exception)]


async def _drop(connection: Any) -> None:
    """Closes what was not taken over, at once: a loop that ends has no time for taking leave."""
    if connection._writer is not None:
        connection._writer.transport.abort()
    await connection.disconnect(nowait=True)
