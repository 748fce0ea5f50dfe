"""A server that Sentinel names: asked at each new connection, as a failover may have moved it.

The steps are those of "Guidelines for Redis clients with support for Redis Sentinel" (redis.io): ask one sentinel
after another, remember the one that answered, and check by ``ROLE`` that what it named is a primary.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache, partial
from typing import Any, ClassVar

import anyio
import redis
import redis.asyncio
from redis.asyncio.connection import AbstractConnection as AsyncConnection
from redis.exceptions import ConnectionError as RedisConnectionError, ReadOnlyError, RedisError

from ..base import ConfigurationError, now
from ._connect import Server, shown
from ._url import Place

__all__ = ("SentinelServer",)

SHARE = 0.25
"""Of the time there is to connect, at most, for one sentinel that does not answer; and at least, for the primary."""
GREETING = 3.0
"""Seconds after which a primary that does not even greet is taken to hang. All tasks of a loop wait for one connection,
and the sentinels may name another soon."""


class SentinelServer:
    """The primary of a group that sentinels watch. Thread-safe."""

    moves: ClassVar[bool] = True

    def __init__(self, like: Server, sentinels: Sequence[Server], group: str) -> None:
        self._like = like
        self._sentinels = list(sentinels)
        self._group = group

    @classmethod
    def from_place(cls, place: Place) -> SentinelServer:
        """``redis+sentinel://[user:password@]h1[:26379],h2/group[/db]``; the credentials are the servers'."""
        if len(place.path) not in (1, 2):
            raise ConfigurationError("which servers? write redis+sentinel://sentinel1,sentinel2/name[/db]")
        group, db = (*place.path, "0")[:2]
        user, password = place.take("sentinel_username"), place.take("sentinel_password")
        like = place.servers(db, 6379)[0]
        own = {"username": user, "password": password}
        sentinels = [
            Server(each.kind, {**each.settings, **{name: value for name, value in own.items() if value}})
            for each in place.servers("0", 26379, login=False)
        ]
        return cls(like, sentinels, group)

    @classmethod
    def from_pool(cls, pool: Any) -> SentinelServer:
        """As a client is set up that ``Sentinel.master_for`` of redis-py has given."""
        if not pool.is_master:
            raise ConfigurationError("this client reads from replicas; locks need master_for()")
        given = {name: value for name, value in pool.connection_kwargs.items() if name != "connection_pool"}
        is_tls = issubclass(pool.connection_class, (redis.SSLConnection, redis.asyncio.SSLConnection))
        sentinels = [Server.from_client(each) for each in pool.sentinel_manager.sentinels]
        return cls(Server.from_options(given, is_tls), sentinels, pool.service_name)

    @property
    def address(self) -> str:
        """The sentinels, and what they are asked for."""
        scheme = "rediss+sentinel" if self._like.kind == "tls" else "redis+sentinel"
        hosts = ",".join(sorted(shown((each.settings["host"], each.settings["port"])) for each in self._sentinels))
        return f"{scheme}://{hosts}/{self._group}/{self._like.settings.get('db') or 0}"

    def connect(self, within: float, op_timeout: float) -> redis.Connection:
        """A connection to the primary of this moment."""
        deadline = now() + within
        found = self._find(within, op_timeout)
        connection = found.connect(deadline - now(), op_timeout)
        try:
            _check_role(_asked(connection, max(0.01, deadline - now()), "ROLE"))
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _find(self, within: float, op_timeout: float) -> Server:
        last: Exception | None = None
        patience = self._patience(within)
        for sentinel in tuple(self._sentinels):
            connection: redis.Connection | None = None
            until = now() + patience
            try:
                connection = sentinel.connect(patience, op_timeout)
                left = max(0.01, until - now())
                reply = _asked(connection, left, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._group)
                return self._named(sentinel, reply)
            except (RedisError, OSError) as error:
                last = error
            finally:
                if connection is not None:
                    connection.disconnect()
        raise self._unknown(last)

    @property
    def works_on_asyncio(self) -> bool:
        """See `Server.works_on_asyncio`."""
        return self._like.works_on_asyncio and all(each.works_on_asyncio for each in self._sentinels)

    def async_connection(self, timeout: float) -> AsyncConnection:
        """One that looks for the primary when it connects."""
        kind, options = self._like.async_recipe(timeout)
        connection = _finding(kind)(**options)  # type: ignore[arg-type]
        connection.find = partial(self._find_async, timeout)
        connection.patience = min(timeout, GREETING)
        return connection  # type: ignore[no-any-return]

    async def _find_async(self, timeout: float) -> Server:
        last: Exception | None = None
        patience = self._patience(timeout)
        for sentinel in tuple(self._sentinels):
            connection = sentinel.async_connection(patience)
            try:
                with anyio.fail_after(patience):
                    await connection.connect()
                    await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._group)
                    return self._named(sentinel, await connection.read_response(disable_decoding=True))
            except (RedisError, OSError) as error:
                last = error
            finally:
                await connection.disconnect(nowait=True)
        raise self._unknown(last)

    def _patience(self, within: float) -> float:
        """Seconds for each sentinel: were all but the last to hang, there is time for that one, and for the primary."""
        return within * min(SHARE, (1 - SHARE) / len(self._sentinels))

    def _named(self, sentinel: Server, reply: Any) -> Server:
        if not reply:
            raise RedisError(f"it knows of no {self._group!r}")
        if self._sentinels[0] is not sentinel:
            # A single step, so that no thread sees the list without one of them.
            self._sentinels[:] = [sentinel, *(each for each in self._sentinels if each is not sentinel)]
        host, port = (part.decode() for part in reply)
        return self._like.at(host, int(port))

    def _unknown(self, last: Exception | None) -> Exception:
        return RedisConnectionError(f"no sentinel named a primary for {self._group!r}: {last}")


@cache
def _finding(kind: type[AsyncConnection]) -> Any:
    class Finding(kind):  # type: ignore[misc, valid-type]
        find: Callable[[], Awaitable[Server]]
        patience: float

        async def connect(self) -> None:
            settings = (await self.find()).settings
            self.host, self.port = settings["host"], settings["port"]
            try:
                with anyio.fail_after(self.patience):
                    await super().connect()
                    await self.send_command("ROLE")
                    _check_role(await self.read_response(disable_decoding=True))
            except BaseException:
                await self.disconnect(nowait=True)
                raise

    return Finding


def _asked(connection: redis.Connection, within: float, *words: str) -> Any:
    connection.send_command(*words)
    if not connection.can_read(within):  # a server that hangs has a backlog that connects
        raise TimeoutError("it did not answer")
    return connection.read_response(disable_decoding=True)


def _check_role(reply: Any) -> None:
    if reply[0] != b"master":
        raise ReadOnlyError(f"READONLY Sentinel named a server that is a {reply[0].decode(errors='replace')} by now")
