"""The Lua scripts themselves, on a real redis-server whose clock stands still but where the simulation sets it."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Collection
from typing import Any

from distlock.backends.redis._replies import Replies

from ..clocks import WallClock
from ..servers import RedisServer
from .network import Connection, Words, packed
from .store import Seen, Store

__all__ = ("Real",)


class _Session:
    """A connection to the server, which answers at once."""

    def __init__(self, server: RedisServer) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(server.socket_path)
        self._replies = Replies()
        self._found: deque[Any] = deque()

    def send(self, *requests: Words) -> None:
        self._socket.sendall(b"".join([packed(words) for words in requests]))

    def reply(self) -> Any:
        while not self._found:
            self._found.extend(self._replies.feed(self._socket.recv(65536)))
        return self._found.popleft()

    def ask(self, *words: bytes) -> Any:
        self.send([*words])
        return self.reply()

    def close(self) -> None:
        self._socket.close()


class Real(Store):
    """Each connection of the simulation has one to the server."""

    def __init__(
        self,
        server: RedisServer,
        clock: WallClock,
        rate: float = 1.0,
        ahead: int = 0,
        wrong: Collection[str] = (),
    ) -> None:
        super().__init__(rate, ahead)
        assert not wrong
        self._server = server
        self._clock = clock
        self._control = _Session(server)
        self._sessions: dict[Connection, _Session] = {}
        self._control.ask(b"FLUSHALL")

    def close(self) -> None:
        for session in (self._control, *self._sessions.values()):
            session.close()

    def _set(self) -> None:
        self._clock._still.value = self.us * 1000

    def set_back(self, us: int) -> None:
        """Its clock, by an administrator. What has ended has ended."""
        self._set()
        for name in self._names():
            self._control.ask(b"EXISTS", name)
        self.ahead -= us
        self._set()

    def _names(self) -> list[bytes]:
        return [b"distlock:{default:%b}%b" % (key, part) for key in (b"k", b"l") for part in (b"", b":q", b":w")]

    def _session(self, connection: Connection | None) -> _Session:
        if connection is None:
            return self._control
        if connection not in self._sessions:
            self._sessions[connection] = _Session(self._server)
        return self._sessions[connection]

    def run(self, words: Words, connection: Connection | None) -> list[bytes]:
        self._set()
        session = self._session(connection)
        reply = session.ask(*words)
        if connection is not None and words[0] == b"SUBSCRIBE":
            connection.channels.add(words[1])
        for other, each in self._sessions.items():
            if other.channels and each is not session:
                self._pass_on(other, each)
        return [_packed(reply)]

    def _pass_on(self, connection: Connection, session: _Session) -> None:
        """What it was told."""
        session.send([b"PING"])
        while (value := session.reply())[0] != b"pong":
            connection.hear(packed(value))

    def leaves(self, connection: Connection) -> None:
        session = self._sessions.pop(connection, None)
        if session is not None:
            session.ask(b"UNSUBSCRIBE")  # so that the server is rid of it when that returns
            session.close()

    def see(self, key: str) -> Seen:
        self._set()
        name = b"distlock:{default:%b}" % key.encode()
        requests = [[b"GET", name], [b"PEXPIRETIME", name], [b"ZRANGE", name + b":q", b"0", b"-1"]]
        self._control.send(*requests, [b"HGETALL", name + b":w"])
        value, ends, queue, records = (self._control.reply() for _ in range(4))
        alive = {one: record.split(b" ") for one, record in zip(records[::2], records[1::2], strict=True)}
        waiting = tuple(one.decode() for one in queue if alive[one][4] != b"-" and int(alive[one][1]) * 1000 > self.us)
        if value is None:
            return Seen(queue=waiting)
        _, claim, token, _ = value.split(b" ", 3)
        return Seen(claim.decode(), int(token), self.moment(ends), waiting)

    def left(self) -> list[str]:
        self._set()
        return [name.decode() for name in self._control.ask(b"KEYS", b"*") if not name.endswith(b":clock")]


def _packed(reply: Any) -> bytes:
    if isinstance(reply, Exception):
        code = "NOSCRIPT " if type(reply).__name__ == "NoScriptError" else ""
        return f"-{code}{reply}\r\n".encode()
    return packed(reply)
