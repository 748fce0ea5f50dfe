"""What is said over a connection once redis-py has opened it: requests, and their replies (RESP 2).

redis-py's own way takes a tenth of what acquiring and releasing a lock takes.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import Any

from redis import Connection
from redis.exceptions import InvalidResponse

from ..base import now
from ._replies import Replies

__all__ = ("NOTHING", "Late", "Wire")

NOTHING: Any = object()
"""No whole reply has come yet; None is one."""


class Late(TimeoutError):
    """Nothing came in time, and nothing is lost: the reply may still be read."""


class Wire:
    """One connection, for one thread at a time."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        self._connection = connection
        link: Any = connection._sock  # redis-py says None until it is connected
        self._socket: socket.socket = link
        self._recv = link.recv
        self._timeout = self._longest = timeout
        self._most = 0.99 * timeout  # to set another costs a call into the kernel
        # To send by the socket Python would ask poll(2) first, whether there is room; there always is for so little.
        self._fd = link.fileno() if type(link) is socket.socket and os.name == "posix" else -1
        self._replies = Replies()
        self._whole: deque[Any] = deque()
        self.torn = False
        """A request was sent in part."""

    def ask(self, frame: bytes, left: float) -> Any:
        """The reply to the only request on its way, or `NOTHING` if not all of it has come.

        ``left`` are seconds. `Late`: the reply may still come, and can be read then.
        """
        self.write(frame, left)
        data = self._receive()
        if data[0] == 58 and data[-1] == 10:  # an integer, as in most cases
            try:
                return int(data[1:])
            except ValueError as error:
                raise InvalidResponse(f"not a reply in RESP 2: {error}") from error
        self._whole.extend(self._replies.feed(data))
        return self.reply()

    def write(self, frames: bytes, left: float) -> None:
        """Sends all of it."""
        if left < self._most or self._timeout != self._longest:
            self._allow(left)
        try:
            sent = 0 if self._fd < 0 else os.write(self._fd, frames)
        except BlockingIOError:
            sent = 0
        if sent != len(frames):
            self.torn = True
            self._socket.sendall(frames[sent:])
            self.torn = False

    def receive(self, deadline: float) -> None:
        """Takes in what has come; waits for something. `Late`: nothing came."""
        self._allow(deadline - now())
        self._whole.extend(self._replies.feed(self._receive()))

    def _receive(self) -> bytes:
        try:
            data: bytes = self._recv(65536)
        except TimeoutError as error:
            raise Late from error
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def _allow(self, left: float) -> None:
        timeout = max(0.001, left) if left < self._most else self._longest
        if timeout != self._timeout:
            self._socket.settimeout(timeout)
            self._timeout = timeout

    def reply(self) -> Any:
        """The next reply, or `NOTHING` if not all of it has been received. An error is given, not raised."""
        if not self._whole:
            return NOTHING
        value = self._whole.popleft()
        if type(value) is ConnectionError:
            raise value
        return value

    def close(self) -> None:
        """Ends it; in a forked child without a word to the server."""
        self._fd = -1  # the number may be another file's soon
        self._connection.disconnect()
