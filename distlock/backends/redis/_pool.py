"""The connection of our own that all threads share, not checked before use.

Two threads do better with one each, more with one for all: then one writes and reads for many. So a second one serves
whoever finds one lone thread on the first.

A connection may have died while it lay idle. That shows when it is used, and is then tried once more on a fresh one,
which is safe because every request may be repeated.
"""

from __future__ import annotations

from _thread import allocate_lock
from typing import Any, NamedTuple

from redis import exceptions
from redis.exceptions import BusyLoadingError, NoScriptError, RedisError, ResponseError

from ..base import LeaseState, Renewal, now
from ._connect import Target
from ._errors import mapped
from ._link import Broken, Link, Nested, Request
from ._scripts import Script

__all__ = ("LONGEST_IDLE", "Pool", "Reply", "is_broken", "is_stale", "released")

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
    """It is not to be used again, and other idle ones are no better."""
    late = isinstance(error, (exceptions.TimeoutError, TimeoutError))
    text = str(error)  # before Redis 7 it stands in the middle of an error of the script's
    return late or is_broken(error) or "READONLY" in text or text.startswith(("MASTERDOWN", "You can't write"))


class Pool:
    """Thread-safe."""

    def __init__(self, server: Target, op_timeout: float) -> None:
        self._server = server
        self._op_timeout = op_timeout
        self._closed = False
        self._links = [Link(server, op_timeout), Link(server, op_timeout)]

    def send(
        self, frame: bytes, deadline: float, key: str | None = None, script: Script | None = None, replies: int = 1
    ) -> Reply:
        """The reply to one request, of ``script`` if it runs one; of ``replies`` requests a list, errors and all."""
        again = tried = False
        own: Link | None = None
        while True:
            began, link, me = now(), own or self._links[0], Request()
            if link.lead and not link.crowded and not self._links[1].lead:
                link = self._links[1]
            if link.retired or began - link.used_at > LONGEST_IDLE:
                link = own or self._renewed(link)
            try:
                value = link.ask(me, frame, began, deadline, replies)
            except Nested:
                own = Link(self._server, self._op_timeout, retired=True)
                continue
            except (RedisError, OSError, Broken) as error:
                cause = link.error or error if isinstance(error, Broken) else error
                again, own = again or me.sent, None
                if not isinstance(cause, Broken):
                    if link.retired:
                        self._retire()
                    if tried or me.connected or not link.connected or not is_broken(cause):
                        raise mapped(cause, self._server.address, key=key, sent=again) from cause
                    tried = True
                continue
            if type(value) is int:
                return Reply(value, again)
            if script is None or not _forgotten(value):
                return Reply(self._checked(link, value, key, again), again)
            again, frame, script = again or replies > 1, script.whole(frame), None

    def post(self, frame: bytes, proves: float, deadline: float) -> Posted | None:
        """See `Route.post`."""
        link, me = self._links[0], Request()
        return Posted(link, me, proves) if link.post(me, frame, deadline) else None

    def _checked(self, link: Link, value: Any, key: str | None, again: bool) -> Any:
        for each in value if type(value) is list else (value,):
            if isinstance(each, Exception) and (is_stale(each) or isinstance(each, BusyLoadingError)):
                self._retire()
                link.retire()
        if isinstance(value, Exception):
            error = mapped(value, self._server.address, key=key)
            error.sent = error.sent or again
            raise error from value
        return value

    def _renewed(self, link: Link) -> Link:
        if self._closed:
            return Link(self._server, self._op_timeout, retired=True)
        fresh = link.successor.setdefault(0, Link(self._server, self._op_timeout))
        for place, each in enumerate(self._links):  # unless another thread was faster
            if each is link:
                self._links[place] = fresh
        link.retire()
        if self._closed:  # meanwhile
            fresh.retire()
        return fresh

    def _retire(self) -> None:
        """The others are no better: they are as old, or the address leads to another server by now."""
        for link in self._links:
            link.retire()

    def after_fork(self) -> None:
        """In a forked child: the connections are the parent's, and so may be the threads that used them."""
        links, self._links = self._links, [Link(self._server, self._op_timeout) for _ in self._links]
        for link in links:
            link.drop()

    def close(self) -> None:
        """Ends the connections, those in use with their last caller."""
        self._closed = True
        self._retire()


class Posted:
    """A `Confirmation`: a request that was sent, and whose reply may have come."""

    __slots__ = ("_link", "_proves", "_reading", "_request")

    def __init__(self, link: Link, request: Request, proves: float) -> None:
        self._link = link
        self._request = request
        self._proves = proves
        self._reading = allocate_lock()

    def outcome(self, patience: float) -> Renewal | None:
        """See `Confirmation`."""
        request, deadline = self._request, now() + patience
        # One at a time: else both would believe to lead.
        if not request.done and self._reading.acquire(timeout=patience):
            try:
                self._link.collect(request, deadline)
            finally:
                self._reading.release()
        if request.done and type(request.value) is int:
            return Renewal(LeaseState.HELD, self._proves) if request.value else Renewal(LeaseState.LOST)
        hopeless = request.done or request.gone or self._link.error is not None
        return Renewal(LeaseState.UNKNOWN) if hopeless else None


def _forgotten(value: Any) -> bool:
    """A server does not know the script."""
    return isinstance(value, NoScriptError) or (
        type(value) is list and any(isinstance(each, NoScriptError) for each in value)
    )
