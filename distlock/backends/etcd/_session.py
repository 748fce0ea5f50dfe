"""The leases under which keys stand, and how they are kept alive.

One lease for all claims of the same ttl, and one stream for all leases. The answers to what is sent on it come in
order for each lease, which is how an answer is known to belong to a request: what a lease is good for counts from
when that was sent.
"""

from __future__ import annotations

import logging
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from .._clerk import Clerk
from ..base import BackendError, BackendUnavailable, DistLockError, Unsupported, now, proven_until
from ._client import Client
from ._errors import LeaseNotFound
from ._rpc import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, LEASE_TIME_TO_LIVE, pb
from ._stream import Stream
from ._turns import Turn, Turns

__all__ = ("Session", "Sessions")

log = logging.getLogger("distlock")

SILENT = 0.5
"""Seconds without an answer, after which the stream is opened anew, at another member perhaps."""
LONGEST_PAUSE = 0.5
TIDYING = 1.0
"""Seconds for a request of which only tidiness depends: the lease ends by itself, too."""


class Session:
    """A lease. Whether it is alive is said by the clock; ``ended`` by the server."""

    __slots__ = (
        "__weakref__",
        "checked_at",
        "ended",
        "id",
        "looked_at",
        "looking",
        "pending",
        "sent_at",
        "tended",
        "ttl",
        "waiters",
    )

    def __init__(self, lease: int, ttl: int, sent_at: float) -> None:
        self.id = lease
        self.ttl = ttl
        """Seconds."""
        self.sent_at = sent_at
        """When the last request was sent that has been answered."""
        self.checked_at = sent_at
        """When its keys were found to be there."""
        self.looked_at = 0.0
        """When it was last asked whether what its waiters wait for is there."""
        self.looking = False
        """That is still to be done."""
        self.pending: deque[float] = deque()
        """When those were sent that have not."""
        self.ended = False
        self.waiters: set[str] = set()
        """The claims that wait under it: while there are any it is kept alive here, else by the core's watchdog."""
        self.tended = False

    def proves(self, asked_at: float, ttl: float) -> float:
        """Until when a key under it is proven to be there, of which ``ttl`` seconds from ``asked_at`` are wanted."""
        return min(proven_until(self.sent_at, self.ttl), proven_until(asked_at, ttl))

    def stale_after(self, ttl: float) -> float:
        """Seconds after which an answer is too old for a lock of ``ttl``: so long that a second try, soon after the
        first, asks nothing, and shorter than the watchdog's interval."""
        return max(self.ttl - ttl, min(self.ttl, ttl) / 6)

    def alive(self, t: float) -> bool:
        """Proven to be there."""
        return not self.ended and t < proven_until(self.sent_at, self.ttl)


