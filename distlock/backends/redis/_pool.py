"""Connections of our own: one request at a time on each, none of them checked before use.

A pooled connection may have died while it lay idle. That shows when it is used, and is then tried once more on
a fresh one, which is safe because every request may be repeated.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from redis.exceptions import BusyLoadingError, NoScriptError, RedisError, ResponseError

from ..base import BackendUnavailable, now
from ._connect import Server, mapped
from ._scripts import Script
from ._wire import Wire

__all__ = ("Pool", "Reply", "released")

MOST_IDLE = 16


class Reply(NamedTuple):
    """What the server said."""

    value: Any
    again: bool
    """The request was sent twice, so the first one may have been carried out already."""


def released(reply: Reply) -> bool:
    """What ``release.lua`` said. Nothing to release at a second try: the first one has done it."""
    return bool(reply.value) or reply.again


class Pool:
    """Thread-safe: taking and giving back are single deque operations."""

    def __init__(self, server: Server, op_timeout: float) -> None:
        self._server = server
        self._op_timeout = op_timeout
        self._idle: deque[Wire] = deque()
        self._closed = False

    def run(self, script: Script, frame: bytes, deadline: float, key: str | None = None) -> Reply:
        """The reply of ``script``, which the server may have forgotten."""
        try:
            return self.send(frame, deadline, key)
        except NoScriptError:
            return self.send(script.whole(frame), deadline, key)

    def send(self, frame: bytes, deadline: float, key: str | None = None) -> Reply:
        """The reply to one request; errors are ours, but for NoScriptError."""
        left = deadline - now()
        try:
            wire = self._idle.pop()
        except IndexError:
            return Reply(self._send_fresh(frame, left, key), again=False)
        try:
            return Reply(self._exchange(wire, frame, left), again=False)
        except NoScriptError:
            raise
        except (ResponseError, TimeoutError, BusyLoadingError) as error:
            raise mapped(error, self._server.address, key=key) from error
        except (RedisError, OSError):
            pass
        self.clear()  # its siblings are as old
        try:
            return Reply(self._send_fresh(frame, deadline - now(), key), again=True)
        except BackendUnavailable as error:
            error.sent = True  # the first try may have got through
            raise

    def _send_fresh(self, frame: bytes, left: float, key: str | None) -> Any:
        deadline = now() + left
        try:
            wire = Wire(self._server.connect(left, self._op_timeout), self._op_timeout)
        except (RedisError, OSError) as error:
            raise mapped(error, self._server.address, key=key, sent=False) from error
        try:
            return self._exchange(wire, frame, deadline - now())
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            raise mapped(error, self._server.address, key=key) from error

    def _exchange(self, wire: Wire, frame: bytes, left: float) -> Any:
        try:
            reply = wire.ask(frame, left)
        except ResponseError:
            self._give_back(wire)
            raise
        except BaseException:  # the reply may still come: this connection must not be used again
            wire.close()
            raise
        self._give_back(wire)
        return reply

    def _give_back(self, wire: Wire) -> None:
        if self._closed or len(self._idle) >= MOST_IDLE:
            wire.close()
        else:
            self._idle.append(wire)

    def clear(self) -> None:
        """Drops the idle connections."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def close(self) -> None:
        """Drops the idle connections, and those in use when they come back."""
        self._closed = True
        self.clear()
