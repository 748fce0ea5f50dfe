"""The border to kazoo: a client of its that says what it keeps to itself, and takes requests one behind the other.

Requests are kazoo's own; they are put into its queue as its methods do, but back to back, so that several take one
round trip, and answered without a detour by its thread for callbacks.
"""

from __future__ import annotations

import inspect
import select
import socket
import ssl
from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, cast

from kazoo.client import KazooClient
from kazoo.exceptions import EXCEPTIONS, ConnectionDropped, SessionExpiredError, ZookeeperError
from kazoo.handlers.threading import AsyncResult, SequentialThreadingHandler
from kazoo.protocol.connection import AUTH_XID, ConnectionHandler
from kazoo.protocol.serialization import Auth, CheckVersion, Create2, Delete, SetData, Sync, Transaction, write_string
from kazoo.protocol.states import KazooState
from kazoo.security import CREATOR_ALL_ACL, OPEN_ACL_UNSAFE

from ..base import ConfigurationError, now
from ._url import Place

__all__ = ("ANY_VERSION", "CreateContainer", "Handle", "Link", "Listener", "Watcher", "acl_of", "batches", "check")

ANY_VERSION = -1
"""Of a node."""
CHUNK = 65536
LARGEST_XID = 2**31 - 1
LARGEST = 400_000
"""Bytes of paths in one request, well below the server's limit (jute.maxbuffer, a megabyte)."""
_CHECKS_HOSTNAMES = "check_hostname" in inspect.signature(KazooClient.__init__).parameters
_PATIENT = {"max_tries": -1, "delay": 0.05, "backoff": 2, "max_delay": 0.5}

Request = Any
"""Of `kazoo.protocol.serialization`."""


class CreateContainer(Create2):  # type: ignore[misc]
    """A node that the server deletes when it had children and has none any more. kazoo has no such request."""

    type = 19


class _RemoveWatches(namedtuple("_RemoveWatches", "path")):
    """Of those on a node's data, or on its coming. kazoo has no such request."""

    type = 18

    def serialize(self) -> bytes:
        return bytes(write_string(self.path)) + _ON_DATA

    @staticmethod
    def deserialize(_: bytes, __: int) -> bool:
        return True


class _NoWatcherError(ZookeeperError):  # type: ignore[misc]
    """It has called in the meantime. An answer that kazoo does not know, as before 2.11, ends its thread."""


_ON_DATA = (2).to_bytes(4, "big")
cast("Any", EXCEPTIONS).setdefault(-121, _NoWatcherError)
_BY_MAJORITY = (Create2, Delete, SetData, Transaction)
_BY_LEADER = (*_BY_MAJORITY, Sync)


def check(paths: Sequence[str]) -> Request:
    """Whether those nodes are there: what changes nothing, and is decided on by a majority nevertheless. `Sync` is not.

    If one is not there, only the first of them is told.
    """
    return Transaction([CheckVersion(path, ANY_VERSION) for path in paths])


def batches(paths: Iterable[str]) -> Iterator[list[str]]:
    """As many of them together as one `check` can take."""
    batch: list[str] = []
    size = 0
    for path in paths:
        if batch and size > LARGEST:
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += len(path) + 30
    if batch:
        yield batch


class Listener(Protocol):
    """Hears of the connection, in its thread: no method may block."""

    def connected(self, session_id: int, timeout: float, since: float) -> None: ...
    def sent(self, at: float) -> None: ...
    def failed(self, error: BaseException) -> None: ...
    def lost(self, state: str) -> None: ...

    @property
    def is_over(self) -> bool:
        """Nobody has answered for so long that the session is not worth keeping."""
        raise NotImplementedError


class Result(AsyncResult):  # type: ignore[misc]
    """What comes of a request, and in which session it may travel."""

    def __init__(self, handler: Any, session_id: int) -> None:
        super().__init__(handler)
        self.session_id = session_id

    def _do_callbacks(self) -> None:
        """At once, in the thread of the connection: none of them blocks."""
        for callback in self._callbacks:
            callback(self)


