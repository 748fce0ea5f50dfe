"""Redis, asked by raw sockets."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import redis

from ..backends.redis._connect import Server, Target
from ..backends.redis._sentinel import SentinelServer
from ..backends.redis._url import Place
from ..backends.redis.redlock._url import servers_of
from ._measure import Unknown
from ._servers import Usage

__all__ = ("CHECKED_DELETE", "RawLock", "RawSocket", "RedisServer", "command", "sha1")

CHECKED_DELETE = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
TIMEOUT = 5.0
ASKED_BY_CLIENTS = (
    "auth", "client", "eval", "evalsha", "hello", "ping", "psubscribe", "script", "select", "ssubscribe", "subscribe",
    "sunsubscribe", "unsubscribe", "wait",
)  # fmt: skip
"""What the locks ask for, but for what their scripts do, which Redis counts as well."""


def command(*words: str | bytes) -> bytes:
    """A request as bytes."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def sha1(script: bytes) -> str:
    """What EVALSHA calls it."""
    return hashlib.sha1(script, usedforsecurity=False).hexdigest()


class RawSocket:
    """A blocking socket, and nothing between it and the caller."""

    def __init__(self, link: socket.socket) -> None:
        self.socket = link

    def ask(self, frame: bytes) -> bytes:
        """The reply, which is short enough to come in one piece."""
        self.socket.sendall(frame)
        return self.socket.recv(65536)


class RawLock:
    """The least that any lock on Redis does: two prepared requests, and a look at the replies; of several servers, all
    at once."""

    def __init__(self, links: Sequence[RawSocket], key: str) -> None:
        self.links = links
        for link in links:
            link.ask(command("SCRIPT", "LOAD", CHECKED_DELETE))
        value = "v" * 20
        self.take = command("SET", key, value, "NX", "PX", "30000")
        self.give = command("EVALSHA", sha1(CHECKED_DELETE), "1", key, value)

    def run(self, count: int) -> None:
        """Takes and gives back the lock so many times."""
        if len(self.links) > 1:
            self._run_on_all(count)
            return
        ask, take, give = self.links[0].ask, self.take, self.give
        for _ in range(count):
            replies = ask(take), ask(give)
            assert replies == (b"+OK\r\n", b":1\r\n"), replies

    def _run_on_all(self, count: int) -> None:
        sockets = [link.socket for link in self.links]
        for _ in range(count):
            for frame, wanted in (self.take, b"+OK\r\n"), (self.give, b":1\r\n"):
                for each in sockets:
                    each.sendall(frame)
                replies = [each.recv(65536) for each in sockets]
                assert all(reply == wanted for reply in replies), replies


class RedisServer:
    """One server, the primary that Sentinel names, the nodes of a Cluster, or those of a Redlock."""

    floor = "SET NX PX, EVALSHA of a checked delete"

    def __init__(self, url: str, key: str, leftovers: str) -> None:
        """``leftovers``: a pattern of what is to be deleted at the end."""
        targets, holders = _targets(url, key)
        self._key, self._leftovers = key, leftovers
        self._all: list[Any] = [target.connect(TIMEOUT, TIMEOUT) for target in targets]
        self._holders: list[Any] = [target.connect(TIMEOUT, TIMEOUT) for target in holders]
        self._lock = RawLock([RawSocket(connection._sock) for connection in self._holders], key)
        self.run = self._lock.run

    def requests(self) -> float | Unknown:
        """Commands of clients, of all servers together."""
        told = self._told("commandstats")
        if isinstance(told, Unknown):
            return told
        calls = [
            (name.removeprefix("cmdstat_").partition("|")[0], text) for each in told for name, text in each.items()
        ]
        return sum(
            float(text.removeprefix("calls=").partition(",")[0]) for name, text in calls if name in ASKED_BY_CLIENTS
        )

    def usage(self) -> Usage:
        """Of all servers together."""
        told = self._told("cpu", "memory", "clients")
        if isinstance(told, Unknown):
            return Usage(told, told, told)
        return Usage(
            sum(float(each["used_cpu_sys"]) + float(each["used_cpu_user"]) for each in told),
            sum(float(each["used_memory"]) for each in told),
            sum(float(each["connected_clients"]) for each in told) - len(self._all) - len(self._holders),
        )

    def _told(self, *sections: str) -> list[dict[str, str]] | Unknown:
        try:
            return [
                {name: value for section in sections for name, value in _info(connection, section).items()}
                for connection in self._all
            ]
        except redis.ResponseError as error:
            return Unknown(f"INFO: {error}")

    def close(self) -> None:
        """Deletes the key, and what is remembered for a while of claims that were given up: nobody claims any more."""
        for connection in self._all:
            with suppress(redis.RedisError, OSError):  # it expires by itself
                for name in [*_scanned(connection, self._leftovers), *_scanned(connection, self._key)]:
                    _ask(connection, "DEL", name)
        for connection in (*self._all, *self._holders):
            connection.disconnect()


def _targets(url: str, key: str) -> tuple[Sequence[Target], Sequence[Target]]:
    """All servers, and those that ``key`` is on."""
    place = Place.parse(url)
    place.take("wait_replicas")
    if place.scheme.startswith("redlock"):
        nodes = servers_of(url)[0]
        return nodes, nodes
    if place.scheme.endswith("+sentinel"):
        primary = SentinelServer.from_place(place)
        return [primary], [primary]
    if place.scheme.endswith("+cluster"):
        return _nodes(place.servers("0", 6379)[0], key)
    server = Server.from_url(url)
    return [server], [server]


def _nodes(like: Server, key: str) -> tuple[Sequence[Target], Sequence[Target]]:
    connection: Any = like.connect(TIMEOUT, TIMEOUT)
    slot = int(_ask(connection, "CLUSTER", "KEYSLOT", key))
    ranges = _ask(connection, "CLUSTER", "SLOTS")
    connection.disconnect()
    primaries = {(low, high): like.at(primary[0].decode(), primary[1]) for low, high, primary, *_ in ranges}
    holders = [server for (low, high), server in primaries.items() if low <= slot <= high]
    return list({server.address: server for server in primaries.values()}.values()), holders


def _ask(connection: Any, *words: str | bytes) -> Any:
    connection.send_command(*words)
    return connection.read_response()


def _scanned(connection: Any, pattern: str) -> Iterator[bytes]:
    cursor = b"0"
    while True:
        cursor, names = _ask(connection, "SCAN", cursor, "MATCH", pattern, "COUNT", "1000")
        yield from names
        if cursor == b"0":
            return


def _info(connection: Any, section: str) -> Mapping[str, str]:
    text = _ask(connection, "INFO", section)
    assert isinstance(text, bytes)
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
