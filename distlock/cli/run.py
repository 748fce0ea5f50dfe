"""``distlock run``: a command under a lock, or once a period."""

from __future__ import annotations

import math
import os
import signal
import sys
from types import FrameType
from typing import Annotated, Optional

import typer

from distlock import AcquireTimeout, BackendError, ConfigurationError, Lease, Lock, LockLost, Manager

from ._app import BUSY, LOST, Debug, Key, Namespace, Url, app, say, store
from ._command import Command, Job, caught
from ._period import Skipped, period_of, run_once_per, tells_of_waiting

__all__ = ("run",)

SHORTEST_TTL = 1.0
"""Seconds. With less, a command could not be told to end and be dead in time on a busy machine."""

HELP = """Run a command under a lock, and end it before the lock can pass to anyone else.

The exit status is the command's, 128+n if signal n ended it. Others are distlock's: 64 wrong usage, 69 the store
cannot be reached, 70 the lease was lost and the command ended, 75 the lock is someone else's, 126 and 127 the command
cannot be run or found.

Signals go to the command, and so does the terminal. It finds DISTLOCK_KEY, DISTLOCK_TOKEN (a number above that of
every earlier holder) and DISTLOCK_OWNER in its environment. What it leaves running in the background of its process
group is ended with it.

With `--once-per`, it runs once a period on all machines together: who comes later in the period does nothing, which is
a success. A command that fails has not run, and who comes next runs it."""

EPILOG = """Examples:

`distlock run nightly-report -- ./report.sh`

`distlock run --no-wait deploy:shop --url redis://localhost:6379/0 -- make deploy`

`distlock run db-migrate --ttl 60 --timeout 300 -- sh -c 'migrate --fence "$DISTLOCK_TOKEN"'`

`distlock run --once-per 1d nightly-report -- ./report.sh`"""


@app.command(help=HELP, epilog=EPILOG)
def run(
    key: Key,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="After `--`: what to run.", show_default=False)
    ],
    url: Url = None,
    namespace: Namespace = None,
    ttl: Annotated[
        float, typer.Option(help="Seconds after which the store frees the lock of a machine that died; 1 or more.")
    ] = 30.0,
    timeout: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Seconds to wait for the lock. For ever if not given."),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", "-n", help="Do not wait: the same as `--timeout 0`.")] = False,
    conflict_exit_code: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--conflict-exit-code",
            "-E",
            min=0,
            max=255,
            help="The exit status if the command does not run because of others: 75 if the lock is not acquired, 0 if"
            " it ran in this period, if not given.",
            show_default=False,
        ),
    ] = None,
    once_per: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="PERIOD", parser=period_of, help="Run it once in `90s`, `15m`, `1h` or `1d`, on all machines."
        ),
    ] = None,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="With `--once-per`: a command that failed has run, too.")
    ] = False,
    grace: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Seconds between TERM and KILL; at most a quarter of the ttl. A sixth, but at most 5 s, if not given."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Typer shows `HELP`."""
    if "--" not in sys.argv or command != sys.argv[sys.argv.index("--") + 1 :]:
        # Else its options would be taken for ours, and another command be run than was typed.
        raise ConfigurationError("put -- before the command: distlock run KEY -- COMMAND…")
    if keep_failed and once_per is None:
        raise ConfigurationError("--keep-failed belongs to --once-per")
    grace = _checked(ttl, timeout, no_wait, grace)
    if not url:
        say("no --url or DISTLOCK_URL: the lock is a file and keeps out programs of this user on this machine only")
    with caught(_leave), store(url, namespace) as locks:
        job = Job(key, command, ttl, grace)
        patience = 0.0 if no_wait else timeout
        try:
            if once_per is None:
                status = _locked(locks, job, patience)
            else:
                status = run_once_per(once_per, locks, job, patience, keep_failed=keep_failed)
        except AcquireTimeout as error:
            say(error)
            raise typer.Exit(BUSY if conflict_exit_code is None else conflict_exit_code) from None
        except Skipped as error:
            say(error)
            raise typer.Exit(conflict_exit_code or 0) from None
    if job.child is not None and job.child.interrupted:
        _be_interrupted(job.child)
    raise typer.Exit(status)


def _locked(locks: Manager, job: Job, timeout: float | None) -> int:
    lease = _acquired(locks.lock(job.key, ttl=job.ttl, metadata=job.about), timeout)
    status = LOST
    try:
        status = job.run(lease)
    finally:
        status = _released(lease, status, job)
    return status


def _be_interrupted(child: Command) -> None:
    """As the command was: by the same Ctrl-C, of which whoever has started us has to know."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(0 if child.alone_interrupted else os.getpid(), signal.SIGINT)


def _checked(ttl: float, timeout: float | None, no_wait: bool, grace: float | None) -> float:
    if not SHORTEST_TTL <= ttl < math.inf:
        raise ConfigurationError(f"--ttl {ttl:g} is not a time of {SHORTEST_TTL:g} s or more")
    if no_wait and timeout:
        raise ConfigurationError("--no-wait and --timeout exclude each other")
    if grace is None:
        return min(5.0, ttl / 6)
    if not 0 <= grace <= ttl / 4:
        raise ConfigurationError(f"--grace {grace:g} is not between 0 and a quarter of --ttl {ttl:g}")
    return grace


def _acquired(lock: Lock, timeout: float | None) -> Lease:
    if tells_of_waiting(timeout):
        lease = lock.try_acquire()
        if lease is not None:
            return lease
        say(f"waiting for {lock.key!r}")
    return lock.acquire(timeout)


def _released(lease: Lease, status: int, job: Job) -> int:
    """The exit status, which changes if the lease turns out to be lost."""
    try:
        lease.release()
    except LockLost as error:
        if not job.cut_off:  # else it was said
            say(error)
        return LOST
    except BackendError as error:  # all is done, and its time is bounded
        say(error)
    return status


def _leave(number: int, frame: FrameType | None) -> None:
    """Nothing runs yet: what was begun is taken back on the way out. `typer.Exit` is a RuntimeError, and so is what
    Python raises where no thread can be started: a store would take the one for the other."""
    raise SystemExit(128 + number)
