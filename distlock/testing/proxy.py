"""A TCP proxy between a client and a server that breaks the network on demand, and counts what passes."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from ._ports import bind_free_port

__all__ = ("Fate", "FaultProxy", "Traffic")

Fate = Literal["reset", "silence"]
"""What becomes of a connection after a loss: a reset (RST), or it stays open and nothing passes."""

_CHUNK = 65536
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
_CONTROL_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What has passed so far. Subtract two of them to get what happened in between."""

    connections: int
    commands: int
    flights: int
    """Round trips as the client lives them: times it sent something after the server had spoken."""
    bytes_sent: int
    """By clients."""
    bytes_received: int
    """By clients."""

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.connections - other.connections,
            self.commands - other.commands,
            self.flights - other.flights,
            self.bytes_sent - other.bytes_sent,
            self.bytes_received - other.bytes_received,
        )


class _RequestReader:
    """Names the commands in a stream of Redis requests, however it is cut into pieces."""

    def __init__(self) -> None:
        self._buffer = b""
        self._opaque = False

    def feed(self, data: bytes) -> list[str]:
        """The names, in capitals, of the commands that ``data`` completes; none in what is not RESP."""
        if self._opaque:
            return []
        self._buffer += data
        names = []
        try:
            while (parsed := _parse_request(self._buffer)) is not None:
                name, end = parsed
                names.append(name)
                self._buffer = self._buffer[end:]
        except ValueError:
            self._opaque = True
        return names


def _parse_request(data: bytes) -> tuple[str, int] | None:
    """The name of the first command and where it ends, or None while it is incomplete."""
    at = data.find(b"\r\n")
    if at < 0:
        return None
    if data[:1] != b"*":
        raise ValueError("not RESP")
    name = ""
    count, position = int(data[1:at]), at + 2
    for index in range(count):
        at = data.find(b"\r\n", position)
        if at < 0:
            return None
        if data[position : position + 1] != b"$":
            raise ValueError("not RESP")
        start = at + 2
        position = start + int(data[position + 1 : at]) + 2
        if len(data) < position:
            return None
        if index == 0:
            name = data[start : position - 2].decode("latin-1").upper()
    return name, position


class _End:
    """One socket of a link, and what waits to be written to it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.queue: deque[tuple[float, bytes]] = deque()  # (when it is due, the bytes; b"" ends the stream)
        self.read_all = False
        self.wrote_all = False


class _Link:
    """A client's connection and its counterpart to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = _End(client)
        self.server = _End(server)
        self.requests = _RequestReader()
        self.flight: list[str] = []
        self.server_spoke = True
        self.silent = False

    def abort(self) -> None:
        for end in (self.client, self.server):
            if end.sock.family != socket.AF_UNIX:
                end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            end.sock.close()

    def close(self) -> None:
        self.client.sock.close()
        self.server.sock.close()


@dataclass(slots=True)
class _Loss:
    """A fault that waits for its victim."""

    of: Literal["request", "reply"]
    left: int
    command: str | None
    then: Fate

    def strikes(self, of: str, flight: list[str]) -> bool:
        return self.left > 0 and self.of == of and (self.command is None or self.command in flight)


@dataclass(slots=True)
class _Weather:
    """The state of the network."""

    hold_requests: bool = False
    hold_replies: bool = False
    delay: float = 0.0
    losses: list[_Loss] = field(default_factory=list)


