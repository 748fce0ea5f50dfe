"""APScheduler's jobs, which several schedulers fire and one of them runs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MISSED
from apscheduler.schedulers.background import BackgroundScheduler

import distlock
from distlock import Manager
from distlock.contrib.apscheduler import OnceExecutor

from .programs import wait_until

ROOT = Path(distlock.__file__).parent.parent
PATIENCE = 60
TODAY = datetime.now(timezone.utc).replace(microsecond=0)
"""Any time that is past: jobs are never too late, unless a test says so."""


class Node:
    """A scheduler and what its listeners hear. The test says what is due."""

    def __init__(
        self, locks: Manager, function: Callable[[], object], grace: int | None = None, **options: Any
    ) -> None:
        self._executor: Any = OnceExecutor(locks=locks, **options)
        self._scheduler = BackgroundScheduler(executors={"default": self._executor}, timezone="UTC")
        self._scheduler.start()
        self._scheduler.add_listener(
            lambda event: self.heard.append(event.code), EVENT_JOB_ERROR | EVENT_JOB_EXECUTED | EVENT_JOB_MISSED
        )
        far = TODAY + timedelta(days=1)
        self._job = self._scheduler.add_job(function, "date", run_date=far, id="job", misfire_grace_time=grace)
        self.heard: list[int] = []

    def fire(self, *times: datetime) -> None:
        self._executor.submit_job(self._job, times)

    def run(self, *times: datetime) -> Sequence[int]:
        """What was heard of it, when it is done or skipped."""
        self.heard.clear()
        self.fire(*times)
        self.finish()
        return list(self.heard)

    def finish(self) -> None:
        wait_until(lambda: not any(self._executor._instances.values()), "the run to end", PATIENCE)

    def close(self) -> None:
        self._scheduler.shutdown()


@pytest.fixture
def locks() -> Iterator[Manager]:
    with distlock.connect("memory://") as manager:
        yield manager


@pytest.fixture
def node_of(locks: Manager) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(function: Callable[[], object], **options: Any) -> Node:
        nodes.append(Node(locks, function, **options))
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


def after(seconds: float) -> datetime:
    return TODAY + timedelta(seconds=seconds)


def test_each_time_is_run_on_one_node(node_of, locks):
    runs: list[int] = []
    nodes = [node_of(lambda number=number: runs.append(number)) for number in range(3)]
    assert [node.run(TODAY) for node in nodes] == [[EVENT_JOB_EXECUTED], [], []]
    berlin = timezone(timedelta(hours=1))
    assert nodes[1].run(TODAY.astimezone(berlin)) == [], "the same time in another zone"
    assert [node.run(after(1)) for node in reversed(nodes)] == [[EVENT_JOB_EXECUTED], [], []]
    assert runs == [0, 2]
    known = {found.key: found.by.metadata for found in locks.results.list()}
    times = [f"{TODAY:%Y-%m-%dT%H:%M:%S}+00:00", f"{after(1):%Y-%m-%dT%H:%M:%S}+00:00"]
    assert known == {f"apscheduler:job@{at}": {"job": "job", "run_time": at} for at in times}


def test_runs_that_are_due_together_are_each_run(node_of):
    first, second = node_of(lambda: None), node_of(lambda: None)
    assert first.run(after(1)) == [EVENT_JOB_EXECUTED]
    assert second.run(TODAY, after(1), after(2)) == [EVENT_JOB_EXECUTED] * 2


def slow_node(node_of: Callable[..., Node]) -> tuple[Node, threading.Event, threading.Event]:
    """Whose job has begun when the first event is set, and ends when the second one is."""
    begun, go = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        go.wait(PATIENCE)

    return node_of(job), begun, go


def test_a_run_never_overlaps_with_an_earlier_one(node_of, caplog):
    slow, begun, go = slow_node(node_of)
    other = node_of(lambda: None)
    slow.fire(TODAY)
    assert begun.wait(PATIENCE)
    with caplog.at_level(logging.INFO, "distlock.idempotency"):
        assert other.run(after(1)) == []
    assert f"skipped apscheduler:job for {after(1).isoformat()}" in caplog.text
    assert f"pid {os.getpid()}" in caplog.text
    go.set()
    slow.finish()
    assert other.run(after(2)) == [EVENT_JOB_EXECUTED]


def test_a_node_may_wait_for_its_turn(node_of):
    slow, begun, go = slow_node(node_of)
    patient = node_of(lambda: None, timeout=None)
    slow.fire(TODAY)
    assert begun.wait(PATIENCE)
    patient.fire(after(1))
    go.set()
    patient.finish()
    assert patient.heard == [EVENT_JOB_EXECUTED]
    assert patient.run(TODAY) == []


def test_waiting_does_not_make_a_run_late(node_of, monkeypatch):
    slow, begun, go = slow_node(node_of)
    patient = node_of(lambda: None, grace=1, timeout=None)
    slow.fire(TODAY)
    assert begun.wait(PATIENCE)
    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    patient.fire(soon)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return soon + timedelta(hours=1)

    monkeypatch.setattr("apscheduler.executors.base.datetime", Later)
    go.set()
    patient.finish()
    assert patient.heard == [EVENT_JOB_EXECUTED]


@pytest.mark.parametrize("lost", ["job", "job@"])
def test_a_job_whose_run_cannot_be_kept_has_run(node_of, locks, caplog, lost):
    def job() -> None:
        stores = {"job": locks, "job@": locks.results_manager()}
        (held,) = stores[lost].list(f"apscheduler:{lost}")
        assert stores[lost].force_release(held.key, token=held.holder.token)

    assert node_of(job).run(TODAY) == [EVENT_JOB_EXECUTED]
    assert f"apscheduler:job ran for {TODAY.isoformat()}, and may run for it again" in caplog.text


def test_a_job_that_raised_has_run(node_of, locks):
    first, second = node_of(lambda: 1 / 0), node_of(lambda: None)
    assert first.run(TODAY) == [EVENT_JOB_ERROR]
    assert second.run(TODAY) == []
    (found,) = locks.results.list()
    assert found.outcome.payload == b'"ZeroDivisionError"'


def test_a_job_may_use_a_lock_of_its_own_name(node_of, locks):
    lock = locks.lock("job", timeout=0)
    assert node_of(lambda: lock.acquire().release()).run(TODAY) == [EVENT_JOB_EXECUTED]


def test_a_time_that_was_missed_was_not_run(node_of, locks):
    assert node_of(lambda: None, grace=3600).run(after(-7200)) == [EVENT_JOB_MISSED]
    assert locks.results.list() == ()


def test_without_a_store_nothing_is_run(caplog):
    runs: list[int] = []
    with distlock.connect("redis://127.0.0.1:1/0", op_timeout=0.1) as locks:
        node = Node(locks, lambda: runs.append(1))
        with caplog.at_level(logging.ERROR, "apscheduler"):
            assert node.run(TODAY) == []
        node.close()
    assert "Error running job job" in caplog.text
    assert "127.0.0.1:1" in caplog.text
    assert runs == []


# Nodes that are processes.


class Nodes:
    """With one schedule, in one store."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self._notes = url, folder / "notes"
        self.hold = folder / "hold"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, timeout: str = "0", at: str = "") -> subprocess.Popen[bytes]:
        """With a job each second, or one ``at`` a time."""
        command = [sys.executable, "-m", "tests.apscheduler_node", self.url, str(self._notes), timeout, at]
        self._processes.append(subprocess.Popen(command, cwd=ROOT))
        return self._processes[-1]

    def noted(self, what: str) -> list[str]:
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{what} ")]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture(params=["file", "redis"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Nodes]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else (tmp_path / "store").as_uri()
    nodes = Nodes(url, tmp_path)
    yield nodes
    nodes.close()


