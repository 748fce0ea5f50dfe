"""A command that runs once a period, on all machines together.

The period counts from when `distlock run` was started, so that one that had to wait, or that took over from one that
failed, does not put off the next. The record ends early: the next firing of a scheduler, whose clock is not exact, must
not find it, on a store either that keeps records for a little longer (etcd, by a sixteenth). After a command that
outlasts it there is a short one all the same, for those who have waited.
"""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from functools import partial

import typer

from distlock import LockLost, Manager
from distlock.backends.base import now
from distlock.idempotency import InProgress, Operation, ResultUnavailable, Work

from ._app import LOST, say
from ._command import Job
from ._shown import moment, seconds, who

__all__ = ("Skipped", "period_of", "run_once_per", "tells_of_waiting")

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
SHORTEST, LONGEST = 1.0, 366 * 86400.0
"""Seconds of a period."""
KEPT = 0.9
"""Of a period."""
SHORTEST_RECORD = 2.0
"""Seconds: all who wait for a run are told that it was, or each of them would run the command again. No more than
`KEPT` of a period."""


class Skipped(Exception):
    """It ran in this period, as the message tells."""


def period_of(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``15m``, ``1.5h`` or ``1d``."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())
    period = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not SHORTEST <= period <= LONGEST:
        raise typer.BadParameter(f"{text!r} is not a period of 1s to 366d, like 90s, 15m, 1h or 1d")
    return period


def tells_of_waiting(timeout: float | None) -> bool:
    """There is a person who sees nothing happen, and wants to know why."""
    return timeout != 0 and sys.stderr.isatty()


def run_once_per(period: float, locks: Manager, job: Job, timeout: float | None, *, keep_failed: bool) -> int:
    """The exit status of the command; `Skipped` if it ran in this ``period``, `InProgress` if it does elsewhere."""
    kept = period * KEPT
    ends_at = now() + kept
    try:
        with ExitStack() as stack:
            work = _claimed(stack, locks, job, period, timeout)
            if work.operation is not None:
                raise Skipped(_why(work.operation))
            status = job.run(work.lease)
            if job.ran and (status == 0 or keep_failed):
                _keep(work, status, max(ends_at - now(), min(kept, SHORTEST_RECORD)))
    except LockLost as error:
        if not job.cut_off:  # else it was said
            say(error)
        return LOST
    return status


def _claimed(stack: ExitStack, locks: Manager, job: Job, period: float, timeout: float | None) -> Work:
    once = partial(locks.once, job.key, ttl=period, lease=job.ttl, metadata=job.about)
    if tells_of_waiting(timeout):
        try:
            return stack.enter_context(once(timeout=0.0))
        except InProgress:
            say(f"waiting for {job.key!r}")
    return stack.enter_context(once(timeout=timeout))


def _keep(work: Work, status: int, left: float) -> None:
    try:
        work.complete({"status": status}, ttl=left)
    except ResultUnavailable as error:
        say(f"{work.key!r} ran, but that could not be stored, and it may run again too soon: {error.__cause__}")


def _why(ran: Operation) -> str:
    at = "" if ran.began_at is None else f" at {moment(ran.began_at)}"
    next_in = "" if ran.expires_in is None else f", and not again for {seconds(ran.expires_in)}"
    return f"skipped: {ran.key!r} was run by {who(ran.by)}{at}{next_in}"