class Handle(NamedTuple):
    """A request that was sent, or will be."""

    request: Request
    result: Result
    at: float

    @property
    def by_leader(self) -> bool:
        """It is answered by way of the leader, not by the member alone that we are connected to."""
        return isinstance(self.request, _BY_LEADER)

    @property
    def by_majority(self) -> bool:
        """And only if a majority follows that leader: it may have been replaced without knowing."""
        return isinstance(self.request, _BY_MAJORITY)


class Watcher:
    """What a watch calls, in the thread of the connection: it may not block."""

    def __call__(self, event: Any) -> None:
        """The watch is over."""


class _Ring:
    """Wakes the connection's thread, which may be the one that rings, and must not wait for itself to make room."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.close = sock.close

    def send(self, data: bytes) -> None:
        with suppress(BlockingIOError):  # it rings already
            self._socket.send(data)


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """kazoo's own makes a selector for each call, of which there are several a request."""

    def dispatch_callback(self, callback: Any) -> None:
        if isinstance(callback.func, Watcher):
            callback.func(*callback.args)
        else:
            super().dispatch_callback(callback)

    def create_socket_pair(self) -> Any:
        bell, ring = super().create_socket_pair()
        bell.setblocking(False)
        return bell, _Ring(ring)

    def select(self, reads: Sequence[Any], writes: Sequence[Any], _: Any, timeout: float | None = None) -> Any:
        if not hasattr(select, "poll"):
            return super().select(reads, writes, _, timeout)
        poll, by_descriptor = select.poll(), {}
        for sockets, events in ((reads, select.POLLIN), (writes, select.POLLOUT)):
            for each in sockets:
                descriptor = each.fileno()
                if descriptor < 0:
                    raise ValueError("a closed socket")
                by_descriptor[descriptor] = each
                poll.register(descriptor, events)
        found = [by_descriptor[descriptor] for descriptor, _ in poll.poll(None if timeout is None else timeout * 1e3)]
        return [each for each in found if each in reads], [each for each in found if each in writes], []


class _Connection(ConnectionHandler):  # type: ignore[misc]
    """Reads as much as there is, and waits only where something would block."""

    listener: Listener
    _socket: Any
    _read_sock: Any
    _write_sock: Any
    _xid: int
    ended = False
    _ahead = b""
    """What was read and not yet asked for."""

    def zk_loop(self) -> None:
        try:
            super().zk_loop()
        finally:
            self.ended = True

    def _read(self, length: int, timeout: Any) -> Any:
        if isinstance(self._socket, ssl.SSLSocket):
            return super()._read(length, timeout)
        while len(self._ahead) < length:
            try:
                with self._socket_error_handling():
                    try:
                        data = self._socket.recv(CHUNK)
                    except BlockingIOError:
                        if not self.handler.select([self._socket], [], [], timeout)[0]:
                            raise self.handler.timeout_exception("socket time-out during read") from None
                        continue
            except ConnectionDropped:
                self._ahead = b""
                raise
            if not data:
                self._ahead = b""
                raise ConnectionDropped("socket connection broken")
            self._ahead += data
        found, self._ahead = self._ahead[:length], self._ahead[length:]
        return found

    def _read_socket(self, read_timeout: Any) -> Any:
        outcome = super()._read_socket(read_timeout)
        while self._ahead and outcome is None:  # no select would tell of it
            outcome = super()._read_socket(read_timeout)
        return outcome

    def _write(self, msg: Any, timeout: Any) -> None:
        if not isinstance(self._socket, ssl.SSLSocket):
            with self._socket_error_handling(), suppress(BlockingIOError):
                msg = msg[self._socket.send(msg) :]
        if msg:
            super()._write(msg, timeout)

    def _connect(self, host: Any, hostip: Any, port: Any) -> Any:
        since = now()
        self._ahead = b""
        if self.listener.is_over:
            # A store that came back empty turns everyone away who has seen more than it has (ZOOKEEPER-832).
            self.client.last_zxid = 0
            raise SessionExpiredError("no server has taken it up for too long")
        try:
            read_timeout, connect_timeout = super()._connect(host, hostip, port)
        except BaseException as error:
            self.listener.failed(error)
            raise
        # kazoo waits for two thirds of the time that the server has agreed to.
        self.listener.connected(self.client._session_id, round(read_timeout * 1.5) / 1000, since)
        return read_timeout, connect_timeout

    def _send_request(self, read_timeout: Any, connect_timeout: Any) -> None:
        """All that is queued. kazoo sends one for each byte that rings, of which there is room for a few hundred."""
        with suppress(BlockingIOError):
            self._read_sock.recv(CHUNK)
        queue = self.client._queue
        try:
            while queue:
                request, result = queue[0]
                if isinstance(result, Result) and result.session_id != self.client._session_id:
                    queue.popleft()  # of a thread that stood still over its session's end
                    result.set_exception(SessionExpiredError())
                else:
                    self._send_one(request, result, connect_timeout)
        except BaseException:
            self._write_sock.send(b"\0")  # for the next connection: what is left is sent there
            raise

    def _send_one(self, request: Any, result: Any, timeout: Any) -> None:
        xid = AUTH_XID
        if request.type != Auth.type:
            xid = self._xid = self._xid % LARGEST_XID + 1
        self._submit(request, timeout, xid)
        self.client._queue.popleft()
        self.client._pending.append((request, result, xid))

    def _submit(self, request: Any, timeout: Any, xid: Any = None) -> None:
        self.listener.sent(now())
        super()._submit(request, timeout, xid)


