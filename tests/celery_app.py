"""The Celery application of the tests: its workers are started by them, and write down what they do in Redis.

Database 0 has the locks (``DISTLOCK_URL``), 1 the messages, 2 the results and what is written down. A task waits at
``gate`` until the test lets it through.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import redis
from celery import Celery, signals

from distlock.contrib.celery import idempotent_task, single_instance

__all__ = ("TICK", "app")

SERVER = os.environ["TEST_CELERY_REDIS"]
TICK = 0.2
"""Seconds between two tries of a task that is busy."""

notes = redis.Redis.from_url(f"{SERVER}/2", decode_responses=True)
app = Celery("tests", broker=f"{SERVER}/1", backend=f"{SERVER}/2")
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": int(os.environ["TEST_CELERY_VISIBILITY"])},
    task_acks_late=True,
    task_default_queue="jobs",
    worker_prefetch_multiplier=1,
)


def through_the_gate(name: str) -> str:
    notes.rpush("started", f"{name} {os.getpid()}")
    notes.blpop([f"gate:{name}"])
    return f"done by {notes.incr('runs')}"


@app.task
@single_instance("skipped:{day}")
def skipped(day: str) -> str:
    return through_the_gate("skipped")


@app.task(max_retries=None)
@single_instance("retried:{day}", when_busy="retry", countdown=TICK)
def retried(day: str) -> str:
    return through_the_gate("retried")


@app.task
@single_instance(when_busy="wait")
def waiting(day: str) -> str:
    return through_the_gate("waiting")


@app.task
@idempotent_task(ttl=600, lease=10)
def charged(order: str) -> str:
    return through_the_gate("charged")


@app.task(reject_on_worker_lost=True)
@idempotent_task(ttl=600, lease=10)
def charged_by_a_child(order: str) -> str:
    return through_the_gate("charged_by_a_child")


@app.task
@idempotent_task("ship:{order}", ttl=600)
def shipped(order: str) -> str:
    return through_the_gate("shipped")


@signals.task_postrun.connect
def ended(task: Any, state: str, **_: object) -> None:
    """All is done but to acknowledge the message."""
    notes.rpush("ended", f"{task.name.rpartition('.')[2]} {state}")
    if notes.lpop("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
