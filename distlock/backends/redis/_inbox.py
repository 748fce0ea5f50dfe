"""How a process waits: one subscribed connection for all its waiters, and one request now and then.

Messages are hints. What a lost one would have said is found by the refresh, which every third of a ttl keeps
the places in the queues, and runs at the very moment at which a holder that died would lose its lock.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import selectors
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from redis import Connection
from redis.exceptions import RedisError

from ..base import PROVISIONAL, Busy, Claim, DistLockError, Subscription, Wake, now
from ._connect import Server, mapped
from ._scripts import command

__all__ = ("Inbox",)

log = logging.getLogger("distlock")

Refresh = Callable[[bytes, Mapping[str, Sequence[str]]], Mapping[str, tuple[int, Sequence[str]]]]
"""Sends an echo to the channel and keeps the places of claims, by key; gives, by key, the ms until the lock ends and
the claims to wake."""

NOT_LISTENING = b"-"
SLACK = 0.002
LONGEST_PAUSE = 1.0
ECHO = 1.0
"""Seconds that a message of our own may take to come back."""


@dataclass(slots=True)
class _Waiting:
    claim: Claim
    wake: Wake | None = None
    free_at: float = math.inf
    woken: bool = False


class Inbox:
    """Thread-safe. Connects when the first claim has to wait, and stays connected until `close`."""

    def __init__(self, server: Server, namespace: str, op_timeout: float, refresh: Refresh) -> None:
        self._server = server
        self._namespace = namespace
        self._op_timeout = op_timeout
        self._refresh = refresh
        self._reset()

    def _reset(self) -> None:
        self._channel = f"distlock:{self._namespace}:inbox:{secrets.token_hex(8)}".encode()
        self._mutex = threading.Lock()
        self._starting = threading.Lock()
        self._waiting: dict[str, _Waiting] = {}
        self._listening = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._refreshed_at = 0.0
        self._due = math.inf  # the thread sleeps no longer; when all is reckoned up, it may turn out to be later
        self._echo_due = math.inf

    # Called by whoever acquires.

    @property
    def listening(self) -> bool:
        """A message sent now would be received."""
        return self._listening

    def expect(self, claim: Claim) -> bytes:
        """The channel to queue ``claim`` with; from now on news of it is kept for its watch."""
        if self._listening:
            with self._mutex:
                if self._listening:  # else the thread may have ended: it has seen nobody waiting
                    self._entry(claim)
                    return self._channel
        return NOT_LISTENING

    def forget(self, claim_id: str) -> None:
        """No news of this claim is wanted."""
        if self._waiting:
            with self._mutex:
                self._waiting.pop(claim_id, None)

    def forget_unwatched(self, claim_id: str) -> None:
        """The request that `expect` prepared came to nothing."""
        with self._mutex:
            if (waiting := self._waiting.get(claim_id)) and waiting.wake is None:
                del self._waiting[claim_id]

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        """Wakes when asking again may help: at once if the claim is not in the queue yet."""
        with self._mutex:
            queued = busy.claim.id in self._waiting
            waiting = self._entry(busy.claim)
            waiting.wake = wake
            woken = waiting.woken
        watch = _Watch(self, busy.claim.id)
        try:
            self._start(deadline)
        except BaseException:
            watch.close()
            raise
        self.ends_in(busy)
        if woken or not queued:
            wake()
        return watch

    def _entry(self, claim: Claim) -> _Waiting:
        if not self._waiting:
            self._refreshed_at = now()  # there was no place to keep before
        return self._waiting.setdefault(claim.id, _Waiting(claim))

    def ends_in(self, busy: Busy) -> None:
        """Notes when the lock ends by itself."""
        ttl = None if busy.holder is None else busy.holder.ttl
        with self._mutex:
            waiting = self._waiting.get(busy.claim.id)
            if waiting is None:
                return
            waiting.free_at = math.inf if ttl is None else now() + ttl + SLACK
            due = min(waiting.free_at, self._refreshed_at + waiting.claim.ttl / 3)
            sooner = due < self._due
            if sooner:
                self._due = due
        if sooner:
            self._ring()

    def close(self) -> None:
        """Ends the thread and its connection. Who still waits is woken, to find that out."""
        self._closed = True
        self._listening = False
        self._ring()
        self._wake(list(self._waiting))
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._op_timeout)

    def after_fork(self) -> None:
        """In a forked child: the inherited sockets are closed without a word to the server."""
        if self._connection is not None:
            self._connection.disconnect()  # redis-py shuts a socket down only in the process that opened it
        for end in self._bell or ():
            end.close()
        self._reset()

    # Connecting.

    def _start(self, deadline: float) -> None:
        if self._listening:
            return
        if not self._starting.acquire(timeout=max(0.0, deadline - now())):
            raise mapped(TimeoutError(), self._server.address, sent=False)
        try:
            # A thread that is there but not listening reconnects, and will tell its waiters.
            if self._thread is None and not self._closed:
                self._connection = self._subscribe(deadline - now())
                self._bell = socket.socketpair()
                for end in self._bell:
                    end.setblocking(False)
                self._listening = True
                self._thread = threading.Thread(
                    target=self._run, args=(self._connection, self._bell), name="distlock-inbox", daemon=True
                )
                self._thread.start()
        finally:
            self._starting.release()

    def _subscribe(self, timeout: float) -> Connection:
        timeout = max(0.01, min(timeout, self._op_timeout))
        connection: Connection | None = None
        try:
            connection = self._server.connect(timeout, self._op_timeout)
            connection.send_packed_command([command(b"SUBSCRIBE", self._channel)], check_health=False)
            if not connection.can_read(timeout):
                raise TimeoutError
            connection.read_response()
        except BaseException as error:
            if connection is not None:
                connection.disconnect()
            if isinstance(error, (RedisError, OSError)):
                raise mapped(error, self._server.address, sent=False) from error
            raise
        return connection

    # What the thread does.

    def _run(self, connection: Connection | None, bell: tuple[socket.socket, socket.socket]) -> None:
        # It ends what it was given or made itself: when nobody waits any more, the next thread may start already.
        try:
            while connection is not None and not self._closed:
                try:
                    self._listen(connection, bell[0])
                except Exception as error:  # whatever it is, who waits must not be left alone
                    expected = isinstance(error, (RedisError, OSError))
                    log.log(
                        logging.INFO if expected else logging.ERROR,
                        "the connection that brings wake-ups broke: %s",
                        error,
                        exc_info=not expected,
                    )
                    connection.disconnect()
                    connection = self._reconnect(bell[0])
        finally:
            for end in bell:
                end.close()
            if connection is not None:
                connection.disconnect()

    def _listen(self, connection: Connection, bell: socket.socket) -> None:
        due = self._due
        # TLS may have decrypted more than one message: ask the connection before the socket.
        if not connection.can_read(0):
            timeout = None if due == math.inf else max(0.0, due - now())
            _readable(connection._sock, bell, timeout=timeout)
        with contextlib.suppress(BlockingIOError):
            bell.recv(4096)
        while connection.can_read(0):
            self._receive(connection.read_response(disable_decoding=True))
        if not self._closed and now() >= due:
            with self._mutex:
                self._due = due = self._next_due()
            if now() >= due:
                self._refresh_all()

    def _receive(self, message: object) -> None:
        if not isinstance(message, list) or message[0] != b"message":
            return
        kind, _, claim_id = message[2].decode(errors="replace").partition(" ")
        if kind == "e":
            self._echo_due = math.inf
            return
        if kind in ("g", "s"):  # granted, or to stand by: if nobody confirms it, the lock is free in a moment
            with self._mutex:
                if waiting := self._waiting.get(claim_id):
                    waiting.free_at = now() + PROVISIONAL + SLACK
                    self._due = min(self._due, waiting.free_at)
        if kind in ("g", "w"):
            self._wake([claim_id])

    def _refresh_all(self) -> None:
        if now() >= self._echo_due:  # half open: the server thinks that it reaches us
            raise OSError("no message came through since the last refresh")
        with self._mutex:
            self._refreshed_at = now()
            by_key: dict[str, list[str]] = {}
            for waiting in self._waiting.values():
                by_key.setdefault(waiting.claim.key, []).append(waiting.claim.id)
                waiting.free_at = math.inf
        if not by_key:
            return
        self._echo_due = min(self._echo_due, now() + ECHO)
        try:
            found = self._refresh(self._channel, by_key)
        except DistLockError as error:
            log.info("keeping the place in the queue failed: %s", error)
            self._wake([one for ids in by_key.values() for one in ids])  # each finds out for itself what is wrong
            return
        t = now()
        with self._mutex:
            for waiting in self._waiting.values():
                pttl, _ = found.get(waiting.claim.key, (-1, ()))
                if pttl >= 0:  # not later than what was learnt while the answer was on its way
                    waiting.free_at = min(waiting.free_at, t + pttl / 1000 + SLACK)
        self._wake([one for _, ids in found.values() for one in ids])

    def _next_due(self) -> float:
        if not self._waiting:
            return math.inf
        third = min(waiting.claim.ttl for waiting in self._waiting.values()) / 3
        return min(self._refreshed_at + third, min(waiting.free_at for waiting in self._waiting.values()))

    def _wake(self, claim_ids: Sequence[str]) -> None:
        with self._mutex:
            found = [self._waiting[one] for one in claim_ids if one in self._waiting]
            for waiting in found:
                waiting.woken = True
        for waiting in found:
            if waiting.wake is not None:
                waiting.wake()

    def _reconnect(self, bell: socket.socket) -> Connection | None:
        """None: nobody waits any more, the thread ends."""
        pause = 0.05
        self._due = -math.inf  # no need to ring meanwhile
        while not self._closed:
            with self._mutex:
                self._listening = False
                claim_ids = list(self._waiting)
                if not claim_ids:
                    self._thread = None
                    return None
            try:
                self._connection = connection = self._subscribe(self._op_timeout)
            except DistLockError:
                self._wake(claim_ids)  # they ask, and learn of the outage
                _readable(bell, timeout=pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self._echo_due = math.inf
            self._listening = True
            self._refresh_all()  # finds what was said while nobody listened
            return connection
        return None

    def _ring(self) -> None:
        if self._bell is not None:
            with contextlib.suppress(OSError):
                self._bell[1].send(b"!")


class _Watch:
    __slots__ = ("_claim_id", "_inbox")

    def __init__(self, inbox: Inbox, claim_id: str) -> None:
        self._inbox = inbox
        self._claim_id = claim_id

    def close(self) -> None:
        self._inbox.forget(self._claim_id)


def _readable(*sockets: socket.socket | None, timeout: float | None) -> None:
    """Until one has something to read. Not select(2), which ends at 1024 files."""
    with selectors.DefaultSelector() as selector:
        for each in sockets:
            if each is not None:
                selector.register(each, selectors.EVENT_READ)
        selector.select(timeout)
