"""One of several nodes: its connections, none of which ever blocks, and what it is still owed.

A connection answers in the order in which it was asked. So a reply that nobody waits for any more is no harm: it is
read and dropped when the connection is used next; and what is sent behind a request undoes it, however late the
node reads both.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Connection
from redis.exceptions import InvalidResponse, NoScriptError, RedisError

from ...base import BackendError, now
from .._connect import Server
from .._errors import mapped
from .._replies import Replies

__all__ = ("Bell", "Debt", "Dialer", "Dialling", "Link", "Node", "Slot", "Stream", "is_forgotten")

log = logging.getLogger("distlock")

LONGEST_IDLE = 60.0
"""Seconds. What is silent for longer some networks forget, without a word to either side."""

MOST_IDLE = 16
MOST_OWED = 64
"""Replies outstanding on a connection, above which it is not sent any more."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two attempts to connect."""

_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Stream:
    """A connection that was opened by redis-py, from then on without blocking. For one thread at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        link: Any = connection._sock  # redis-py says None until it is connected
        self._socket: socket.socket = link
        self._socket.setblocking(False)
        self._replies = Replies()
        self._out = b""

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    @property
    def is_full(self) -> bool:
        """What was written has not left yet: wait until there is room, and `flush`."""
        return bool(self._out)

    def write(self, data: bytes) -> None:
        """Sends it, or as much of it as there is room for."""
        self._out += data
        self.flush()

    def flush(self) -> None:
        """Sends more of what was written."""
        while self._out:
            try:
                sent = self._socket.send(self._out)
            except _LATER:
                return
            self._out = self._out[sent:]

    def read(self) -> list[Any]:
        """The values that have come; errors among them are exceptions. `OSError` once the connection has ended."""
        values: list[Any] = []
        ended = False
        while True:
            try:
                data = self._socket.recv(65536)
            except _LATER:
                break
            if not data:
                ended = True
                break
            values += self._feed(data)
            if len(data) < 65536 and not isinstance(self._socket, ssl.SSLSocket):
                break
        if ended and not values:
            raise ConnectionError("the server closed the connection")
        return values

    def _feed(self, data: bytes) -> list[Any]:
        try:
            values = self._replies.feed(data)
        except InvalidResponse as error:
            raise ConnectionError(str(error)) from error
        for value in values:
            if type(value) is ConnectionError:
                raise value
        return values

    def close(self) -> None:
        """Ends it; in a forked child without a word."""
        self._connection.disconnect()


def is_forgotten(reply: object) -> bool:
    """The node does not know the script: send it whole."""
    return isinstance(reply, NoScriptError)


@dataclass(frozen=True, slots=True)
class Debt:
    """A request that takes something back, and has to get through while ``until`` is not over."""

    name: tuple[str, ...]
    frame: bytes
    """With the whole script: nobody may be there to hear that the node does not know it."""
    until: float


class Slot:
    """The place of one reply."""

    __slots__ = ("debt", "is_done", "reply", "sent_at")

    def __init__(self, debt: Debt | None = None) -> None:
        self.debt = debt
        self.sent_at = now()
        self.is_done = False
        self.reply: Any = None

    @property
    def is_lost(self) -> bool:
        """Nobody knows whether the request was read; it may even be read later."""
        return not self.is_done or isinstance(self.reply, OSError)


class Link(Stream):
    """A connection for requests. For one thread at a time."""

    def __init__(self, connection: Connection, owe: Callable[..., object]) -> None:
        super().__init__(connection)
        self._owe = owe
        self._slots: deque[Slot] = deque()
        self.used_at: float = now()

    @property
    def owed(self) -> int:
        """Replies that have not come."""
        return len(self._slots)

    @property
    def silent_since(self) -> float:
        """When the oldest request without a reply was sent; `inf` if there is none."""
        return self._slots[0].sent_at if self._slots else float("inf")

    def send(self, frame: bytes, debt: Debt | None = None) -> Slot:
        """Where the reply will be."""
        slot = Slot(debt)
        self._slots.append(slot)
        self.used_at = slot.sent_at
        self.write(frame)
        return slot

    def receive(self) -> None:
        """Puts what has come where it belongs."""
        for value in self.read():
            slot = self._slots.popleft()
            slot.reply, slot.is_done = value, True
            if slot.debt is not None and isinstance(value, Exception):
                self._owe(slot.debt, cut_off=False)

    def fail(self, error: Exception) -> None:
        """Ends it: what was to be taken back over it is owed still."""
        self.close()
        while self._slots:
            slot = self._slots.popleft()
            slot.reply, slot.is_done = error, True
            if slot.debt is not None:
                self._owe(slot.debt, cut_off=True)


class Bell:
    """Wakes a thread that waits for sockets."""

    def __init__(self) -> None:
        self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(False)

    def fileno(self) -> int:
        """Readable once it has rung."""
        return self._ends[0].fileno()

    def ring(self) -> None:
        """From any thread."""
        with contextlib.suppress(OSError):  # it has rung often already, or is closed
            self._ends[1].send(b"!")

    def quiet(self) -> None:
        """Until it rings again."""
        with contextlib.suppress(OSError):
            self._ends[0].recv(4096)

    def close(self) -> None:
        for end in self._ends:
            end.close()


class Dialling(enum.Enum):
    """Whether someone is connecting, who will tell."""

    STARTED = "just now"
    ALREADY = "since a while"
    LATER = "no: it has failed a moment ago"


class Dialer:
    """Connects to one node, in a thread that ends with it: one at a time, and after a failure not at once again."""

    def __init__(
        self,
        server: Server,
        op_timeout: float,
        done: Callable[[Connection | None], object],
        go_on: Callable[[], bool] = lambda: False,
    ) -> None:
        """``done`` is given the connection, or None; ``go_on``: whether to try until there is one."""
        self._server = server
        self._op_timeout = op_timeout
        self._done = done
        self._go_on = go_on
        self._mutex = threading.Lock()
        self._busy = False
        self._resting = False
        self._hurry = threading.Event()
        self._pause = FIRST_PAUSE
        self._retry_at = 0.0
        self.error: BackendError | None = None
        """Why the last one failed; None while another one is on its way."""

    def start(self, *, at_once: bool = False, patient: bool = False) -> Dialling:
        """``at_once``: even if it has failed a moment ago; ``patient``: soon, and as often as it takes."""
        with self._mutex:
            early = now() < self._retry_at and not at_once
            if self._busy and not self._resting:
                return Dialling.ALREADY
            if early and not (patient and not self._busy):
                return Dialling.LATER
            if not early:
                self.error = None
            if self._busy:
                self._resting = False
                self._hurry.set()
                return Dialling.STARTED
            self._busy, self._resting = True, early
        try:
            threading.Thread(target=self._run, name="distlock-dial", daemon=True).start()
        except RuntimeError as error:  # no room for one more thread; or the interpreter is going down
            self._busy = self._resting = False
            self._fail(BackendError(f"cannot start a thread: {error}", backend=self._server.address))
            return Dialling.LATER
        return Dialling.LATER if early else Dialling.STARTED

    def close(self) -> None:
        """Ends the thread soon, if it only waits."""
        self._go_on = lambda: False
        self._hurry.set()

    def _run(self) -> None:
        while True:
            if self._resting:
                self._hurry.wait(max(0.0, self._retry_at - now()))
            with self._mutex:
                self._hurry.clear()
                self._resting = False
            connection = self._dial()
            with self._mutex:
                self._resting = connection is None and self._go_on()
                self._busy = self._resting
                ended = not self._busy
            self._done(connection)
            if ended:
                return

    def _dial(self) -> Connection | None:
        try:
            connection = self._server.connect(self._op_timeout, self._op_timeout)
        except (RedisError, OSError) as error:
            self._fail(mapped(error, self._server.address, sent=False))
        except Exception as error:
            log.exception("connecting to %s met a bug", self._server.address)
            self._fail(BackendError(f"connecting failed: {error}", backend=self._server.address))
        else:
            self.error, self._pause, self._retry_at = None, FIRST_PAUSE, 0.0
            return connection
        return None

    def _fail(self, error: BackendError) -> None:
        self._retry_at = now() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self.error = error


class Node:
    """Thread-safe."""

    def __init__(self, index: int, server: Server, op_timeout: float, greeting: Sequence[bytes] = ()) -> None:
        """``greeting``: requests to begin each connection with."""
        self.index = index
        self._greeting = greeting
        self.address: str = server.address
        self._server = server
        self._op_timeout = op_timeout
        self._closed = threading.Event()
        self._reset()

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        self._idle: deque[Link] = deque()
        self._bells: set[Bell] = set()
        self._debts: dict[tuple[str, ...], Debt] = {}
        self._dialer = Dialer(self._server, self._op_timeout, self._dialled, self._is_in_debt)

    @property
    def error(self) -> BackendError | None:
        """Why it could not be reached the last time."""
        return self._dialer.error

    def take(self) -> Link | None:
        """A connection that works as far as one can see, for this thread alone."""
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return None
            try:
                link.flush()
                link.receive()
                self._check(link)
                self._pay(link)
            except (OSError, ValueError) as error:
                link.fail(error)
            else:
                return link

    def give_back(self, link: Link) -> None:
        """It may have replies outstanding."""
        if self._closed.is_set() or len(self._idle) >= MOST_IDLE:
            link.fail(ConnectionError("closed"))
        else:
            self._idle.append(link)

    def dial(self, bell: Bell, *, at_once: bool) -> Dialling:
        """Rings when there may be a connection, or certainly is none."""
        with self._mutex:
            self._bells.add(bell)
        return self._dialer.start(at_once=at_once)

    def forget(self, bell: Bell) -> None:
        """It need not be rung."""
        with self._mutex:
            self._bells.discard(bell)

    def owe(self, debt: Debt, *, cut_off: bool) -> None:
        """``debt`` is paid when the node is next asked; if it is cut off, as soon as it is back."""
        if now() >= debt.until or self._closed.is_set():
            return
        with self._mutex:
            self._debts[debt.name] = debt
        if cut_off:
            self._dialer.start(patient=True)

    def close(self) -> None:
        """Drops the connections, and those in use when they come back."""
        self._closed.set()
        self._dialer.close()
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop().fail(ConnectionError("closed"))

    def after_fork(self) -> None:
        """In a forked child: what was inherited is dropped without a word, and owed by the parent."""
        while self._idle:
            self._idle.pop().close()
        self._reset()

    def _is_in_debt(self) -> bool:
        with self._mutex:
            self._debts = {name: debt for name, debt in self._debts.items() if now() < debt.until}
            return bool(self._debts) and not self._closed.is_set()

    def _check(self, link: Link) -> None:
        t = now()
        if t - link.silent_since > self._op_timeout:
            raise TimeoutError
        if link.owed == 0 and t - link.used_at > LONGEST_IDLE:
            raise ConnectionError("idle for too long")
        if link.owed > MOST_OWED or link.is_full:
            raise TimeoutError

    def _pay(self, link: Link) -> None:
        if self._debts:
            with self._mutex:
                debts, self._debts = self._debts, {}
            for debt in debts.values():
                if now() < debt.until:
                    link.send(debt.frame, debt)

    def _dialled(self, connection: Connection | None) -> None:
        if connection is not None:
            link = Link(connection, self.owe)
            try:
                for frame in self._greeting:
                    link.send(frame)
                self._pay(link)
            except OSError as error:
                link.fail(error)
            else:
                self.give_back(link)
        with self._mutex:
            bells = list(self._bells)
        for bell in bells:
            bell.ring()