class Sessions:
    """Thread-safe. ``on_end`` is told of a lease that the server does not know any more; ``look``, which may not
    block, is to have a second look for those who wait under one."""

    def __init__(
        self,
        client: Client,
        clerk: Clerk,
        tidier: Clerk,
        on_end: Callable[[Session], None],
        on_silence: Callable[[], None],
        look: Callable[[Session], None],
    ) -> None:
        self._client = client
        self._clerk = clerk
        self._tidier = tidier
        self._on_end = on_end
        self._on_silence = on_silence
        self._look = look
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: the leases are the parent's."""
        self._mutex = threading.RLock()  # see `Clerk`
        self._changed = threading.Condition(self._mutex)
        self._making = Turns()
        self._current: dict[int, Session] = {}
        # Those that someone holds on to. One of which that is not so ends by itself.
        self._known: weakref.WeakValueDictionary[int, Session] = weakref.WeakValueDictionary()
        self._doomed: set[int] = set()
        """Leases that are to be revoked."""
        self._stream: Stream[pb.LeaseKeepAliveRequest] | None = None
        self._turn = object()  # of the stream; what an older one says counts no more
        self._not_before = 0.0
        self._pause = 0.0
        self._closed = False

    # Leases.

    def get(self, ttl: int, deadline: float, *, exact: bool = True) -> Session:
        """The lease that all claims of ``ttl`` share. ``exact``: not a longer one, which a server may insist on."""
        session = self._current.get(ttl)
        if session is None or not session.alive(now()):
            session = self._renewed(ttl, deadline)
        if exact and session.ttl > ttl:
            raise self._too_short(ttl, session.ttl)
        return session

    def peek(self, ttl: int) -> Session | None:
        """The same, if it is there already."""
        session = self._current.get(ttl)
        return session if session is not None and session.alive(now()) else None

    def _renewed(self, ttl: int, deadline: float) -> Session:
        turn = Turn()
        if not self._making.take(ttl, turn, deadline):  # another thread is at it: one lease, not two
            raise self._unanswered("the lease of a session was not granted in time", sent=False)
        try:
            session = self._current.get(ttl)
            if session is None or not session.alive(now()):
                session = self._current[ttl] = self.make(ttl, deadline)
            return session
        finally:
            self._making.leave(ttl, turn)

    def make(self, ttl: int, deadline: float) -> Session:
        """A lease of one's own; at least ``ttl`` seconds long."""
        while True:
            try:
                return self._make(ttl, deadline)
            except BackendError as error:
                if "lease already exists" not in str(error):
                    raise
                # Sent twice, and granted the first time, for a length that was not said: given back by now.

    def _make(self, ttl: int, deadline: float) -> Session:
        lease = secrets.randbits(62) | 1 << 61  # ours to choose: known even if the answer is lost
        sent_at = now()
        self._check_open()
        try:
            granted = self._client.call(LEASE_GRANT, pb.LeaseGrantRequest(ttl=ttl, id=lease), deadline).value.ttl
            self._check_open()
        except BaseException as error:
            if not isinstance(error, BackendUnavailable) or error.sent:
                self.revoke_soon(lease)
            raise
        session = self._known[lease] = Session(lease, granted, sent_at)
        return session

    def make_exact(self, ttl: int, deadline: float) -> Session:
        """A lease of one's own, of that length; `Unsupported` if the server insists on a longer one."""
        session = self.make(ttl, deadline)
        if session.ttl > ttl:
            self.forget(session)
            raise self._too_short(ttl, session.ttl)
        return session

    def retire(self, session: Session) -> None:
        """No new claim gets it; it ends when those that have it do."""
        with self._mutex:
            for ttl, current in list(self._current.items()):
                if current is session:
                    del self._current[ttl]

    def forget(self, session: Session) -> None:
        """Nobody needs it any more: it is revoked in the background."""
        self._known.pop(session.id, None)
        if not session.ended:
            session.ended = True  # for whoever looks at it still: no answer is taken for it any more
            self.revoke_soon(session.id)

    def revoke_soon(self, lease: int) -> None:
        """In the background. What the server does not hear of ends with its ttl."""

        def revoke() -> None:
            with suppress(DistLockError):
                self._client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease), now() + TIDYING)
            self._doomed.discard(lease)

        self._doomed.add(lease)
        if self._closed:  # the tidier does nothing any more
            revoke()
        else:
            self._tidier.soon(revoke)

    def revoke(self, session: Session, deadline: float) -> None:
        """Its keys are gone then, and what comes late under it comes to nothing."""
        with suppress(LeaseNotFound):
            if not session.ended:
                self._client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=session.id), deadline)
        self._end(session)

    def keys(self, session: Session, deadline: float) -> set[bytes]:
        """What stands under it; by a member that may be a moment behind."""
        request = pb.LeaseTimeToLiveRequest(id=session.id, keys=True)
        return set(self._client.call(LEASE_TIME_TO_LIVE, request, deadline).value.keys)

    def close(self, deadline: float) -> None:
        """Revokes what is left, whose keys end with it."""
        self._closed = True
        self._making.settle(deadline)  # who is at it sees to its own
        with self._mutex:
            left = {session.id for session in list(self._known.values()) if not session.ended} | self._doomed
            self._known.clear()
            self._current.clear()
            self._drop_stream()
            self._changed.notify_all()
        for lease in left:
            with suppress(DistLockError):
                self._client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease), deadline)

    # Keeping them alive.

    def ask(self, session: Session, since: float) -> None:
        """Asks for the whole ttl from now on, unless that was sent at ``since`` or later. Does not wait."""
        with self._mutex:
            t = now()
            if session.ended or self._closed or session.sent_at >= since:
                return
            if session.pending and session.pending[-1] >= since:
                return
            if self._stream is None and not self._open(t):
                return
            assert self._stream is not None
            try:
                session.pending.append(t)
                self._stream.send(pb.LeaseKeepAliveRequest(id=session.id))
            except BaseException:  # Ctrl-C between the two: every later answer would be taken for the one before it
                self._drop_stream()
                raise

    def prove(self, session: Session, since: float, deadline: float) -> bool:
        """Until what was asked at ``since`` or later is answered. False: the lease has ended."""
        with self._mutex:
            while session.sent_at < since and not session.ended:
                self.ask(session, since)
                left = deadline - now()
                if left <= 0:
                    self._drop_if_silent(session)
                    raise self._unanswered("a session's lease was not renewed in time", sent=True)
                self._check_open()
                # Without a stream for as long as it is not to be opened again.
                pause = self._not_before - now() if self._stream is None else left
                self._changed.wait(min(left, max(pause, 0.001)))
        return not session.ended

    def tend(self, session: Session) -> None:
        """Keeps it alive while someone waits under it, and looks as often whether what they wait for is there."""
        with self._mutex:
            if not session.tended:
                session.tended = True
                session.looked_at = now()
                self._clerk.at(session.sent_at + session.ttl / 3, partial(self._tend, session))

    def _tend(self, session: Session) -> None:
        silent = look = False
        with self._mutex:
            if session.ended or self._closed or not session.waiters:
                session.tended = False
                return
            t = now()
            if session.pending and t - session.pending[0] >= session.ttl / 6:
                silent = True
                self._drop_stream()
            due = session.sent_at + session.ttl / 3
            if due <= t:
                self.ask(session, t)
                # Looked after soon, so that there is time for another try.
                due = t + session.ttl / 6
            if look := session.looked_at + session.ttl / 3 <= t:
                session.looked_at = t
            self._clerk.at(min(due, session.looked_at + session.ttl / 3), partial(self._tend, session))
        if silent:
            self._on_silence()
        if look:
            self._look(session)

    # The stream. With the mutex.

    def _open(self, t: float) -> bool:
        if t < self._not_before:
            return False
        self._turn = turn = object()
        try:
            self._stream = self._client.stream(
                LEASE_KEEP_ALIVE, partial(self._answered, turn), partial(self._broke, turn)
            )
        except BackendError as error:
            self._put_off(error)
            return False
        return True

    def _put_off(self, error: BackendError | None) -> None:
        log.debug("the stream of keep-alives ended: %s", error)
        self._stream = None
        self._turn = object()
        self._not_before = now() + self._pause
        self._pause = min(max(0.02, 2 * self._pause), LONGEST_PAUSE)
        for session in list(self._known.values()):
            session.pending.clear()
        self._changed.notify_all()

    def _drop_stream(self) -> None:
        stream = self._stream
        if stream is not None:
            self._put_off(None)
            stream.fail()

    def _drop_if_silent(self, session: Session) -> None:
        if session.pending and now() - session.pending[0] >= SILENT:
            self._drop_stream()

    # What the driver calls, in a thread of its own.

    def _answered(self, turn: object, reply: pb.LeaseKeepAliveResponse) -> None:
        with self._mutex:
            session = self._known.get(reply.id)
            if turn is not self._turn or session is None or not session.pending:
                return
            sent_at = session.pending.popleft()
            self._pause = 0.0
            if reply.ttl > 0:
                session.sent_at = max(session.sent_at, sent_at)
                self._changed.notify_all()
                return
        self._end(session)

    def _broke(self, turn: object, error: BackendError | None) -> None:
        with self._mutex:
            if turn is self._turn:
                self._put_off(error)

    def _end(self, session: Session) -> None:
        with self._mutex:
            known = not session.ended
            session.ended = True
            self._known.pop(session.id, None)
            self._changed.notify_all()
        if known:
            self._on_end(session)

    # Errors.

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(f"this manager was closed [{self._client.address}]", backend=self._client.address)

    def _unanswered(self, what: str, *, sent: bool) -> BackendUnavailable:
        return BackendUnavailable(f"{what} [{self._client.address}]", backend=self._client.address, sent=sent)

    def _too_short(self, ttl: int, least: int) -> Unsupported:
        return Unsupported(
            f"this etcd grants no lease of {ttl} s but one of {least} s, which its election timeout makes the least:"
            f" use a ttl of {least} or more [{self._client.address}]",
            backend=self._client.address,
        )
