"""Connections that keep their order and may be slow, cut, broken, or left half open: sockets of a simulated network.

As TCP does, a connection loses nothing by itself: what is sent into a partition arrives when that is over, even if who
sent it has closed the connection since. That is how requests come late. What a connection that breaks had on its way
arrives or does not.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis import exceptions

from distlock.backends.redis._replies import Replies

from .fibers import SIM, Fiber, Host, Killed

__all__ = (
    "Connection",
    "Line",
    "Selector",
    "Server",
    "Socket",
    "Sockets",
    "Target",
    "Words",
    "forget_sockets",
    "packed",
    "readable",
)

Words = list[bytes]
DELAY = 0.0005
"""Seconds that a message takes."""

_numbers = itertools.count(3)
_files: dict[int, Socket] = {}


def forget_sockets() -> None:
    """Another history begins."""
    global _numbers
    _numbers = itertools.count(3)
    _files.clear()


class Socket:
    """What distlock uses of one."""

    def __init__(self, peer: Socket | None = None) -> None:
        self.number = next(_numbers)
        _files[self.number] = self
        self.data: deque[bytes] = deque()
        self.ended = False
        self.error: OSError | None = None
        self.waiting: list[Fiber] = []
        self.timeout: float | None = None
        self.peer = peer

    @property
    def readable(self) -> bool:
        return bool(self.data) or self.ended or self.error is not None

    def take_in(self, data: bytes) -> None:
        """It has arrived."""
        self.data.append(data)
        SIM.rouse(self.waiting)

    def end(self, error: OSError | None = None) -> None:
        """Nothing more will arrive."""
        self.ended, self.error = True, error
        SIM.rouse(self.waiting)

    def recv(self, size: int) -> bytes:
        until = None if self.timeout is None else SIM.now() + self.timeout
        while not self.readable:
            if self.timeout == 0:
                raise BlockingIOError
            if until is not None and SIM.now() >= until:
                raise TimeoutError
            SIM.park(None if until is None else until - SIM.now(), self.waiting)
        if self.data:
            found = b"".join(self.data)
            self.data.clear()
            return found
        if self.error is not None:
            raise self.error
        return b""

    def send(self, data: bytes) -> int:
        if self.peer is None:
            raise BrokenPipeError
        self.peer.take_in(data)
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.send(data)

    def settimeout(self, timeout: float | None) -> None:
        self.timeout = timeout

    def setblocking(self, blocking: bool) -> None:
        self.timeout = None if blocking else 0

    def fileno(self) -> int:
        return self.number

    def close(self) -> None:
        _files.pop(self.number, None)


class Sockets:
    """What stands for the module `socket`."""

    socket = Socket

    @staticmethod
    def socketpair() -> tuple[Socket, Socket]:
        one = Socket()
        other = Socket(one)
        one.peer = other
        return one, other


def readable(files: Sequence[int], timeout: float | None) -> Sequence[int]:
    """`distlock.backends.redis._ear._readable`."""
    sockets = [_files[file] for file in files]
    if not any(each.readable for each in sockets) and timeout != 0:
        SIM.park(timeout, *(each.waiting for each in sockets))
    return [each.number for each in sockets if each.readable]


class _Key:
    def __init__(self, data: Any) -> None:
        self.data = data


class Selector:
    """What stands for those of `selectors`."""

    def __init__(self) -> None:
        self._data: dict[int, Any] = {}

    def __enter__(self) -> Selector:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def register(self, file: Any, events: int, data: Any) -> None:
        self._data[file.fileno()] = data

    def select(self, timeout: float | None = None) -> list[tuple[_Key, int]]:
        return [(_Key(self._data[file]), 1) for file in readable([*self._data], timeout)]


class Pipe:
    """One direction of a connection."""

    def __init__(self, line: Line, way: str, deliver: Callable[[bytes | None], object]) -> None:
        self._line = line
        self._way = way
        self._deliver = deliver
        self._items: deque[bytes | None] = deque()
        self._last = 0.0
        self._stuck = 0

    def put(self, item: bytes | None, more: float = 0.0) -> None:
        """None is the end. ``more``: seconds that it takes longer."""
        self._items.append(item)
        self._last = max(self._last, SIM.t + DELAY + more)
        SIM.at(self._last, self._arrive)

    def _arrive(self) -> None:
        if self._way in self._line.cut:
            self._stuck += 1
        elif self._items:
            self._deliver(self._items.popleft())

    def heal(self) -> None:
        """What was held up arrives."""
        stuck, self._stuck = self._stuck, 0
        for _ in range(stuck):
            self._last = max(self._last, SIM.t + DELAY)
            SIM.at(self._last, self._arrive)

    def drop(self) -> None:
        """What is on its way is gone."""
        self._items.clear()

    @property
    def busy(self) -> bool:
        return bool(self._items)


class Connection(Socket):
    """A client's end of one; and what redis-py calls a connection."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line = line
        self.up = Pipe(line, "up", self._reaches_server)
        self.down = Pipe(line, "down", self._reaches_client)
        self.channels: set[bytes] = set()
        """Subscribed to, as the server knows."""
        self.session: Any = None
        """What the store keeps of it."""
        self.mute = False
        """What the server says is lost."""
        self._sock = self
        self._requests = Replies()

    def send(self, data: bytes) -> int:
        if SIM.here is not None and SIM.here.dead:
            raise Killed
        if self.error is not None or self.number not in _files:
            raise self.error or BrokenPipeError()
        fate, late = "", 0.0
        if self.line.fate:
            fate, late = self.line.fate.popleft()
            self.line.hurt_at = SIM.t + late
        if fate != "lost":
            self.up.put(data, late)
        if fate in ("lost", "late"):
            SIM.at(SIM.t + DELAY, self.reset)
        elif fate == "unanswered":
            self.mute = True
        return len(data)

    def reset(self) -> None:
        """It breaks: the client is told now, the server when it has read what was sent before."""
        if self.error is None:
            self.end(ConnectionResetError("reset by the network"))
            self.up.put(None)

    def disconnect(self) -> None:
        """By the client, or by its death."""
        if self.number in _files:
            self.close()
            self.up.put(None)

    def _reaches_server(self, data: bytes | None) -> None:
        self.line.server.read(self, data)

    def hear(self, data: bytes | None) -> None:
        """The server says it."""
        if self.mute:
            self.reset()
        elif self.error is None:
            self.down.put(data, self.line.slow)

    def _reaches_client(self, data: bytes | None) -> None:
        if self.error is None and self.number in _files:
            if data is None:
                self.end()
            else:
                self.take_in(data)

    def requests(self, data: bytes) -> list[Words]:
        return self._requests.feed(data)