class FaultProxy:
    """Use as a context manager: ``with FaultProxy(server.address) as proxy: connect(proxy.url)``.

    ``target`` is ``(host, port)`` or the path of a Unix socket. Every control has taken effect when it
    returns. All work is done by one thread.
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self._target = target
        self._weather = _Weather()
        self._links: list[_Link] = []
        self._listener: socket.socket | None = bind_free_port()
        self.port: int = self._listener.getsockname()[1]
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._actions: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._bell, self._ring = socket.socketpair()
        self._bell.setblocking(False)
        self._closed = False
        self._changed = threading.Condition()
        self._connections = 0
        self._flights = 0
        self._bytes_sent = self._bytes_received = 0
        self.sent: list[str] = []
        """The names of all commands that clients sent, in capitals, in order."""
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all connections and the thread."""
        if self._thread.is_alive():
            self._do(self._stop)
            self._thread.join(_CONTROL_TIMEOUT)
        self._bell.close()
        self._ring.close()

    # Where it is and what has passed

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def traffic(self) -> Traffic:
        """Counted before it is passed on: who has the reply can rely on the request, and it, being in here."""
        with self._changed:
            return Traffic(self._connections, len(self.sent), self._flights, self._bytes_sent, self._bytes_received)

    @property
    def open_links(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        """Until ``condition`` (of this proxy's counters) holds; `TimeoutError` if it does not in time."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise TimeoutError(f"not seen within {timeout} s: {self.traffic_text()}")

    def traffic_text(self) -> str:
        return f"{self._connections} connections, {self._flights} flights, commands {self.sent[-20:]}"

    # Controls

    def drop_replies(self, count: int = 1, *, to: str | None = None, then: Fate = "reset") -> None:
        """Swallows the server's next ``count`` replies, each with its connection.

        The server has carried the request out, the client never learns it. ``to``: only replies to a flight
        that contains this command. What the server pushes unasked counts as a reply to the last flight.
        """
        self._lose(_Loss("reply", count, to and to.upper(), then))

    def drop_requests(self, count: int = 1, *, to: str | None = None, then: Fate = "reset") -> None:
        """Swallows the clients' next ``count`` requests, each with its connection, before the server."""
        self._lose(_Loss("request", count, to and to.upper(), then))

    def reset_all(self) -> None:
        """Resets every open connection (RST, on both sides)."""
        self._do(self._abort_all)

    def silence_all(self) -> None:
        """Nothing passes any more on the connections that are open, as where a network has forgotten them."""
        self._do(self._silence_all)

    def redirect(self, target: tuple[str, int] | str) -> None:
        """New connections lead to another server; open ones live on."""
        self._do(lambda: setattr(self, "_target", target))

    def pause(self, *, requests: bool = True, replies: bool = True) -> None:
        """Holds back all bytes, or those of one direction; nothing is lost."""
        self._do(lambda: self._hold(requests, replies))

    def resume(self) -> None:
        """Lets the bytes go that `pause` held back."""
        self._do(lambda: self._hold(False, False))

    def delay(self, seconds: float) -> None:
        """From now on every piece arrives that much later, in each direction; 0 ends it."""
        self._do(lambda: setattr(self._weather, "delay", seconds))

    def refuse(self) -> None:
        """New connections are refused; open ones live on."""
        self._do(self._unlisten)

    def accept(self) -> None:
        """Takes new connections again, at the same port."""
        self._do(self._listen)

    def heal(self) -> None:
        """Ends all of these: what was held back goes, and what has fallen silent is reset."""
        self._do(self._heal)

    # Inside: all of this runs in the proxy's thread

    def _do(self, action: Callable[[], None]) -> None:
        done: Future[None] = Future()
        self._actions.append((action, done))
        self._ring.send(b"!")
        done.result(_CONTROL_TIMEOUT)

    def _run(self) -> None:
        while not self._closed:
            poll, owners = self._interests()
            for fd, events in poll.poll(self._poll_timeout()):
                if events & ~select.POLLOUT and fd in owners:
                    owners[fd]()
            for link in list(self._links):
                self._write(link)
            with self._changed:
                self._changed.notify_all()

    def _interests(self) -> tuple[select.poll, dict[int, Callable[[], object]]]:
        poll = select.poll()
        owners: dict[int, Callable[[], object]] = {self._bell.fileno(): self._obey}
        poll.register(self._bell, select.POLLIN)
        if self._listener is not None:
            poll.register(self._listener, select.POLLIN)
            owners[self._listener.fileno()] = self._welcome
        for link in self._links:
            for end, other, held in (
                (link.client, link.server, self._weather.hold_requests),
                (link.server, link.client, self._weather.hold_replies),
            ):
                reads = not end.read_all and not held
                writes = bool(end.queue) and end.queue[0][0] <= time.monotonic()
                # A socket without an interest is left out, or its hang-up would be told again and again.
                if reads or writes:
                    poll.register(end.sock, select.POLLIN * reads | select.POLLOUT * writes)
                if reads:
                    owners[end.sock.fileno()] = self._reader(link, end, other)
        return poll, owners

    def _poll_timeout(self) -> float | None:
        dues = [end.queue[0][0] for link in self._links for end in (link.client, link.server) if end.queue]
        later = [due - time.monotonic() for due in dues if due > time.monotonic()]
        return max(1.0, min(later) * 1000) if later else None

    def _obey(self) -> None:
        self._bell.recv(_CHUNK)
        while self._actions:
            action, done = self._actions.popleft()
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller of the control
                done.set_exception(error)
            else:
                done.set_result(None)

    def _stop(self) -> None:
        self._closed = True
        self._unlisten()
        for link in self._links:
            link.close()
        self._links.clear()

    def _unlisten(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _listen(self) -> None:
        if self._listener is None:
            listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            listener.setblocking(False)
            self._listener = listener

    def _hold(self, requests: bool, replies: bool) -> None:
        self._weather.hold_requests = requests
        self._weather.hold_replies = replies

    def _heal(self) -> None:
        self._weather = _Weather()
        self._listen()
        for link in list(self._links):
            if link.silent:
                self._abort(link)
            for end in (link.client, link.server):
                end.queue = deque((0.0, data) for _, data in end.queue)

    def _lose(self, loss: _Loss) -> None:
        self._do(lambda: self._weather.losses.append(loss))

    def _welcome(self) -> None:
        if self._listener is None:
            return
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            server = self._dial()
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            client.close()
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._changed:
            self._connections += 1
        self._links.append(_Link(client, server))

    def _dial(self) -> socket.socket:
        if isinstance(self._target, str):
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:
                server.close()
                raise
            return server
        server = socket.create_connection(self._target, timeout=5)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    def _abort(self, link: _Link) -> None:
        if link in self._links:
            self._links.remove(link)
            link.abort()

    def _abort_all(self) -> None:
        for link in list(self._links):
            self._abort(link)

    def _silence_all(self) -> None:
        for link in self._links:
            self._suffer(link, "silence")

    def _reader(self, link: _Link, end: _End, other: _End) -> Callable[[], None]:
        return lambda: self._read(link, end, other)

    def _read(self, link: _Link, end: _End, other: _End) -> None:
        if link not in self._links:  # ended by an earlier event of this turn
            return
        try:
            data = end.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._abort(link)
            return
        if not data:
            end.read_all = True
        elif end is link.client:
            self._count(link, data)
        else:
            with self._changed:
                link.server_spoke = True
                self._bytes_received += len(data)
        if link.silent:
            if link.client.read_all:  # it has given up; before that, not even the server's end gets through
                self._abort(link)
        elif data and (loss := self._strikes("request" if end is link.client else "reply", link)):
            loss.left -= 1
            self._suffer(link, loss.then)
        else:
            other.queue.append((time.monotonic() + self._weather.delay, data))

    def _count(self, link: _Link, data: bytes) -> None:
        names = link.requests.feed(data)
        with self._changed:
            self._bytes_sent += len(data)
            if link.server_spoke:
                link.server_spoke = False
                link.flight = []
                self._flights += 1
            link.flight += names
            self.sent += names

    def _strikes(self, of: str, link: _Link) -> _Loss | None:
        return next((loss for loss in self._weather.losses if loss.strikes(of, link.flight)), None)

    def _suffer(self, link: _Link, fate: Fate) -> None:
        if fate == "reset":
            self._abort(link)
        else:
            link.silent = True
            link.client.queue.clear()

    def _write(self, link: _Link) -> None:
        try:
            for end in (link.client, link.server):
                _write_due(end)
        except OSError:
            self._abort(link)
            return
        if link.client.wrote_all and link.server.wrote_all:
            self._links.remove(link)
            link.close()


def _write_due(end: _End) -> None:
    while end.queue and end.queue[0][0] <= time.monotonic():
        due, data = end.queue[0]
        if not data:
            end.sock.shutdown(socket.SHUT_WR)
            end.wrote_all = True
            end.queue.popleft()
            return
        try:
            sent = end.sock.send(data)
        except BlockingIOError:
            return
        end.queue.popleft()
        if sent < len(data):
            end.queue.appendleft((due, data[sent:]))
