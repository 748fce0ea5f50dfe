"""One connection for all threads: who comes while nobody leads does, and writes and reads for the others too.

A thread that leads writes its own request and those that are queued, hands out the replies, and steps down when its
own has come; then it wakes one that still waits, to lead on. Requests are written in the order in which they came.

Any bytecode may be the last (Ctrl-C), which is why nothing here is locked. To lead is an entry in a dictionary, made in
one step with the name of who made it: who is torn out of its work can tell whether it led, and breaks the connection
then. A request leaves a list only when it is on the next one, or its caller has been woken.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections import deque
from contextlib import suppress
from typing import Any

from redis import exceptions
from redis.exceptions import InvalidResponse, RedisError

from ..base import now
from ._connect import Target
from ._wire import NOTHING, Late, Wire

__all__ = ("LONGEST_SILENCE", "Broken", "Link", "Nested", "Request")

TIMEOUTS = TimeoutError, exceptions.TimeoutError
LONGEST_SILENCE = 0.2
"""Seconds. A caller with less time than that may run out of it on a connection that is merely slow."""


class Broken(Exception):
    """The connection ended under another thread's hands; if that is why it did, by no fault of the network."""


class Nested(Exception):
    """This very thread leads: a signal's handler, or a finaliser, has come in between."""


class Request:
    """A request of one thread, on one connection."""

    sent = False
    """A part of it may have reached the server."""
    gone = False
    """Nobody waits for its reply any more."""
    done = False
    value: Any = None
    frame = b""
    replies = 1
    connected = False
    """Its thread has connected for it."""
    heard: int | None = None
    """How much had been heard of the server when it was queued."""
    parked: Any = None
    """A lock that its thread sleeps on; None if that never has to."""
    thread = 0


