"""APScheduler 3: jobs that several schedulers fire, and one of them runs. ``pip install 'pydistlock[apscheduler]'``.

Each node has a scheduler of its own, with the same jobs and this executor::

    scheduler = BackgroundScheduler(executors={"default": OnceExecutor(locks=locks)})
    scheduler.add_job(report, "cron", hour=3, id="report")

An executor and no decorator, as only the executor is told for which time a job is run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from apscheduler.events import EVENT_JOB_MISSED
from apscheduler.executors.base import run_job

import distlock
from distlock import AcquireTimeout, DistLockError, Manager, idempotency

if TYPE_CHECKING:
    from concurrent.futures import Executor

    class ThreadPoolExecutor:
        """What is used of APScheduler's, which carries no annotations."""

        _pool: Executor
        _logger: logging.Logger

        def __init__(self, max_workers: int) -> None: ...
        def _run_job_success(self, job_id: str, events: Sequence[Any]) -> None: ...
        def _run_job_error(self, job_id: str, exc: BaseException, traceback: Any) -> None: ...
else:
    from apscheduler.executors.pool import ThreadPoolExecutor

__all__ = ("OnceExecutor",)

_log = logging.getLogger("distlock.idempotency")


class OnceExecutor(ThreadPoolExecutor):
    """Runs each job once for each time it is scheduled at, on one node, and never while an earlier run goes on.

    ``locks``: the store; the one of `distlock.configure` or ``DISTLOCK_URL`` if not given. ``ttl``: seconds for which
    it is known that a job ran for its time; more than the clocks of the nodes differ, and than
    ``misfire_grace_time``. ``lease``: seconds after which the job of a node that died may run again. ``timeout``:
    seconds to wait for another node, or for an earlier run (None: for ever). With 0 a node leaves at once, and a run
    whose node died is lost; others take it over, and occupy a thread each until it is done.

    Whether a run is too late (``misfire_grace_time``) is decided before it waits, for a thread or another node. A job
    that raised has run, and the name of the error's class is kept. One that is skipped sends no event. Jobs need the
    same ``id`` on each node and run times that do not depend on when it was started: a cron or date trigger, an
    interval with a ``start_date``, no jitter.
    For functions, not for coroutine functions.
    """

    def __init__(
        self,
        max_workers: int = 10,
        *,
        locks: Manager | None = None,
        ttl: float = 3600.0,
        lease: float = 30.0,
        timeout: float | None = 0.0,
    ) -> None:
        super().__init__(max_workers)
        self._locks = locks
        self._ttl, self._lease, self._timeout = ttl, lease, timeout

    # What a scheduler calls.

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        def ended(done: Future[list[Any]]) -> None:
            error = done.exception()
            if error is None:
                self._run_job_success(job.id, done.result())
            else:
                self._run_job_error(job.id, error, error.__traceback__)

        at = datetime.now(timezone.utc)
        due = [(_punctual(job, run_time, at), run_time) for run_time in run_times]
        self._pool.submit(self._run, due).add_done_callback(ended)

    # In a thread of the pool.

    def _run(self, due: Sequence[tuple[Any, datetime]]) -> list[Any]:
        return [event for job, run_time in due for event in self._run_once(job, run_time)]

    def _run_once(self, job: Any, run_time: datetime) -> list[Any]:
        name = f"apscheduler:{job.id}"
        at = run_time.astimezone(timezone.utc).isoformat()
        about = {"job": job.id, "run_time": at}
        lock = distlock.lock if self._locks is None else self._locks.lock
        once = idempotency.once if self._locks is None else self._locks.once
        events: list[Any] = []
        try:
            with (
                lock(name, ttl=self._lease, timeout=self._timeout, metadata=about),
                once(f"{name}@{at}", ttl=self._ttl, lease=self._lease, timeout=self._timeout, metadata=about) as work,
            ):
                if work.replayed:
                    _log.info("skipped %s: it ran for %s on %s", name, at, work.operation and work.operation.by)
                    return []
                events = run_job(job, job._jobstore_alias, [run_time], self._logger.name)
                if events[0].code != EVENT_JOB_MISSED:
                    raised = events[0].exception
                    work.complete(None if raised is None else type(raised).__name__)
        except AcquireTimeout as error:
            _log.info("skipped %s for %s: %s", name, at, error)
        except DistLockError as error:
            if not events:
                raise
            _log.warning("%s ran for %s, and may run for it again: %s", name, at, error)
        return events


class _Punctual:
    """A job that waits, which does not make it late."""

    misfire_grace_time = None

    def __init__(self, job: Any) -> None:
        self._job = job

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def __str__(self) -> str:
        return str(self._job)


def _punctual(job: Any, run_time: datetime, at: datetime) -> Any:
    """``job``, which goes on being in time for ``run_time`` if it is so ``at`` that time."""
    grace = job.misfire_grace_time
    return job if grace is not None and at - run_time > timedelta(seconds=grace) else _Punctual(job)
