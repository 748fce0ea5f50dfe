"""Ways to whoever answers that do more than ask one server once: that wait out a failover, or for replicas."""

from __future__ import annotations

import time
from typing import Any, Protocol

import anyio

from ..base import BackendError, BackendUnavailable, Confirmation, now
from ._connect import Target
from ._errors import mapped
from ._pool import Pool, Reply
from ._scripts import Script, command
from ._trail import Trail

__all__ = ("AsyncPatient", "AsyncRoute", "Confirmed", "Patient", "Route")


class Route(Protocol):
    """How requests reach whoever answers them."""

    def send(
        self, frame: bytes, deadline: float, key: str | None = None, script: Script | None = None, replies: int = 1
    ) -> Reply:
        """The reply to one request; of several replies a list, in which errors are not raised."""
        ...

    def post(self, frame: bytes, proves: float, deadline: float) -> Confirmation | None:
        """Sends a request without waiting for its reply: 1, which proves holding until ``proves``, or 0: it is lost.

        None: it was not sent. So it is where one server's word is not enough, or the next word may be another server's.
        """
        return None

    def after_fork(self) -> None:
        """In a forked child: drops what was inherited without a word to the server."""

    def close(self) -> None:
        """Drops all connections."""


class AsyncRoute(Protocol):
    """`Route` for asyncio."""

    async def send(
        self, frame: bytes, deadline: float, key: str | None = None, script: Script | None = None, replies: int = 1
    ) -> Reply: ...

    async def aclose(self) -> None: ...


class Patient(Route):
    """To a server that may move: it asks until the deadline, and looks anew for the server each time."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def send(
        self, frame: bytes, deadline: float, key: str | None = None, script: Script | None = None, replies: int = 1
    ) -> Reply:
        """See `Route.send`."""
        trail = Trail(deadline)
        while True:
            try:
                reply = self._route.send(frame, trail.limit(), key, script, replies)
                return Reply(reply.value, reply.again or trail.sent)
            except BackendError as error:
                pause = trail.after(error, None)
            time.sleep(pause)

    def after_fork(self) -> None:
        """See `Route.after_fork`."""
        self._route.after_fork()

    def close(self) -> None:
        """See `Route.close`."""
        self._route.close()


class AsyncPatient:
    """`Patient` for asyncio."""

    def __init__(self, route: AsyncRoute) -> None:
        self._route = route
        self.aclose = route.aclose

    async def send(
        self, frame: bytes, deadline: float, key: str | None = None, script: Script | None = None, replies: int = 1
    ) -> Reply:
        """See `Route.send`."""
        trail = Trail(deadline)
        while True:
            try:
                reply = await self._route.send(frame, trail.limit(), key, script, replies)
                return Reply(reply.value, reply.again or trail.sent)
            except BackendError as error:
                pause = trail.after(error, None)
            await anyio.sleep(pause)


class Confirmed(Route):
    """To one server, whose grants and renewals count only when so many replicas have them.

    WAIT blocks its connection, so that those who ask and those who renew have others than those who give back. It
    waits for what was written on that very connection (redis.io, WAIT): the scripts see to it that a grant or a renewal
    writes something each time.
    """

    def __init__(self, pool: Pool, server: Target, op_timeout: float, replicas: int) -> None:
        self._pool = pool
        asking, self._renewing = Pool(server, op_timeout), Pool(server, op_timeout)
        self._waiting = {
            "acquire": asking,
            "once_acquire": asking,
            "once_complete": asking,
            "renew": self._renewing,
        }
        self._pools = pool, asking, self._renewing
        self._replicas = replicas
        self._address = server.address

    def send(
        self, frame: bytes, deadline: float, key: str | None = None, script: Script | None = None, replies: int = 1
    ) -> Reply:
        """See `Route.send`. `BackendUnavailable` if the replicas did not confirm in time."""
        waiting = None if script is None else self._waiting.get(script.name)
        if waiting is None:
            return self._pool.send(frame, deadline, key, script, replies)
        # Less than half of the time there is: it comes twice if the server has forgotten the script.
        wait = command(b"WAIT", b"%d" % self._replicas, b"%d" % max(1, round(400 * (deadline - now()))))
        reply = waiting.send(frame + wait, deadline, key, script, replies + 1)
        *values, count = reply.value
        if replies == 1 and isinstance(values[0], Exception):
            raise mapped(values[0], self._address, key=key) from values[0]
        # A list is not a grant: another has the lock, and there is nothing to confirm. Nor is there of what was lost.
        if waiting is self._renewing or (isinstance(values[-1], int) and values[-1]):
            self._check(count, key)
        return Reply(values if replies > 1 else values[0], reply.again)

    def _check(self, count: Any, key: str | None) -> None:
        if isinstance(count, Exception):
            raise mapped(count, self._address, key=key) from count
        if count < self._replicas:
            raise BackendUnavailable(
                f"{count} of {self._replicas} replicas confirmed the write in time; are they connected? see INFO"
                f" replication [{self._address}]",
                key=key,
                backend=self._address,
                sent=True,
            )

    def after_fork(self) -> None:
        """See `Route.after_fork`."""
        for pool in self._pools:
            pool.after_fork()

    def close(self) -> None:
        """Drops all connections."""
        for pool in self._pools:
            pool.close()
