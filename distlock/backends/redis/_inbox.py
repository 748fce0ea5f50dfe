"""How a process waits: one subscribed connection for all its waiters, and one request now and then.

Whoever waits in a thread of its own listens to it for all, one at a time: so the news need not go from thread to
thread. For tasks of an event loop a thread of the inbox does so, which also sends that request.

Messages are hints. What a lost one would have said is found by the refresh, which every third of a ttl keeps
the places in the queues, and runs at the very moment at which a holder that died would lose its lock.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence

from redis.exceptions import RedisError

from ..base import (
    PROVISIONAL,
    BackendUnavailable,
    Busy,
    Claim,
    Confirmation,
    DistLockError,
    Grant,
    Subscription,
    Wake,
    now,
)
from ._connect import Target
from ._ear import Ear
from ._errors import mapped
from ._hearing import ECHO, Hearing
from ._listeners import THREAD
from ._scripts import SERVER, Dialect
from ._values import NO_INBOX
from ._waiting import SLACK, Kept, Waiting, Watch, WatchHere

__all__ = ("Inbox",)

log = logging.getLogger("distlock")

Refresh = Callable[[bytes, Mapping[str, Sequence[str]]], Kept]
"""Sends an echo to the channel and keeps the places of claims, by key."""

Confirm = Callable[[Claim, bytes], "Confirmation | None"]
"""Sends the confirmation of a lock that was handed to a claim on a channel, and does not wait for the answer."""

ENOUGH = 0.75 * PROVISIONAL
"""Seconds of proven holding with which to go on before the confirmation is answered.

