"""Connections of our own: one request at a time on each, none of them checked before use.

A pooled connection may have died while it lay idle. That shows when it is used, and is then tried once more on
a fresh one, which is safe because every request may be repeated.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from redis import exceptions
from redis.exceptions import BusyLoadingError, NoScriptError, RedisError, ResponseError

from ..base import BackendError, now
from ._connect import Server, mapped
from ._scripts import Script
from ._wire import Wire

__all__ = ("LONGEST_IDLE", "MOST_IDLE", "Pool", "Reply", "is_broken", "is_stale", "released")

MOST_IDLE = 16
LONGEST_IDLE = 60.0
"""Seconds. What is silent for longer some networks forget, without a word to either side."""


class Reply(NamedTuple):
    """What the server said."""

    value: Any
    again: bool
    """The request was sent twice, so the first one may have been carried out already."""


def released(reply: Reply) -> bool:
    """What ``release.lua`` said. Nothing to release at a second try: the first one has done it."""
    return bool(reply.value) or reply.again


def is_broken(error: Exception) -> bool:
    """The connection ended. If it had been idle it may have been dead already, so that another try makes sense."""
    answered_or_late = ResponseError, BusyLoadingError, exceptions.TimeoutError, TimeoutError
    return not isinstance(error, answered_or_late)


def is_stale(error: Exception) -> bool:
    """Other idle connections are no better: they are as old, or the address leads to another server by now."""
    late = isinstance(error, (exceptions.TimeoutError, TimeoutError))
    return late or is_broken(error) or str(error).startswith(("READONLY", "MASTERDOWN", "You can't write"))


class Pool:
    """Thread-safe: taking and giving back are single deque operations."""

    def __init__(self, server: Server, op_timeout: float) -> None:
        self._server = server
        self._op_timeout = op_timeout
        self._idle: deque[Wire] = deque()
        self._closed = False

    def send(self, frame: bytes, deadline: float, key: str | None = None, script: Script | None = None) -> Reply:
        """The reply to one request, of ``script`` if it runs one."""
        wire = self._idle_wire()
        if wire is None:
            return Reply(self._send_fresh(frame, deadline, key, script), again=False)
        try:
            return Reply(self._exchange(wire, frame, deadline, script), again=False)
        except (RedisError, OSError) as error:
            if is_stale(error):
                self.clear()
            if not is_broken(error):
                raise mapped(error, self._server.address, key=key) from error
        try:
            return Reply(self._send_fresh(frame, deadline, key, script), again=True)
        except BackendError as error:
            error.sent = True  # the first try may have got through
            raise

    def _idle_wire(self) -> Wire | None:
        try:
            wire = self._idle.pop()
        except IndexError:
            return None
        if now() - wire.idle_since < LONGEST_IDLE:
            return wire
        wire.close()
        self.clear()
        return None

    def _send_fresh(self, frame: bytes, deadline: float, key: str | None, script: Script | None) -> Any:
        try:
            wire = Wire(self._server.connect(deadline - now(), self._op_timeout), self._op_timeout)
        except (RedisError, OSError) as error:
            raise mapped(error, self._server.address, key=key, sent=False) from error
        try:
            return self._exchange(wire, frame, deadline, script)
        except (RedisError, OSError) as error:
            raise mapped(error, self._server.address, key=key) from error

    def _exchange(self, wire: Wire, frame: bytes, deadline: float, script: Script | None) -> Any:
        try:
            try:
                reply = wire.ask(frame, deadline)
            except NoScriptError:
                if script is None:
                    raise
                reply = wire.ask(script.whole(frame), deadline)  # the server has forgotten it
        except ResponseError as error:
            if is_stale(error):
                wire.close()
            else:
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
            wire.idle_since = now()
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
