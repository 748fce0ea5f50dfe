"""The connection on which a process is told: what comes in there, and a bell to be woken by."""

from __future__ import annotations

import contextlib
import math
import select
import selectors
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ConnectionError as BrokenConnection

from ..base import now
from ._connect import Target
from ._replies import Replies

__all__ = ("Ear",)


class Ear:
    """For one thread at a time, but for `ring`."""

    def __init__(self, server: Target, deadline: float, op_timeout: float) -> None:
        self._connection = server.connect(deadline - now(), op_timeout)
        link: Any = self._connection._sock  # redis-py says None until it is connected
        self._socket: socket.socket = link
        self._pending = link.pending if isinstance(link, ssl.SSLSocket) else int  # what TLS has decrypted already
        self._timeout = op_timeout
        self._replies = Replies()
        self._socket.setblocking(False)
        self._bell, self._button = socket.socketpair()
        for end in (self._bell, self._button):
            end.setblocking(False)
        self._files = self._bell.fileno(), self._socket.fileno()

    def say(self, frame: bytes) -> None:
        """Sends a request; what the server answers is heard like all else."""
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(frame)
            self._socket.setblocking(False)
        except OSError as error:
            raise BrokenConnection(str(error)) from error

    def hear(self, until: float) -> list[Any]:
        """What has come in, errors as they are; nothing if there was nothing until then, or the bell rang.

        `RedisError` if the connection is of no use any more. Any other exception is a signal handler's.
        """
        if not self._pending():
            timeout = None if until == math.inf else max(0.0, until - now())
            if self._files[0] in _readable(self._files, timeout):
                with contextlib.suppress(BlockingIOError):
                    self._bell.recv(4096)
                return []
        try:
            data = self._socket.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return []
        except OSError as error:
            raise BrokenConnection(str(error)) from error
        if not data:
            raise BrokenConnection("the server closed the connection")
        found = self._replies.feed(data)
        for each in found:
            if type(each) is ConnectionError:
                raise BrokenConnection(str(each)) from each
        return found

    def ring(self) -> None:
        """Ends a `hear`, the next one if there is none now. Thread-safe."""
        with contextlib.suppress(OSError):
            self._button.send(b"!")

    def close(self) -> None:
        """Ends the connection; in a forked child without a word to the server."""
        self._connection.disconnect()  # redis-py shuts a socket down only in the process that opened it
        for end in (self._bell, self._button):
            end.close()


def _readable(files: Sequence[int], timeout: float | None) -> Sequence[int]:
    """Those that have something to read. Made anew each time, for a signal's handler may come here meanwhile."""
    # Not select(2), which ends at 1024 files; and not epoll(7), which a forked child would share.
    if not hasattr(select, "poll"):
        with selectors.DefaultSelector() as selector:
            for each in files:
                selector.register(each, selectors.EVENT_READ)
            return [key.fd for key, _ in selector.select(timeout)]
    poll = select.poll()
    for each in files:
        poll.register(each, select.POLLIN)
    return [fd for fd, _ in poll.poll(None if timeout is None else math.ceil(min(timeout, 86400.0) * 1000))]
