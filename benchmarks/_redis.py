"""A Redis server for the length of a benchmark, and the least that can be said to it."""

from __future__ import annotations

import hashlib
import socket
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

import redis
from redis.utils import HIREDIS_AVAILABLE

from tests.servers import RedisServer

from ._machine import SERVER, description, pin, versions

__all__ = ("DirectGrant", "RawLock", "RawSocket", "command", "conditions", "heard", "port_of", "server", "url_of")

CHECKED_DELETE = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
TAKE_OR_QUEUE = b"""
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', 30000) then return 1 end
redis.call('RPUSH', KEYS[2], ARGV[1])
return 0
"""
GIVE_TO_THE_NEXT = b"""
local next = redis.call('LPOP', KEYS[2])
if not next then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], next, 'PX', 30000)
return redis.call('PUBLISH', next, 'yours')
"""
PEERS = ("redis", "python-redis-lock", "pyredlock", "tooz")


@contextmanager
def server(processor: int | None) -> Iterator[RedisServer]:
    """A server of our own that writes nothing to disk, bound to ``processor``."""
    with RedisServer('save ""') as store:
        pin(store.pid, processor)
        yield store


def url_of(store: RedisServer) -> str:
    """Where it is."""
    return f"redis://127.0.0.1:{store.port}/0"


def port_of(url: str) -> int:
    """The other way."""
    return int(url.rpartition(":")[2].partition("/")[0])


def conditions(store: RedisServer, *, pinned: bool = False) -> dict[str, str]:
    """What readers must know of this run."""
    with redis.Redis(port=store.port) as client:
        version = str(client.info("server")["redis_version"])
    return {
        **description(),
        "redis": version,
        **versions(PEERS),
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

    def close(self) -> None:
        """Nobody listens any more."""
        self.socket.close()

    def ask(self, frame: bytes) -> bytes:
        """The reply, which is short enough to come in one piece."""
        self.socket.sendall(frame)
        return self.socket.recv(65536)


def heard(port: int, monitor: RawSocket) -> Counter[str]:
    """Requests that ``monitor`` was told of, by command; not what scripts then did."""
    with closing(RawSocket(port)) as other:
        other.ask(command("PING", "the end"))
    seen = b""
    while b"the end" not in seen:
        seen += monitor.socket.recv(1 << 20)
    lines = [line for line in seen.splitlines() if b" lua]" not in line and b"the end" not in line]
    return Counter(line.split(b'"')[1].decode().upper() for line in lines if b'] "' in line)


def sha1(script: bytes) -> str:
    """What EVALSHA calls it."""
    return hashlib.sha1(script, usedforsecurity=False).hexdigest()


class RawLock(RawSocket):
    """The least that any lock on Redis does: two prepared requests, and a look at the replies."""

    def __init__(self, port: int, key: str) -> None:
        super().__init__(port)
        self.ask(command("SCRIPT", "LOAD", CHECKED_DELETE))
        value = "v" * 20
        self.take = command("SET", key, value, "NX", "PX", "30000")
        self.give = command("EVALSHA", sha1(CHECKED_DELETE), "1", key, value)

    def run(self, count: int) -> None:
        """Takes and gives back the lock so many times."""
        ask, take, give = self.ask, self.take, self.give
        for _ in range(count):
            replies = ask(take), ask(give)
            assert replies == (b"+OK\r\n", b":1\r\n"), replies


class DirectGrant(RawSocket):
    """The least that a queue which hands over costs: two requests, and a message for the one that has to wait."""

    def __init__(self, port: int, key: str) -> None:
        super().__init__(port)
        for script in (TAKE_OR_QUEUE, GIVE_TO_THE_NEXT):
            self.ask(command("SCRIPT", "LOAD", script))
        me = uuid.uuid4().hex
        self.inbox = RawSocket(port)
        self.inbox.ask(command("SUBSCRIBE", me))
        self.take = command("EVALSHA", sha1(TAKE_OR_QUEUE), "2", key, f"{key}:queue", me)
        self.give = command("EVALSHA", sha1(GIVE_TO_THE_NEXT), "2", key, f"{key}:queue")

    def __enter__(self) -> None:
        if self.ask(self.take) != b":1\r\n":
            self.inbox.socket.recv(65536)

    def __exit__(self, *_: object) -> None:
        self.ask(self.give)