class Line:
    """The way from one process to one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.cut: set[str] = set()
        """``up`` and ``down``: what goes there is held up."""
        self.fate: deque[tuple[str, float]] = deque()
        """What becomes of the next requests: ``lost``, ``late`` or ``unanswered``, and the connection with it; or
        slow; by so many seconds."""
        self.slow = 0.0
        """Seconds that replies take longer."""
        self.hurt_at = -1.0
        self.connections: list[Connection] = []
        self.healed: list[Fiber] = []

    def heal(self) -> None:
        """All is well from now on."""
        self.cut.clear()
        self.fate.clear()
        self.slow = 0.0
        SIM.rouse(self.healed)
        for connection in self.connections:
            connection.up.heal()
            connection.down.heal()

    def forget_ended(self) -> None:
        self.connections = [each for each in self.connections if each.number in _files or each.up.busy]


class Server:
    """One that is spoken to."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.connections: set[Connection] = set()
        self.frozen = False
        self._unread: deque[tuple[Connection, bytes | None]] = deque()
        self.past: deque[Words] = deque(maxlen=40)
        """The scripts that it was asked to run."""
        self.ran: Callable[[], object] = list
        """Called when it has run something."""
        store.publish = self.publish
        store.listeners = self.listeners

    def read(self, connection: Connection, data: bytes | None) -> None:
        """It has arrived."""
        if self.frozen:
            self._unread.append((connection, data))
        elif data is None:
            connection.channels.clear()
            self.connections.discard(connection)
            self.store.leaves(connection)
        else:
            self.connections.add(connection)
            for words in connection.requests(data):
                if words[0].startswith(b"EVAL"):
                    self.past.append(words)
                for reply in self.store.run(words, connection):
                    connection.hear(reply)
                self.ran()

    def replay(self, n: int) -> None:
        """It is asked again for what it was asked for before; nobody hears the answer."""
        self.past.append(self.past[-n % len(self.past)])
        self.store.run(self.past[-1], None)
        self.ran()

    def thaw(self) -> None:
        """It goes on."""
        self.frozen = False
        while self._unread:
            self.read(*self._unread.popleft())

    def publish(self, channel: bytes, message: bytes) -> None:
        for connection in sorted(self.connections, key=lambda each: each.number):
            if channel in connection.channels:
                connection.hear(packed([b"message", channel, message]))

    def listeners(self, channel: bytes) -> int:
        return sum(channel in connection.channels for connection in self.connections)


class Target:
    """`distlock.backends.redis._connect.Target`: a server, as one process sees it."""

    moves = False
    works_on_asyncio = False

    def __init__(self, address: str, line: Line, host: Host) -> None:
        self.address = address
        self.line = line
        self.host = host

    def connect(self, within: float, op_timeout: float) -> Any:
        until = SIM.now() + within
        SIM.sleep(2 * DELAY)
        while self.line.cut or self.line.server.frozen:
            if SIM.now() >= until:
                raise exceptions.TimeoutError("nobody answers")
            SIM.park(min(until - SIM.now(), 0.2), self.line.healed)
        self.line.forget_ended()
        connection = Connection(self.line)
        connection.settimeout(op_timeout)
        self.line.connections.append(connection)
        return connection


def packed(value: Any) -> bytes:
    """As RESP 2."""
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if isinstance(value, str):
        return b"%b\r\n" % value.encode()
    return b"*%d\r\n" % len(value) + b"".join([packed(each) for each in value])