class Link:
    """One client of kazoo's: one connection at a time, and one session after the other."""

    def __init__(self, place: Place, timeout: float, listener: Listener) -> None:
        driver = dict(place.driver)
        if not _CHECKS_HOSTNAMES and driver.pop("check_hostname", False):
            raise ConfigurationError("TLS wants kazoo 2.11 or later, which compares the server's name")
        client: Any = KazooClient(
            ",".join(place.hosts), timeout=timeout, handler=_Handler(), connection_retry=dict(_PATIENT), **driver
        )
        self._client = client
        before = client._connection
        client._connection = connection = _Connection(client, before.retry_sleeper, before.logger, before.sasl_options)
        connection.listener = listener
        client.add_listener(self._heard)
        self._listener = listener

    def start(self) -> None:
        """May be called again, if Ctrl-C came in between: kazoo would wait for the end of what it has begun."""
        connection = self._client._connection
        if not connection._connection_routine and connection.connection_stopped.is_set():
            self._client.start_async()

    def _heard(self, state: str) -> None:
        if state != KazooState.CONNECTED:
            self._listener.lost(state)

    @property
    def stopped(self) -> bool:
        """It will not connect any more."""
        return bool(self._client._connection.ended)

    @property
    def client_id(self) -> tuple[int, bytes]:
        return self._client._session_id, self._client._session_passwd

    def send(self, requests: Sequence[Request], session_id: int) -> list[Handle]:
        """One behind the other, in that session or not at all. The results come in that order."""
        client, handles = self._client, []
        for request in requests:
            result = Result(client.handler, session_id)
            handles.append(Handle(request, result, now()))
            client._call(request, result)
        return handles

    def unwatch(self, path: str, watcher: Watcher, session_id: int) -> None:
        """That watch on a node's data is not wanted any more. Does not wait for the answer."""
        (handle,) = self.send([_RemoveWatches(path)], session_id)

        def answered(_: object) -> None:
            watchers = self._client._data_watchers
            if handle.result.successful():  # else it has called, or went with the connection
                watchers[path].discard(watcher)
                if not watchers[path]:
                    del watchers[path]

        handle.result.rawlink(answered)

    def drop(self) -> None:
        """The connection is of no use: kazoo is to look for another member."""
        with suppress(OSError, AttributeError, TypeError):  # the last two: there is none any more
            # Not by TLS's own method, which takes the layer away from under the thread that reads.
            socket.socket.shutdown(self._client._connection._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the session. May take as long as the server lets it."""
        self._client.remove_listener(self._heard)
        self._client.stop()
        self._client.close()

    def abandon(self) -> None:
        """In a forked child: the session is the parent's, and so are the threads."""
        import atexit

        atexit.unregister(self._client.handler.stop)
        connection = self._client._connection
        for each in (connection._socket, connection._read_sock, connection._write_sock):
            with suppress(OSError, AttributeError):
                each.close()


def acl_of(place: Place) -> Sequence[Any]:
    """Of the nodes that are made."""
    if isinstance(place.acl, tuple):
        return place.acl
    return CREATOR_ALL_ACL if place.acl == "creator" else OPEN_ACL_UNSAFE  # type: ignore[no-any-return]
