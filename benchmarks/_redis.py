"""A Redis server for the length of a benchmark, and the least that can be said to it."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.utils import HIREDIS_AVAILABLE

from tests.servers import RedisServer

from ._machine import SERVER, description, pin

__all__ = ("RawLock", "RawSocket", "command", "conditions", "server", "url_of")

CHECKED_DELETE = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@contextmanager
def server(processor: int | None) -> Iterator[RedisServer]:
    """A server of our own that writes nothing to disk, bound to ``processor``."""
    with RedisServer('save ""') as store:
        pin(store.pid, processor)
        yield store


def url_of(store: RedisServer) -> str:
    """Where it is."""
    return f"redis://127.0.0.1:{store.port}/0"


def conditions(store: RedisServer, *, pinned: bool = False) -> dict[str, str]:
    """What readers must know of this run."""
    return {
        **description(),
        "redis": str(redis.Redis(port=store.port).info("server")["redis_version"]),
        "redis-py": redis.__version__,
        "hiredis": "yes" if HIREDIS_AVAILABLE else "no",
        "client and server on processors of their own": "yes" if pinned and SERVER is not None else "no",
    }


def command(*words: str | bytes) -> bytes:
    """A request as bytes."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


class RawSocket:
    """A blocking socket, and nothing between it and the caller."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, frame: bytes) -> bytes:
        """The reply, which is short enough to come in one piece."""
        self.socket.sendall(frame)
        return self.socket.recv(65536)


class RawLock(RawSocket):
    """The least that any lock on Redis does: two prepared requests, and a look at the replies."""

    def __init__(self, port: int, key: str) -> None:
        super().__init__(port)
        self.ask(command("SCRIPT", "LOAD", CHECKED_DELETE))
        value, digest = "v" * 20, hashlib.sha1(CHECKED_DELETE, usedforsecurity=False).hexdigest()
        self.take = command("SET", key, value, "NX", "PX", "30000")
        self.give = command("EVALSHA", digest, "1", key, value)

    def run(self, count: int) -> None:
        """Takes and gives back the lock so many times."""
        ask, take, give = self.ask, self.take, self.give
        for _ in range(count):
            replies = ask(take), ask(give)
            assert replies == (b"+OK\r\n", b":1\r\n"), replies
