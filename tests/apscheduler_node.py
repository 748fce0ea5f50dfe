"""One of several nodes with the same schedule: ``python -m tests.apscheduler_node url notes timeout [at]``.

A job each second, or one ``at`` a time. Writes down, a line each, what it ran for which time, what it skipped, and,
with its process, when a job fires and when it begins. A job goes on for as long as there is a file ``hold`` beside the
notes.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from apscheduler.events import EVENT_JOB_EXECUTED, EVENT_JOB_SUBMITTED
from apscheduler.schedulers.blocking import BlockingScheduler

import distlock
from distlock.contrib.apscheduler import OnceExecutor


def main(url: str, notes: str, timeout: str, at: str = "") -> None:
    log = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(*words: object) -> None:
        os.write(log, " ".join(map(str, words)).encode() + b"\n")

    class Skipped(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("skipped"):
                note("skipped", record.args[1])  # type: ignore[index]

    def tick() -> None:
        note("began", os.getpid())
        while Path(notes).with_name("hold").exists():
            time.sleep(0.01)

    logger = logging.getLogger("distlock.idempotency")
    logger.setLevel(logging.INFO)
    logger.addHandler(Skipped())
    locks = distlock.connect(url)
    executor = OnceExecutor(locks=locks, lease=10, timeout=None if timeout == "none" else float(timeout))
    scheduler = BlockingScheduler(executors={"default": executor}, timezone="UTC")
    schedule = {"trigger": "date", "run_date": at} if at else {"trigger": "cron", "second": "*"}
    scheduler.add_job(tick, **schedule, id="tick", misfire_grace_time=None)
    scheduler.add_listener(lambda _: note("submitted", os.getpid()), EVENT_JOB_SUBMITTED)
    scheduler.add_listener(lambda event: note("ran", event.scheduled_run_time.isoformat()), EVENT_JOB_EXECUTED)
    scheduler.start()


if __name__ == "__main__":
    main(*sys.argv[1:])
