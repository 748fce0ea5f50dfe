"""Where the server is and how to reach it, for connections of our own in both colours."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, ClassVar, Protocol

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.backoff
import redis.connection
import redis.retry
from redis.asyncio.connection import AbstractConnection as AsyncConnection

from ..base import ConfigurationError, Unsupported

__all__ = ("ESCAPES", "AsyncConnection", "Server", "Target", "shown")

ESCAPES = "in a password, write / ? # @ and : as %2F %3F %23 %40 and %3A"

# What is taken over from a URL or a ready client. All else (decoding, protocol, retries, health checks, …) is
# ours to choose, so that a lock behaves the same however the client at hand is set up.
_TAKEN = (
    "host", "port", "path", "db", "username", "password", "credential_provider", "client_name",
    "socket_keepalive", "socket_keepalive_options", "socket_type",
)  # fmt: skip

# CLIENT SETINFO would cost each connection two round trips; and to learn its own version redis-py reads files,
# which an event loop must not wait for. Its older releases call the option otherwise.
_NAMELESS = (
    {"driver_info": None}
    if "driver_info" in signature(redis.connection.AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)

_TLS_ON_ASYNCIO = signature(redis.asyncio.SSLConnection.__init__).parameters


class Target(Protocol):
    """What connections are made to."""

    moves: ClassVar[bool]
    """Worth another try when it fails, as it may be found elsewhere by then."""

    @property
    def address(self) -> str:
        """For people: no user, no password."""
        ...

    @property
    def works_on_asyncio(self) -> bool: ...

    def connect(self, within: float, op_timeout: float) -> redis.Connection:
        """A sync connection, ready in about ``within`` seconds; later each read may take ``op_timeout``."""
        ...

    def async_connection(self, timeout: float) -> AsyncConnection:
        """An asyncio connection, not connected yet."""
        ...


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis server."""

    kind: str
    """``tcp``, ``tls`` or ``unix``."""
    settings: dict[str, Any] = field(repr=False)
    moves: ClassVar[bool] = False

    @classmethod
    def from_url(cls, url: str) -> Server:
        """As redis-py reads it."""
        try:
            pool = redis.ConnectionPool.from_url(url)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"not a usable Redis URL ({_plain(error)}): redis://[user:password@]host:6379/0"
            ) from None
        return cls.from_pool(pool)

    @classmethod
    def from_client(cls, client: Any) -> Server:
        """As a ready ``redis.Redis`` or ``redis.asyncio.Redis`` is set up."""
        pool = getattr(client, "connection_pool", None)
        if pool is None or not isinstance(client, (redis.Redis, redis.asyncio.Redis)):
            raise Unsupported(
                f"a {type(client).__name__} is not supported: give a Redis or RedisCluster of redis or redis.asyncio"
            )
        return cls.from_pool(pool)

    @classmethod
    def from_pool(cls, pool: Any) -> Server:
        """As a connection pool of redis-py is set up."""
        if not pool.connection_class.__module__.startswith("redis."):
            raise _own_way()
        is_tls = issubclass(pool.connection_class, (redis.SSLConnection, redis.asyncio.SSLConnection))
        return cls.from_options(pool.connection_kwargs, is_tls)

    @classmethod
    def from_options(cls, given: Mapping[str, Any], is_tls: bool) -> Server:
        """As the options of a connection of redis-py say."""
        if given.get("redis_connect_func"):
            raise _own_way()
        settings = {name: given[name] for name in _TAKEN if given.get(name) is not None}
        if "path" in settings:
            return cls("unix", settings)
        if not is_tls:
            return cls("tcp", settings)
        tls = {name: value for name, value in given.items() if name.startswith("ssl_") and value is not None}
        # redis-py 5 did not look whether the certificate is for this host; later ones do, and so do we.
        tls.setdefault("ssl_check_hostname", tls.get("ssl_cert_reqs", "required") not in ("none", ssl.CERT_NONE))
        return cls("tls", {**settings, **tls})

    def at(self, host: str, port: int) -> Server:
        """Another server, to be reached in the same way."""
        return Server(self.kind, {**self.settings, "host": host, "port": port})

    @property
    def address(self) -> str:
        """For people: no user, no password."""
        db = self.settings.get("db") or 0
        if self.kind == "unix":
            return f"unix://{self.settings['path']}?db={db}"
        scheme = "rediss" if self.kind == "tls" else "redis"
        return f"{scheme}://{shown((self.settings.get('host', 'localhost'), self.settings.get('port', 6379)))}/{db}"

    def connect(self, within: float, op_timeout: float) -> redis.Connection:
        """A sync connection, ready in about ``within`` seconds; later each read may take ``op_timeout``."""
        kinds = {
            "tcp": redis.Connection,
            "tls": redis.SSLConnection,
            "unix": redis.UnixDomainSocketConnection,
        }
        retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)

        def introduce(connection: Any) -> None:
            connection.socket_timeout = op_timeout  # for its parser to note; the socket keeps ``within`` for now
            connection.on_connect()

        within = max(0.01, min(within, op_timeout))
        connection: Any = kinds[self.kind](
            socket_timeout=within, redis_connect_func=introduce, **self._options(within, retry)
        )
        try:
            connection.connect()
            connection._sock.settimeout(op_timeout)
        except BaseException:
            connection.disconnect()
            raise
        return connection  # type: ignore[no-any-return]

    @property
    def works_on_asyncio(self) -> bool:
        """redis-py can do there all that is asked for. It has fewer options of TLS, such as no OCSP."""
        return all(
            name in _TLS_ON_ASYNCIO for name, value in self.settings.items() if name.startswith("ssl_") and value
        )

    def async_connection(self, timeout: float) -> AsyncConnection:
        """An asyncio connection, not connected yet."""
        kind, options = self.async_recipe(timeout)
        return kind(**options)

    def async_recipe(self, timeout: float) -> tuple[type[AsyncConnection], dict[str, Any]]:
        """What to make one of."""
        module = redis.asyncio
        kinds = {
            "tcp": module.Connection,
            "tls": module.SSLConnection,
            "unix": module.UnixDomainSocketConnection,
        }
        retry = module.retry.Retry(redis.backoff.NoBackoff(), 0)
        # No timeout of the socket's own: the deadline around each exchange does better.
        options = {**self._options(timeout, retry), "socket_timeout": None}
        for name in [name for name in options if name.startswith("ssl_") and name not in _TLS_ON_ASYNCIO]:
            del options[name]
        return kinds[self.kind], options

    def _options(self, timeout: float, retry: object) -> dict[str, Any]:
        return {
            **self.settings,
            "protocol": 2,
            "decode_responses": False,
            "socket_connect_timeout": timeout,
            "retry": retry,
            "health_check_interval": 0,
            **_NAMELESS,
        }


def _own_way() -> Unsupported:
    return Unsupported(
        "a client that connects in a way of its own (redis_connect_func, a connection class) is not supported:"
        " give a URL, or a client with a credential_provider"
    )


def shown(address: tuple[str, int]) -> str:
    """Host and port as in a URL."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _plain(error: Exception) -> str:
    """What it says, but for what could repeat a part of the URL."""
    if "ort" in str(error):  # "Port could not be cast to integer value as '…'": what stands there may be a password's
        return f"its port is no number; {ESCAPES}"
    return str(error) if str(error).startswith("Invalid value for") else type(error).__name__
