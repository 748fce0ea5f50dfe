"""One daemon thread per manager that keeps leases alive, says when one is lost, and finishes what was left over.

A thread, not a task: a blocked event loop must not lose its locks (python-redis-lock#91).
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .._clock import now, seconds_left
from .._errors import BackendError
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
    """A claim that must come to nothing."""

    claim: Claim
    in_flight: bool
    until: float
    next_try: float
    done: Callable[[], object]
    pause: float = 0.05


class Watchdog:
    """Thread-safe. Starts its thread when there is something to watch."""

    def __init__(self, backend: SyncBackend, op_timeout: float) -> None:
        self._backend = backend
        self._op_timeout = op_timeout
        self._reset()

    def _reset(self) -> None:
        self._holds: set[Hold] = set()
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

    def keep(self, hold: Hold) -> None:
        """Renews ``hold`` and announces its loss, until it is forgotten."""
        self._holds.add(hold)
        # Read after the hold was added: a look that starts later sees it. See `_run` for the other half.
        due = min(hold.renew_at, hold.deadline)
        if due < self._next_look:
            # Kept after the hold is gone: else each short hold of an idle process would wake the thread twice.
            self._alarm = self._next_look = due
            self._nudge()

    def forget(self, hold: Hold) -> None:
        """Leaves ``hold`` alone from now on."""
        self._holds.discard(hold)

    def give_up(self, claim: Claim, *, in_flight: bool = True, done: Callable[[], object] = lambda: None) -> None:
        """Withdraws ``claim``, trying until it is known to have worked, which calls ``done``, or its ttl has passed."""
        t = now()
        until = t + claim.ttl + self._op_timeout
        self._chores[claim.id] = _Chore(claim, in_flight, until, next_try=t, done=done)
        self._nudge()

    @property
    def holds(self) -> Sequence[Hold]:
        """What is being kept."""
        return list(self._holds)

    def close(self, *, join: bool = True) -> None:
        """Ends the thread, after one last try for what was left over."""
        with self._mutex:
            self._closing = True
            self._changed.notify()
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
                thread = threading.Thread(target=self._run, name="distlock-watchdog", daemon=True)
                try:
                    thread.start()
                    self._thread = thread
                except RuntimeError as error:  # no room for one more thread; or the interpreter is going down
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
                self._announce()
                self._renew_due()
                self._do_chores(force=closing)
                self._announce()
            except Exception:
                log.exception("keeping leases alive met a bug in distlock or its backend, and goes on")
                return SHORTEST_REQUEST
            return 0.0

    def next_event(self) -> float:
        """When there is something to do next."""
        events = [min(hold.renew_at, hold.deadline) for hold in self.holds]
        events += [chore.next_try for chore in list(self._chores.values())]
        return min(events, default=math.inf)

    def _announce(self) -> None:
        t = now()
        for hold in self.holds:
            if hold.giving_up:
                self._holds.discard(hold)
            elif hold.deadline <= t or hold.ended:
                self._holds.discard(hold)
                hold.expire()
                # Ours by the store's clock for a moment still: whoever waits need not wait for its end.
                self.give_up(hold.grant.claim, in_flight=False)

    def _renew_due(self) -> None:
        t = now()
        # Those due soon come along: one request serves all.
        due = [hold for hold in self.holds if hold.renew_at <= t + hold.grant.claim.ttl / 30]
        if not due:
            return
        # Half of what is left, so that there is time for another try, of those that are not due yet too.
        limit = min((min(hold.deadline for hold in [*due, *self.holds]) - t) / 2, self._op_timeout)
        asked = [hold.grant for hold in due]
        wanted = [self._wanted(hold, t) for hold in due]
        renewals = self._ask(wanted, t + max(limit, SHORTEST_REQUEST))
        for hold, before, renewal in zip(due, asked, renewals, strict=True):
            if renewal.state is LeaseState.HELD:
                hold.renewed(before, t, renewal.deadline)
            elif renewal.state is LeaseState.LOST:
                self._holds.discard(hold)
                hold.vanished()
                # Where the store cannot take a lock away, it is given up now that the loss is known.
                self.give_up(hold.grant.claim, in_flight=False)
            else:
                hold.in_doubt(now() + max(SHORTEST_REQUEST, min(before.claim.ttl / 20, 0.5)))

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
        return replace(hold.grant, claim=replace(hold.grant.claim, ttl=max(left, 0.05)))

    def _do_chores(self, *, force: bool) -> None:
        for chore in list(self._chores.values()):
            if chore.next_try > now() and not force:
                continue
            # Never at the cost of the leases: what comes due is renewed in between.
            self._announce()
            self._renew_due()
            if self._is_done(chore) and self._chores.get(chore.claim.id) is chore:  # else there is more to do
                del self._chores[chore.claim.id]

    def _is_done(self, chore: _Chore) -> bool:
        """One try, before the next renewal is due; True if no other is needed."""
        t = now()
        limit = min((min(hold.renew_at, hold.deadline) for hold in self.holds), default=math.inf) - t
        deadline = t + min(max(limit, SHORTEST_REQUEST), self._op_timeout)
        try:
            self._backend.withdraw(chore.claim, deadline, in_flight=chore.in_flight)
        except Exception as error:  # noqa: BLE001 - whatever it is, the watchdog goes on
            log.warning("giving up the claim on %r failed, trying again: %s", chore.claim.key, error)
            chore.pause = min(2 * chore.pause, 1.0)
            chore.next_try = now() + chore.pause
            return seconds_left(chore.until) <= 0
        chore.done()
        return True