class Link:
    """Thread-safe. Connects when it is first used."""

    def __init__(self, server: Target, op_timeout: float, *, retired: bool = False) -> None:
        self._server = server
        self._op_timeout = op_timeout
        self.lead: dict[int, Request] = {}
        """Who leads, if anybody does."""
        self._queue: deque[Request] = deque()  # to be written
        self._sent: deque[Request] = deque()  # to be answered; changed by who leads
        self._wire: Wire | None = None
        self._heard = 0
        self.connected = False
        self.used_at = now()
        self.retired = retired
        """It is not for newcomers, and ends with its last caller."""
        self.error: Exception | None = None
        """Why it ended."""
        self.successor: dict[int, Link] = {}

    def ask(self, me: Request, frame: bytes, began: float, deadline: float, replies: int) -> Any:
        """The reply, or a list of so many replies. Errors of the server are given, not raised.

        A timeout is this caller's alone. Any other error has ended the connection.
        """
        me.thread = get_ident()
        lead = self.lead
        try:
            if lead.setdefault(0, me) is me and not self._queue and replies == 1 and (wire := self._wire) is not None:
                me.sent = True
                self.used_at = began
                if self._sent:
                    wire.write(frame, deadline - began)
                    value = self._rest(me, wire, deadline)
                else:
                    value = wire.ask(frame, deadline - began)
                    if value is NOTHING:
                        value = self._rest(me, wire, deadline)
            else:
                value = self._in_turn(me, frame, deadline, replies)
            if lead.get(0) is me:
                del lead[0]
                if self._queue or self._sent or self.retired:
                    self._pass_on()
            return value
        except BaseException as error:
            try:
                self._leave(me, error, now() - began)
            finally:
                if lead.get(0) is me:  # torn out of that as well
                    del lead[0]
            raise

    def post(self, me: Request, frame: bytes, deadline: float) -> bool:
        """Sends a request whose reply is read by whoever reads next, or by `collect`. False: there is no connection."""
        if self._wire is None or self.retired:
            return False
        me.thread, me.frame = get_ident(), frame
        try:
            self._queue.append(me)
            self._flush(deadline)
            self._pass_on()
        except BaseException as error:  # perhaps between two that were to lead
            self._leave(me, error)
            raise
        return self.error is None

    def _flush(self, deadline: float) -> None:
        """Writes what is queued, for which perhaps nobody waits; unless somebody leads, who will."""
        while self._queue and self.error is None and self._writes(deadline):
            pass

    def _writes(self, deadline: float) -> bool:
        """One turn of `_flush`. False: the next one would do nothing."""
        # No loop in here: the jump at its end may be outside of what `try` protects, and is where Ctrl-C comes out.
        me = Request()
        me.thread = get_ident()
        try:
            if self.lead.setdefault(0, me) is not me:
                return False
            wire = self._wire
            if wire is not None:
                self._write(wire, deadline)
            del self.lead[0]
            return wire is not None  # else not posted: who waits for it connects
        except BaseException as error:
            if self.lead.get(0) is me:
                self._end(_blamed(error))
            if not isinstance(error, (RedisError, OSError)):
                raise
            return False
        finally:
            if self.lead.get(0) is me:
                del self.lead[0]

    def collect(self, me: Request, deadline: float) -> None:
        """Waits for the reply to what was posted. One thread at a time for each."""
        try:
            me.thread = get_ident()
            me.parked = parked = allocate_lock()
            parked.acquire()
            while not me.done and self.error is None and not me.gone:
                leader = self.lead.setdefault(0, me)
                if leader is me:
                    with suppress(Late):
                        if self._queue and self._wire is not None:  # of others, whose frames are not to be torn
                            self._write(self._wire, now() + self._op_timeout)
                        self._serve(me, deadline)
                    del self.lead[0]
                    break
                if leader.thread == me.thread or not parked.acquire(True, _seconds(deadline)):
                    break
            me.parked = None
            self._pass_on()
        except BaseException as error:
            try:
                self._leave(me, error)
            finally:
                if self.lead.get(0) is me:
                    del self.lead[0]
            if not isinstance(error, (RedisError, OSError, Broken)):
                raise

    @property
    def crowded(self) -> bool:
        """More than one request is on its way."""
        return bool(self._queue or self._sent)

    def retire(self) -> None:
        """No newcomers any more."""
        self.retired = True
        self._pass_on()

    def drop(self) -> None:
        """In a forked child."""
        if self._wire is not None:
            self._wire.close()

    def _rest(self, me: Request, wire: Wire, deadline: float) -> Any:
        self._sent.append(me)
        self._read(me, wire, deadline)
        return me.value

    def _in_turn(self, me: Request, frame: bytes, deadline: float, replies: int) -> Any:
        me.frame, me.heard = frame, self._heard
        if replies != 1:
            me.replies, me.value = replies, []
        me.parked = parked = allocate_lock()
        parked.acquire()
        self._queue.append(me)
        while not me.done:
            if self.error is not None and not me.done:
                raise Broken
            leader = self.lead.setdefault(0, me)
            if leader is me:
                self._serve(me, deadline)
            elif leader.thread == me.thread:
                raise Nested
            elif not parked.acquire(True, _seconds(deadline)) and not me.done:
                raise Late
        return me.value

    def _serve(self, me: Request, deadline: float) -> None:
        if me.done:
            return
        if self.error is not None:
            raise Broken
        wire = self._wire
        if wire is None:
            try:
                connection = self._server.connect(_seconds(deadline), self._op_timeout)
            except TIMEOUTS as error:
                raise Late from error
            me.connected = self.connected = True
            self._wire = wire = Wire(connection, self._op_timeout)
        self._read(me, wire, deadline)

    def _read(self, me: Request, wire: Wire, deadline: float) -> None:
        """Leads until its own reply has come."""
        while not me.done:
            if self._queue:
                self._write(wire, deadline)
            wire.receive(deadline)
            self._heard += 1
            self._hand_out(wire)

    def _write(self, wire: Wire, deadline: float) -> None:
        queue, sent, frames = self._queue, self._sent, []
        while queue:
            first = queue[0]
            if not first.gone:
                first.sent = True
                sent.append(first)
                frames.append(first.frame)
            queue.popleft()
        self.used_at = began = now()
        wire.write(b"".join(frames), deadline - began)

    def _hand_out(self, wire: Wire) -> None:
        sent = self._sent
        while (value := wire.reply()) is not NOTHING:
            if not sent:
                raise InvalidResponse("a reply to nothing")
            first = sent[0]
            if first.replies == 1:
                first.value = value
            else:
                first.value.append(value)
                if len(first.value) < first.replies:
                    continue
            first.done = True
            _wake(first)
            sent.popleft()

    def _leave(self, me: Request, error: BaseException, waited: float = 0.0) -> None:
        """``me`` gives up: late, with the connection, or torn out of it."""
        me.gone = True
        late = isinstance(error, Late)
        silent = late and me.heard in (None, self._heard)
        if silent:
            self.retired = True
        if self.lead.get(0) is me:
            # Who came later would spend as long in vain on a silent connection, and is to try another instead.
            if not late or (silent and waited >= LONGEST_SILENCE) or (self._wire is not None and self._wire.torn):
                self._end(_blamed(error))
            elif me.heard is None and me not in self._sent:
                self._sent.append(me)  # the reply may come
            del self.lead[0]
        self._pass_on()

    def _end(self, error: Exception) -> None:
        self.error = self.error or error
        self.retired = True
        for each in (*self._sent, *self._queue):
            _wake(each)
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def _wake_thread_of(self, request: Request) -> None:
        """A thread may wait twice: a signal's handler, in the midst of a request, makes one of its own."""
        for each in (*self._sent, *self._queue):
            if each is request or (each.thread == request.thread and not each.gone):
                _wake(each)

    def _pass_on(self) -> None:
        """Nobody leads: wakes one that waits. The last has the longest to lead."""
        if self.lead:
            return
        if self._woken():
            return
        while self._queue and self._wire is not None and self.error is None:  # posted: nobody waits for it
            self._flush(now() + self._op_timeout)
            if self.lead or self._woken():  # who came meanwhile waits for us
                return
        if self.retired and self.error is None:
            me = Request()
            me.thread = get_ident()
            try:
                if self.lead.setdefault(0, me) is me:
                    self._end(Broken())
            finally:
                if self.lead.get(0) is me:
                    del self.lead[0]

    def _woken(self) -> bool:
        """Wakes one that waits; False if nobody does."""
        try:
            for waiting in (self._sent, self._queue):
                for each in reversed(waiting):
                    if not each.gone and each.parked is not None:
                        self._wake_thread_of(each)
                        return True
        except RuntimeError:  # it changed meanwhile: somebody leads already
            return True
        return False


def _blamed(error: BaseException) -> Exception:
    """What the others are told: the network's fault, or one that was none of theirs."""
    if isinstance(error, (RedisError, OSError)) and not isinstance(error, TIMEOUTS):
        return error
    return Broken()


def _seconds(deadline: float) -> float:
    left = deadline - now()
    return left if left > 0.0 else 0.0


def _wake(request: Request) -> None:
    if request.parked is not None:
        try:  # noqa: SIM105 - ten times as fast
            request.parked.release()
        except RuntimeError:  # it is awake
            pass
