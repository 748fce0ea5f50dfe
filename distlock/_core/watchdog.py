"""One daemon thread per manager that keeps leases alive, says when one is lost, and finishes what was left over.

A thread, not a task: a blocked event loop must not lose its locks (python-redis-lock#91).
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .._clock import now, seconds_left
from .._errors import BackendError, TooLarge
from .._types import LeaseState
from ..backends.base import Claim, Grant, Renewal, SyncBackend
from .hold import Hold

__all__ = ("Watchdog",)

log = logging.getLogger("distlock")

SHORTEST_REQUEST = 0.02
LONGEST_SLEEP = 60.0
"""Seconds. A finalizer may run in the thread just as it falls asleep, and its word be missed."""


@dataclass(slots=True)
class _Chore:
    """A claim that must come to nothing, or whose work is done and has to be recorded."""

    claim: Claim
    in_flight: bool
    until: float
    next_try: float
    done: Callable[[], object]
    save: Callable[[float], object] | None = None
    """Records the work; None: the claim is withdrawn."""
    pause: float = 0.05


class Watchdog:
    """Thread-safe. Starts its thread when there is something to watch."""

    def __init__(self, backend: SyncBackend, op_timeout: float) -> None:
        self._backend = backend
        self._op_timeout = op_timeout
        self._reset()

    def _reset(self) -> None:
        self._holds: dict[Hold, None] = {}  # as a set, of half the size
        self._reentrant: dict[str, Hold] = {}
        self._chores: dict[str, _Chore] = {}
        # Re-entrant: a manager's finalizer may run in a thread that holds it. Entered as what it is, by one step of C;
        # a Condition's `with` is Python, in the middle of which Ctrl-C would leave it locked for ever.
        self._mutex = threading.RLock()
        self._changed = threading.Condition(self._mutex)
        self._looking = threading.Lock()
        self._failing = False
        self._nudged = False
        self._next_look = math.inf
        self._alarm = math.inf
        self._closing = False
        self._thread: threading.Thread | None = None

    # What the rest of the core calls; none of it does I/O.

    def keep(self, hold: Hold, *, reentrant: bool = False) -> None:
        """Renews ``hold`` and announces its loss, until it is forgotten; until then `reentrant` finds it, too."""
        self._holds[hold] = None
        if reentrant:
            with self._mutex:
                self._reentrant[hold.grant.claim.key] = hold
        # Read after the hold was added: a look that starts later sees it. See `_run` for the other half.
        due = hold.renew_at if hold.renew_at < hold.deadline else hold.deadline
        if due < self._next_look:
            # Kept after the hold is gone: else each short hold of an idle process would wake the thread twice.
            self._alarm = self._next_look = due
            self._nudge()

    def reentrant(self, key: str) -> Hold | None:
        """The last hold of ``key`` that its thread or task may enter again."""
        return self._reentrant.get(key)

    def forget(self, hold: Hold) -> None:
        """Leaves ``hold`` alone from now on."""
        self._holds.pop(hold, None)
        if self._reentrant:
            with self._mutex:
                key = hold.grant.claim.key
                if self._reentrant.get(key) is hold:
                    del self._reentrant[key]

    def give_up(self, claim: Claim, *, in_flight: bool = True, done: Callable[[], object] = lambda: None) -> None:
        """Withdraws ``claim``, trying until it is known to have worked, which calls ``done``, or its ttl has passed."""
        t = now()
        until = t + claim.ttl + self._op_timeout
        chore = _Chore(claim, in_flight, until, next_try=t, done=done)
        before = self._chores.get(claim.id)
        if before is not None:  # whoever wants more of it gets it
            chore.in_flight = in_flight or before.in_flight
            chore.done = lambda: (before.done(), done())
        self._chores[claim.id] = chore
        self._nudge()

    def save(
        self,
        hold: Hold,
        record: bytes,
        keep: float,
        instead: Callable[[TooLarge], bytes],
        done: Callable[[bool], object],
    ) -> bool:
        """Tries to complete the work of ``hold``, which is renewed until the outcome is known or it is lost.

        ``instead``: what to keep of a record that is too large for the store. ``done`` is told at the end whether the
        work is recorded. False: the hold is lost already.
        """
        claim = hold.grant.claim
        if hold.state is LeaseState.LOST:
            self.give_up(claim)
            return False

        def attempt(deadline: float) -> None:
            if hold.state is LeaseState.LOST:
                self._backend.withdraw(claim, deadline, in_flight=True)
                return
            try:
                ours = self._backend.complete(hold.grant, record, keep, deadline)
            except TooLarge as refusal:
                ours = self._backend.complete(hold.grant, instead(refusal), keep, deadline)
            self.forget(hold)
            hold.completed(ours)

        def told() -> None:
            done(hold.ended is LeaseState.RELEASED)

        self._chores[claim.id] = _Chore(claim, True, math.inf, now(), told, save=attempt)
        self._nudge()
        return True

    def hurry(self) -> None:
        """What is renewed is due now: the store has news of it."""
        holds = [hold for hold in self.holds if hold.renew_at < math.inf]
        for hold in holds:
            hold.renew_at = 0.0
        if holds:
            self._nudge()

    @property
    def holds(self) -> Sequence[Hold]:
        """What is being kept."""
        return list(self._holds)

    def close(self, *, join: bool = True) -> None:
        """Ends the thread, after one last try for what was left over."""
        with self._mutex:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if join and thread is not None and thread is not threading.current_thread():
            thread.join(self._op_timeout)

    def after_fork(self) -> None:
        """In a forked child: it holds nothing, and the thread stayed behind."""
        for hold in self._holds:
            hold.disown()
        self._reset()

    def _nudge(self) -> None:
        with self._mutex:
            self._nudged = True
            if self._thread is None and not self._closing:
                # Known before it starts: what comes in between (a signal's handler) would start a second one.
                self._thread = thread = threading.Thread(target=self._run, name="distlock-watchdog", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no room for one more thread; or the interpreter is going down
                    self._thread = None
                    self._next_look = self._alarm = math.inf  # whoever comes next tries again
                    log.warning("leases are not renewed: %s", error)
            self._changed.notify()

    # What the thread does.

    def _run(self) -> None:
        while True:
            with self._mutex:
                while not (self._nudged or self._closing or now() >= self._next_look):
                    wait = self._next_look - now()
                    self._changed.wait(min(wait, LONGEST_SLEEP))
                # While looking, whoever comes with a new hold must nudge: this look may have missed it.
                self._nudged, self._next_look = False, math.inf
                if now() >= self._alarm:
                    self._alarm = math.inf
                closing = self._closing
            pause = self.look(closing)
            if closing:
                return
            with self._mutex:
                self._next_look = max(min(self.next_event(), self._alarm), now() + pause)

    def look(self, closing: bool = False) -> float:
        """Does what is due. The seconds to leave alone what went wrong: the thread must outlive all of it.

        One look at a time: a test that moves the clock looks from where it is.
        """
        with self._looking:
            try:
                self._tend()
                if self._chores:
                    self._do_chores(force=closing)
                    self._tend()
            except Exception:
                log.exception("keeping leases alive met a bug in distlock or its backend, and goes on")
                return SHORTEST_REQUEST
            return 0.0

    def next_event(self) -> float:
        """When there is something to do next."""
        holds = self.holds
        events = [hold.renew_at if hold.renew_at < hold.deadline else hold.deadline for hold in holds]
        events += [chore.next_try for chore in list(self._chores.values())]
        return min(events, default=math.inf)

    def _tend(self) -> None:
        """Announces what is over and renews what is due, all in one pass: there may be thousands."""
        holds = self.holds
        for hold in holds:
            if hold.confirmation is not None:
                hold.settle(0.0)  # it need not be renewed soon if it was answered
        t = now()
        over, due, shortest = [], [], math.inf
        for hold in holds:
            left = hold.deadline - t
            if left <= 0 or hold.giving_up or hold.ended:
                over.append(hold)
                continue
            if left < shortest:
                shortest = left
            if hold.renew_at - t <= left / 20:  # those due soon come along: one request serves all
                due.append(hold)
        for hold in over:
            self._announce(hold)
        if due:
            # Half of what is left, so that there is time for another try, of those that are not due yet too.
            limit = min(shortest / 2, self._op_timeout)
            self._renew(due, t, t + max(limit, SHORTEST_REQUEST))

    def _announce(self, hold: Hold) -> None:
        self.forget(hold)
        if not hold.giving_up:
            hold.expire()
            # Ours by the store's clock for a moment still: whoever waits need not wait for its end.
            self.give_up(hold.grant.claim, in_flight=hold.grant.in_flight)

    def _renew(self, due: Sequence[Hold], t: float, deadline: float) -> None:
        asked = [(hold.grant, hold.deadline) for hold in due]
        wanted = [
            grant if hold.ends_at == math.inf else self._wanted(hold, t)
            for hold, (grant, _) in zip(due, asked, strict=True)
        ]
        renewals = self._ask(wanted, deadline)
        for hold, (before, until), renewal in zip(due, asked, renewals, strict=True):
            if renewal.state is LeaseState.HELD:
                hold.renewed(before, t, renewal.deadline)
            elif renewal.state is LeaseState.LOST:
                self.forget(hold)
                if hold.saving:  # which may be why, and which finds out
                    continue
                hold.vanished()
                # Where the store cannot take a lock away, it is given up now that the loss is known.
                self.give_up(hold.grant.claim, in_flight=hold.grant.in_flight)
            else:
                pause = min(before.claim.ttl / 20, 0.5, seconds_left(until) / 4)
                hold.in_doubt(until, now() + max(SHORTEST_REQUEST, pause))

    def _ask(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        try:
            renewals = self._backend.renew(grants, deadline)
            if len(renewals) == len(grants):
                self._failing = False
                return renewals
            log.error("%s gave %d answers to %d renewals", self._backend.address, len(renewals), len(grants))
        except BackendError as error:
            level = logging.DEBUG if self._failing else logging.WARNING  # the first time says it all
            log.log(level, "renewing %d lease(s) failed, trying again: %s", len(grants), error)
            self._failing = True
        except Exception:
            log.exception("renewing %d lease(s) failed, trying again", len(grants))
        return [Renewal(LeaseState.UNKNOWN)] * len(grants)

    @staticmethod
    def _wanted(hold: Hold, t: float) -> Grant:
        left = hold.ends_at - t
        if left >= hold.grant.claim.ttl:
            return hold.grant
        return hold.grant._replace(claim=hold.grant.claim._replace(ttl=max(left, 0.05)))

    def _do_chores(self, *, force: bool) -> None:
        for chore in list(self._chores.values()):
            if chore.next_try > now() and not force:
                continue
            # Never at the cost of the leases: what comes due is renewed in between.
            self._tend()
            if self._is_done(chore) and self._chores.get(chore.claim.id) is chore:  # else there is more to do
                del self._chores[chore.claim.id]

    def _is_done(self, chore: _Chore) -> bool:
        """One try, before the next renewal is due; True if no other is needed."""
        t = now()
        limit = min((min(hold.renew_at, hold.deadline) for hold in self.holds), default=math.inf) - t
        deadline = t + min(max(limit, SHORTEST_REQUEST), self._op_timeout)
        try:
            if chore.save is not None:
                chore.save(deadline)
            else:
                self._backend.withdraw(chore.claim, deadline, in_flight=chore.in_flight)
        except Exception as error:  # noqa: BLE001 - whatever it is, the watchdog goes on
            what = "giving up the claim on" if chore.save is None else "recording the completed work of"
            level = logging.WARNING if chore.save is None or chore.pause < 0.1 else logging.DEBUG  # that has no end
            log.log(level, "%s %r failed, trying again: %s", what, chore.claim.key, error)
            chore.pause = min(2 * chore.pause, 1.0)
            chore.next_try = now() + chore.pause
            return seconds_left(chore.until) <= 0
        chore.done()
        return True
