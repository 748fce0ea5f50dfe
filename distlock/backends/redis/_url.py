"""What a URL says: one server, or several of them behind one name."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import redis
import redis.connection

from ..base import ConfigurationError
from ._connect import ESCAPES, Server

__all__ = ("Place", "check_db")

OPTIONS = {
    "": ("wait_replicas",),
    "unix": ("wait_replicas",),
    "+cluster": ("wait_replicas",),
    "+sentinel": ("wait_replicas", "sentinel_username", "sentinel_password"),
}
"""By scheme, without its ``redis``; what redis-py does not have."""
# Known to redis-py. Of these we take some (see Server) and leave the rest, as a lock chooses for itself.
_KNOWN = {
    "db",
    "max_connections",
    "timeout",
    *(
        name
        for kind in (redis.connection.AbstractConnection, redis.Connection, redis.SSLConnection)
        for name in signature(kind.__init__).parameters
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A URL taken apart. An option that nobody knows is refused: a lock never silently does less than asked for."""

    scheme: str
    login: str
    hosts: tuple[str, ...]
    path: tuple[str, ...]
    options: dict[str, str]

    @classmethod
    def parse(cls, url: str) -> Place:
        """``scheme://[user:password@]host[:port],host…/path?options``."""
        try:
            parts = urlsplit(url)
        except ValueError:  # whose text may repeat a part of the URL
            raise ConfigurationError("not a usable Redis URL: redis://[user:password@]host:6379/0") from None
        if "@" in parts.path + parts.query or parts.fragment:  # what stands there may be the rest of a password
            raise ConfigurationError(f"not a usable Redis URL (an @ or a # where none can be): {ESCAPES}; so elsewhere")
        login, at, hosts = parts.netloc.rpartition("@")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        ours = OPTIONS.get(parts.scheme.removeprefix("rediss").removeprefix("redis"), ())
        known = {*ours, *_KNOWN} - ({"db"} if "," in hosts or "+" in parts.scheme else set())
        unknown = sorted(options.keys() - known)
        if unknown:
            there = ", ".join([*ours, "those of redis-py"])
            which = f"option {unknown[0]!r}" if unknown[0].isidentifier() else "such option"
            raise ConfigurationError(f"{parts.scheme}:// has no {which}; there are {there}")
        path = tuple(unquote(part) for part in parts.path.split("/") if part)
        return cls(parts.scheme, login + at, tuple(hosts.split(",")), path, options)

    def servers(self, db: str, default_port: int, *, login: bool = True) -> list[Server]:
        """A server for each host, all with the same options and, unless ``login`` is false, credentials."""
        if not all(self.hosts):
            raise _no_host()
        check_db(db)
        scheme = "rediss" if self.scheme.startswith("rediss") or self.scheme.endswith("+tls") else "redis"
        left_out = () if login else ("username", "password")
        options = {name: value for name, value in self.options.items() if name not in left_out}
        query = f"?{urlencode(options)}" if options else ""
        who = self.login if login else ""
        servers = [
            Server.from_url(f"{scheme}://{who}{_with_port(host, default_port)}/{quote(db, safe='')}{query}")
            for host in self.hosts
        ]
        if not all(one.settings.get("host") for one in servers):
            raise _no_host()
        return servers

    def take(self, name: str) -> str | None:
        """An option of ours, which redis-py is not to see."""
        return self.options.pop(name, None)

    def take_number(self, name: str) -> int:
        """One that counts something; 0 if it is not given."""
        text = self.take(name)
        if text is not None and not text.isdecimal():
            raise ConfigurationError(f"{name} must be a whole number, not {text!r}")
        return int(text or 0)


def check_db(db: str) -> None:
    """redis-py would take what is no number for 0."""
    if not (db.isascii() and db.isdigit()):
        raise ConfigurationError("not a usable Redis URL: a database is a number, as in redis://localhost:6379/0")


def _no_host() -> ConfigurationError:
    return ConfigurationError("a host is missing: write host[:port],host[:port],…")


def _with_port(host: str, port: int) -> str:
    _, colon, given = host.rpartition("]")[2].rpartition(":")
    if not colon:
        return f"{host}:{port}"
    return host if given else f"{host}{port}"