News that came that fast leaves time for the confirmation and its answer, and for another try if that is lost.
"""
LONGEST_PAUSE = 1.0


class Inbox(Hearing):
    """For one server. Thread-safe. Connects when the first claim has to wait, and stays connected until `close`.

    In a cluster there is one for each primary, and a channel for each slot in which someone waits. A claim whose slot
    moves is woken, and goes on at another's: `forget` gives its ``wake`` back, to `watch` there. (Where there are no
    slots, all is in slot 0.)
    """

    def __init__(
        self,
        server: Target,
        namespace: str,
        op_timeout: float,
        refresh: Refresh,
        dialect: Dialect = SERVER,
        confirm: Confirm | None = None,
    ) -> None:
        self._refresh = refresh
        self._confirm = confirm
        super().__init__(server, namespace, op_timeout, dialect)

    def _reset(self) -> None:
        super()._reset()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._refreshed_at = 0.0
        self._pause = 0.0

    # Called by whoever acquires.

    @property
    def connected(self) -> bool:
        """`watch` will not wait for the server."""
        return self._thread is not None

    def expect(self, claim: Claim) -> bytes:
        """The channel to queue ``claim`` with; from now on news of it is kept for its watch."""
        if self._thread is None:
            return NO_INBOX
        slot = self._channels.slot(claim.key)
        with self._mutex:
            if slot in self._channels.heard:  # else the thread may have ended: it has seen nobody waiting
                self._entry(claim, slot).queued = True
                return self._channels.name(slot)
            self._unheard = self._unheard or claim.id in self._waiting  # the slot was taken away, and may be back
        self._nudge_if_unheard()
        return NO_INBOX

    def forget(self, claim_id: str) -> Wake | None:
        """No news of this claim is wanted. How it was to be woken."""
        if not self._waiting:
            return None
        with self._mutex:
            self._elsewhere.discard(claim_id)
            waiting = self._waiting.pop(claim_id, None)
            # It was to listen, and was interrupted before it could pass that on; or it was the last one elsewhere, for
            # whom the thread was just about to.
            self._pass_on(claim_id)
            return None if waiting is None else waiting.wake

    def forget_unwatched(self, claim_id: str) -> bool:
        """The request that `expect` prepared came to nothing. True if nothing is expected of it any more."""
        with self._mutex:
            if (waiting := self._waiting.get(claim_id)) and waiting.wake is None:
                del self._waiting[claim_id]
            return claim_id not in self._waiting

    def watch(self, busy: Busy, wake: Wake, deadline: float, *, here: bool = False) -> Subscription:
        """Wakes when asking again may help: if the claim has no place in the queue yet, as soon as it could be told.

        ``here``: this thread will wait by `attend`.
        """
        slot = self._channels.slot(busy.claim.key)
        with self._mutex:
            waiting = self._entry(busy.claim, slot)
            waiting.wake = wake
            if not here:
                self._elsewhere.add(busy.claim.id)
                if self._reader is None:
                    self._changed.notify()
            self._unheard = self._unheard or slot not in self._channels.heard
        watch = (WatchHere if here else Watch)(self, busy.claim.id)
        try:
            self._start(deadline)
        except BaseException:
            watch.close()
            raise
        if not waiting.queued:
            self.ends_in(busy)
        if waiting.woken or (not waiting.queued and slot in self._channels.heard):
            waiting.woken = False
            wake()
        return watch

    def attend(self, claim_id: str, deadline: float) -> bool:
        """Waits for news of it, in the thread that asked, until there are some or the deadline; it may hear for all.

        False: nothing is known of this claim.
        """
        with self._mutex:
            waiting = self._waiting.get(claim_id)
            if waiting is None:
                return False
            waiting.turn = turn = threading.Lock()
            turn.acquire()
        try:
            while (left := deadline - now()) > 0:
                with self._mutex:
                    if waiting.woken or self._closed:
                        break
                    ear = self._take_over(claim_id)
                if ear is not None:
                    self._lead(ear, deadline)
                else:
                    turn.acquire(timeout=min(left, threading.TIMEOUT_MAX))
        finally:
            with self._mutex:
                waiting.woken, waiting.turn = False, None
                self._pass_on(claim_id)
                if self._ear is not None and self._reader is not None and self._reading == threading.get_ident():
                    self._ear.ring()  # a signal's handler has heard what the one that it interrupted waits for
        return True

    def granted(self, claim_id: str) -> Grant | None:
        """Its grant, if holding is proven by what was heard; the confirmation was sent then."""
        waiting = self._waiting.get(claim_id)
        if waiting is None or waiting.given is None or self._confirm is None:
            return None
        (token, deadline), waiting.given = waiting.given, None
        if deadline - now() < ENOUGH:
            return None
        confirmation = self._confirm(waiting.claim, self._channels.name(waiting.slot))
        return None if confirmation is None else Grant(waiting.claim, token, deadline, False, confirmation)

    def _entry(self, claim: Claim, slot: int) -> Waiting:
        if not self._waiting:
            self._refreshed_at = now()  # there was no place to keep before
        return self._waiting.setdefault(claim.id, Waiting(claim, slot))

    def ends_in(self, busy: Busy, epoch: float | None = None) -> None:
        """Notes when the lock ends by itself."""
        with self._mutex:
            waiting = self._waiting.get(busy.claim.id)
            if waiting is None:
                return
            if epoch is not None:
                waiting.epoch = epoch
            waiting.free_at = math.inf if busy.ends_in is None else now() + busy.ends_in + SLACK
            due = min(waiting.free_at, self._refreshed_at + waiting.claim.ttl / 3)
            sooner = due < self._due
            if sooner:
                self._due = due
        if sooner:
            self._nudge()

    def close(self) -> None:
        """Ends the thread and its connection. Who still waits is woken, to find that out."""
        self._closed = True
        self._channels.heard.clear()
        self._wake(list(self._waiting))
        self._nudge()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._op_timeout)

    def after_fork(self) -> None:
        """In a forked child: the inherited sockets are closed without a word to the server."""
        if self._ear is not None:
            self._ear.close()
        self._reset()

    # Connecting.

    def _start(self, deadline: float) -> None:
        if self._thread is not None:  # it sees who waits, and ends only if nobody does
            self._nudge_if_unheard()
            return
        if not self._starting.acquire(timeout=max(0.0, deadline - now())):
            raise mapped(TimeoutError(), self._server.address, sent=False)
        try:
            if self._thread is None and not self._closed:
                self._ear = self._subscribe(deadline - now())
                self._launch(self._ear)
            self._nudge_if_unheard()
        finally:
            self._starting.release()

    def _launch(self, ear: Ear) -> None:
        self._thread = threading.Thread(target=self._run, args=(ear,), name="distlock-inbox", daemon=True)
        try:
            self._thread.start()
        except BaseException as error:
            self._thread = self._ear = None
            self._channels.clear()
            ear.close()
            if isinstance(error, RuntimeError):  # no room for one more thread; or the interpreter is going down
                raise BackendUnavailable(
                    f"nobody can listen for the lock: {error} [{self._server.address}]", backend=self._server.address
                ) from error
            raise

    # Listening: in a thread that waits, or the inbox's own.

    def _lead(self, ear: Ear, deadline: float) -> None:
        try:
            self._listen(ear, deadline)
        except BaseException as error:  # news may be lost with it: the thread listens anew, and looks
            with self._mutex:
                ours = isinstance(error, RedisError)
                self._broken = error if ours else InterruptedError(f"who listened was interrupted: {error!r}")
            if not ours:
                raise
            return
        if now() >= self._due:
            with self._mutex:
                self._due, self._overdue = math.inf, True
                self._changed.notify()

    def _run(self, ear: Ear | None) -> None:
        # It ends what it was given or made itself: when nobody waits any more, the next thread may start already.
        try:
            while ear is not None and not self._closed:
                try:
                    if self._is_to_listen():
                        self._listen(ear, math.inf)
                    self._refresh_due()
                except Exception as error:  # noqa: BLE001 - whatever it is, who waits must not be left alone
                    self._broken = error
                if self._broken is not None:
                    self._dismiss(ear)
                    ear = self._reconnect(self._broken)
        finally:
            if ear is not None:
                self._dismiss(ear)

    # What is asked now and then.

    def _refresh_due(self) -> None:
        if self._closed or not (self._overdue or now() >= self._due):
            return
        with self._mutex:
            self._overdue, self._due = False, self._next_due()
        if now() >= self._due:
            self._refresh_all()

    def _refresh_all(self) -> None:
        if now() >= self._echo_due:  # half open: the server thinks that it reaches us
            raise OSError("no message came through since the last refresh")
        by_slot: dict[int, dict[str, list[str]]] = {}
        with self._mutex:
            self._refreshed_at, self._look_at = now(), math.inf
            for waiting in self._waiting.values():
                by_key = by_slot.setdefault(waiting.slot, {})
                by_key.setdefault(waiting.claim.key, []).append(waiting.claim.id)
                waiting.free_at = math.inf
                if waiting.stand_by <= self._refreshed_at:
                    waiting.stand_by = math.inf
        if by_slot:
            self._echo_due = min(self._echo_due, now() + ECHO)
        heard, answers = True, True
        for slot, by_key in by_slot.items():
            try:
                if answers:
                    heard = self._refresh_slot(slot, by_key) and heard
                    continue
            except DistLockError as error:
                log.info("keeping the place in the queue failed: %s", error)
                answers = not isinstance(error, BackendUnavailable)
            self._wake([one for ids in by_key.values() for one in ids])  # each finds out for itself what is wrong
        if not heard:  # the news comes by way of a replica, from a primary that thinks nobody listens
            raise OSError("the server knows nothing of our subscription")
        self._pause = 0.0

    def _refresh_slot(self, slot: int, by_key: Mapping[str, Sequence[str]]) -> bool:
        found, heard = self._refresh(self._channels.name(slot), by_key)
        t = now()
        with self._mutex:
            for waiting in self._waiting.values():
                pttl, _ = found.get(waiting.claim.key, (-1, ()))
                if pttl >= 0:  # not later than what was learnt while the answer was on its way
                    waiting.free_at = min(waiting.free_at, t + pttl / 1000 + SLACK)
        self._wake([one for _, ids in found.values() for one in ids])
        return heard or slot not in self._channels.heard

    def _next_due(self) -> float:
        if not self._waiting:
            return math.inf
        third = min(waiting.claim.ttl for waiting in self._waiting.values()) / 3
        first_free = min(waiting.look_at for waiting in self._waiting.values())
        return min(self._look_at, self._refreshed_at + third, first_free)

    def _reconnect(self, error: BaseException) -> Ear | None:
        """None: nobody waits any more, the thread ends."""
        bug = None if isinstance(error, (RedisError, OSError)) else error
        log.log(logging.ERROR if bug else logging.INFO, "the inbox's connection broke: %s", error, exc_info=bug)
        self._due = -math.inf  # no need to nudge meanwhile
        while not self._closed:
            with self._mutex:
                self._channels.clear()
                for waiting in self._waiting.values():  # the next connection may lead to a server with another clock
                    waiting.epoch = waiting.given = None
                claim_ids = list(self._waiting)
                if not claim_ids:
                    self._thread = self._ear = self._reader = self._broken = None
                    return None
                self._changed.wait_for(lambda: self._closed, self._pause)
            self._pause = min(max(0.05, 2 * self._pause), LONGEST_PAUSE)  # until all is well
            try:
                ear = self._subscribe(self._op_timeout)
            except DistLockError:
                self._wake(claim_ids)  # they ask, and learn of the outage
                continue
            except Exception:  # of a credential provider, say
                log.exception("connecting the inbox again met an error of another kind, and is tried again")
                self._wake(claim_ids)
                continue
            with self._mutex:
                self._ear, self._broken = ear, None
                self._look_at = -math.inf  # finds what was said while nobody listened
                self._pass_on(THREAD)
            return ear
        return None

    def _nudge_if_unheard(self) -> None:
        if self._unheard and self._due > -math.inf:
            self._nudge()