def test_two_processes_with_one_schedule_run_each_time_once(nodes):
    nodes.start()
    nodes.start()
    wait_until(
        lambda: len({*nodes.noted("ran")} & {*nodes.noted("skipped")}) >= 4, "four times that both fired", PATIENCE
    )
    ran = nodes.noted("ran")
    assert len(ran) == len(set(ran))


def test_the_run_of_a_node_that_was_killed_is_taken_over(nodes):
    at = TODAY.isoformat()
    nodes.hold.touch()
    first = nodes.start("none", at)
    wait_until(lambda: nodes.noted("began") == [str(first.pid)], "the first to begin", PATIENCE)
    second = nodes.start("none", at)
    wait_until(lambda: str(second.pid) in nodes.noted("submitted"), "the second to fire", PATIENCE)
    with distlock.connect(nodes.url) as locks:
        if locks.guarantees.fair:  # else only those who wait in this process are known
            wait_until(lambda: locks.inspect("apscheduler:tick").waiters, "the second to wait", PATIENCE)
    first.kill()
    wait_until(lambda: nodes.noted("began") == [str(first.pid), str(second.pid)], "the second to begin", PATIENCE)
    assert nodes.noted("ran") == []
    nodes.hold.unlink()
    wait_until(lambda: nodes.noted("ran") == [at], "it to end", PATIENCE)
