"""Where the server is and how to reach it, for connections of our own in both colours; and what its errors mean."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.backoff
import redis.connection
import redis.retry
from redis import exceptions
from redis.asyncio.connection import AbstractConnection as AsyncConnection

from ..base import BackendError, BackendUnavailable, ConfigurationError, Unsupported

__all__ = ("AsyncConnection", "Server", "mapped")

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


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis server."""

    kind: str
    """``tcp``, ``tls`` or ``unix``."""
    settings: dict[str, Any] = field(repr=False)

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
            raise Unsupported(f"a {type(client).__name__} is not supported: give a redis.Redis or redis.asyncio.Redis")
        if "Sentinel" in type(pool).__name__:
            raise Unsupported("a client that finds its server through Sentinel is not supported yet")
        return cls.from_pool(pool)

    @classmethod
    def from_pool(cls, pool: Any) -> Server:
        """As a connection pool of redis-py is set up."""
        given = pool.connection_kwargs
        if given.get("redis_connect_func") or not pool.connection_class.__module__.startswith("redis."):
            raise Unsupported(
                "a client that connects in a way of its own (redis_connect_func, a connection class) is not supported:"
                " give a URL, or a client with a credential_provider"
            )
        settings = {name: given[name] for name in _TAKEN if given.get(name) is not None}
        if "path" in settings:
            return cls("unix", settings)
        tls = {name: value for name, value in given.items() if name.startswith("ssl_") and value is not None}
        # redis-py 5 did not look whether the certificate is for this host; later ones do, and so do we.
        tls.setdefault("ssl_check_hostname", tls.get("ssl_cert_reqs", "required") not in ("none", ssl.CERT_NONE))
        is_tls = issubclass(pool.connection_class, (redis.SSLConnection, redis.asyncio.SSLConnection))
        return cls("tls" if is_tls else "tcp", {**settings, **tls} if is_tls else settings)

    @property
    def address(self) -> str:
        """For people: no user, no password."""
        db = self.settings.get("db") or 0
        if self.kind == "unix":
            return f"unix://{self.settings['path']}?db={db}"
        scheme = "rediss" if self.kind == "tls" else "redis"
        return f"{scheme}://{self.settings.get('host', 'localhost')}:{self.settings.get('port', 6379)}/{db}"

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
        module = redis.asyncio
        kinds = {
            "tcp": module.Connection,
            "tls": module.SSLConnection,
            "unix": module.UnixDomainSocketConnection,
        }
        retry = module.retry.Retry(redis.backoff.NoBackoff(), 0)
        # No timeout of the socket's own: the deadline around each exchange does better.
        options = self._options(timeout, retry)
        for name in [name for name in options if name.startswith("ssl_") and name not in _TLS_ON_ASYNCIO]:
            del options[name]
        connection: AsyncConnection = kinds[self.kind](socket_timeout=None, **options)
        return connection

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


def mapped(error: Exception, address: str, *, key: str | None = None, sent: bool = True) -> BackendError:
    """A driver's or a socket's exception as one of ours, with what to do about it."""
    text = str(error)

    def unavailable(what: str, sent: bool = sent) -> BackendUnavailable:
        return BackendUnavailable(f"{what} [{address}]", key=key, backend=address, sent=sent)

    def refused(what: str) -> BackendError:
        return BackendError(f"{what} [{address}]", key=key, backend=address)

    if isinstance(error, (exceptions.AuthenticationError, exceptions.AuthenticationWrongNumberOfArgsError)) or (
        text.startswith(("NOAUTH", "WRONGPASS")) or "unauthenticated" in text
    ):
        return refused(f"the server refused the user or the password; check them: {text}")
    if isinstance(error, exceptions.NoPermissionError) or "user executing the script" in text:
        return refused(
            "the user may not do this; its ACL needs +@scripting +@read +@write +@pubsub +@connection +time"
            f" on ~distlock:* &distlock:*: {text}"
        )
    if isinstance(error, exceptions.BusyLoadingError):
        return unavailable("the server is still loading its data; try again", sent=False)
    if isinstance(error, exceptions.ReadOnlyError) or "READONLY" in text:
        return unavailable("the server is a read-only replica; connect to the primary", sent=False)
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM command" in text:
        return refused("the server is out of memory; raise maxmemory, and use maxmemory-policy noeviction for locks")
    if text.startswith(("BUSY ", "MASTERDOWN")):
        return unavailable(f"the server is busy, or waits for its primary; try again: {text}")
    if "WRONGTYPE" in text:
        return refused(f"a key of this lock holds data of another kind; delete it or use another namespace: {text}")
    if isinstance(error, (exceptions.TimeoutError, TimeoutError)):
        return unavailable("the server did not answer in time")
    if isinstance(error, (exceptions.ConnectionError, OSError)):
        if isinstance(error.__context__, ssl.SSLError):  # older releases of redis-py lose its text
            text = str(error.__context__)
        return unavailable(f"the server cannot be reached; is it running, and is the address right? ({text})")
    return refused(f"the server answered with an error: {text}")


def _plain(error: Exception) -> str:
    """What it says, but for what could repeat a part of the URL."""
    if "ort" in str(error):  # "Port could not be cast to integer value as '…'": what stands there may be a password's
        return "its port is no number; in a password, write / ? # @ and : as %2F %3F %23 %40 and %3A"
    return str(error) if str(error).startswith("Invalid value for") else type(error).__name__
