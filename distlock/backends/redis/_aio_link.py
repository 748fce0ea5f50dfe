"""One connection that all tasks of an event loop share: what they ask in one turn goes out in one write."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any

from redis.exceptions import InvalidResponse

from ..base import now
from ._connect import AsyncConnection
from ._link import LONGEST_SILENCE
from ._replies import Replies

__all__ = ("AsyncLink",)


_Asked = tuple["asyncio.Future[Any] | None", float, "list[Any] | None"]
"""A reply that is to come, wanted or not any more: the future that it ends, until when it is waited for, and the list
that it goes into if it is one of several, of which the last has the future."""


class AsyncLink(asyncio.Protocol):
    """For the tasks of the loop it was made in. Replies come in the order of the requests, and are told apart by it:
    a caller that went away leaves its place behind, which takes the reply that nobody wants any more."""

    def __init__(self, writer: asyncio.StreamWriter, idle_limit: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = writer  # collected, it would close the transport
        self._transport = writer.transport
        self._idle_limit = idle_limit
        self._replies = Replies()
        self._asked: deque[_Asked] = deque()
        self._out: list[bytes] = []
        self._paused = False
        self._alone = True
        self._timer: asyncio.TimerHandle | None = None
        self._alarm = math.inf
        self._since = now()
        """When it was last heard, or asked something while nothing was open."""
        self.last = False
        """To be ended as soon as all is answered."""
        self.lost: Exception | None = None
        """Why it is of no use any more."""
        self.proven = False
        """It was good once. If one breaks that was not, another will do no better."""

    @classmethod
    async def over(cls, connection: AsyncConnection, idle_limit: float) -> AsyncLink:
        """Takes over what redis-py has connected."""
        opened: Any = connection
        reader, writer = opened._reader, opened._writer
        ended = reader.at_eof()
        reader.feed_eof()  # so that reading suspends nothing
        early: bytes = await reader.read()
        if early or ended:  # a server that has too many clients says so unasked
            text = early.decode(errors="replace").strip()
            raise ConnectionError(text or "the server closed the connection")
        link = cls(writer, idle_limit)
        writer.transport.set_protocol(link)
        opened._reader = opened._writer = None
        return link

    def ask(self, frame: bytes, deadline: float, replies: int = 1) -> asyncio.Future[Any]:
        """The reply, or a list of so many.

        Errors are results too: those of the server, `TimeoutError` at ``deadline``, and `ConnectionError` or
        `InvalidResponse` if the link breaks before.
        """
        waiter: asyncio.Future[Any] = self._loop.create_future()
        asked = self._asked
        first = not asked
        if first:
            self._begin()
        if self.lost is not None:
            waiter.set_result(_another(self.lost))
            return waiter
        if replies == 1:
            asked.append((waiter, deadline, None))
        else:
            values: list[Any] = []
            asked.extend([(None, deadline, values)] * (replies - 1))
            asked.append((waiter, deadline, values))
        if deadline < self._alarm:
            self._arm(deadline)
        if first and self._alone and not self._paused:
            self._write(frame)
            return waiter
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame)
        return waiter

    def _begin(self) -> None:
        """After a silence."""
        t = now()
        if t - self._since >= self._idle_limit:
            self.proven = True
            self.close(ConnectionError("it was idle for too long"))
        self._since = t

    def close(self, error: Exception | None = None) -> None:
        """Ends it at once. TLS would take leave first, for which a loop that ends has no time."""
        if self.lost is not None:
            return
        self.lost = error or ConnectionError("the connection was closed")
        self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        self._out.clear()
        asked, self._asked = self._asked, deque()
        for waiter, _, _ in asked:
            if waiter is not None and not waiter.done():
                waiter.set_result(_another(self.lost))

    # What goes out.

    def _flush(self) -> None:
        if self._out and not self._paused:
            self._alone = len(self._asked) == 1  # then the next may go at once, without a turn of the loop
            frames = b"".join(self._out)
            self._out.clear()
            self._write(frames)

    def _write(self, frames: bytes) -> None:
        # What asyncio has seen die is not written to: its transport would break on that (before Python 3.12.2).
        if not self._transport.is_closing():
            self._transport.write(frames)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    # What comes in.

    def data_received(self, data: bytes) -> None:
        try:
            found = self._replies.feed(data)
        except InvalidResponse as error:
            self.close(error)
            return
        self._since = now()
        asked = self._asked
        for value in found:
            if type(value) is ConnectionError:  # in place of a welcome
                self.close(value)
            elif not asked:
                self.close(InvalidResponse("a reply that nobody asked for"))
            if self.lost is not None:
                return
            waiter, _, values = asked.popleft()
            if values is not None:
                values.append(value)
                value = values
            if waiter is not None and not waiter.done():
                waiter.set_result(value)
            self.proven = True
        if self.last and not asked:
            self._loop.call_soon(self._finish)  # who has just got a reply may have more to ask

    def _finish(self) -> None:
        if not self._asked:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(ConnectionError(str(exc or "the server closed the connection")))

    # What takes too long.

    def _arm(self, deadline: float) -> None:
        """One timer for all: it is set for the earliest deadline, and what comes later finds it set."""
        if self._timer is not None:
            self._timer.cancel()
        self._alarm = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - now()), self._expire)

    def _expire(self) -> None:
        self._timer, self._alarm = None, math.inf
        t = now()
        for waiter, deadline, _ in self._asked:
            if deadline > t:
                self._alarm = min(self._alarm, deadline)
            elif waiter is not None and not waiter.done():
                waiter.set_result(TimeoutError("the server did not answer in time"))
        if any(deadline <= t for _, deadline, _ in self._asked) and t - self._since >= LONGEST_SILENCE:
            self.close(ConnectionError("the server does not answer"))
        elif self._alarm < math.inf:
            self._arm(self._alarm)


def _another(error: Exception) -> Exception:
    """Each caller gets its own: raising one writes to it."""
    return type(error)(*error.args)
