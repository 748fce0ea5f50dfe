"""Celery's tasks under a lock, and done once: real workers over Redis, which are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry, TaskPredicate

import distlock
from distlock import AcquireTimeout, ConfigurationError, Manager, ResultUnavailable
from distlock.contrib.celery import WhenBusy, idempotent_task, single_instance
from distlock.idempotency import InProgress

from .programs import wait_until
from .servers import RedisServer
from .test_cli_run import end_all

ROOT = Path(distlock.__file__).parent.parent
PATIENCE = 60
"""Seconds."""
VISIBILITY = 1
"""Seconds after which a message that was not acknowledged may be delivered again."""
Start = Callable[..., "subprocess.Popen[bytes]"]


# Without a worker.


@pytest.fixture
def locks() -> Iterator[Manager]:
    with distlock.connect("memory://") as manager:
        yield manager


@pytest.fixture
def app() -> Celery:
    return Celery("here", broker="memory://", backend="cache+memory://", set_as_current=False)


def test_one_that_runs_elsewhere_is_skipped(app: Celery, locks: Manager) -> None:
    runs: list[int] = []

    @app.task
    @single_instance("report:{day}", locks=locks)
    def report(day: int) -> None:
        runs.append(day)

    with locks.lock("report:1"):
        assert report.apply([1]).state == "IGNORED"
        assert report.apply([2]).state == "SUCCESS"
        with pytest.raises(AcquireTimeout):  # nobody's message
            report(1)
    assert report.apply([1]).state == "SUCCESS"
    assert runs == [2, 1]


def test_without_a_key_it_is_the_function(app: Celery, locks: Manager) -> None:
    @app.task
    @single_instance(locks=locks)
    def report(day: int) -> str:
        holder = locks.list(f"{__name__}.test_without_a_key_it_is_the_function.<locals>.report")[0].holder
        assert holder is not None
        return holder.metadata["task_id"]

    done = report.apply([1])
    assert done.result == done.id


def test_one_that_is_retried_too_often_says_who_has_it(app: Celery, locks: Manager) -> None:
    @app.task(max_retries=2)
    @single_instance("report", when_busy="retry", countdown=0, locks=locks)
    def report() -> None:
        raise AssertionError

    with locks.lock("report"):
        done = report.apply()
    assert done.state == "FAILURE"
    assert isinstance(done.result, AcquireTimeout)
    assert f"pid {os.getpid()}" in str(done.result)


def test_one_that_waits_does_not_wait_for_ever(app: Celery, locks: Manager) -> None:
    @app.task
    @single_instance("report", when_busy="wait", timeout=0.01, locks=locks)
    def report() -> None:
        raise AssertionError

    @app.task
    @idempotent_task("pay", ttl=60, timeout=0.01, locks=locks)
    def pay() -> None:
        raise AssertionError

    with locks.lock("report"), locks.once("pay", ttl=60):
        assert isinstance(report.apply().result, AcquireTimeout)
        assert isinstance(pay.apply().result, InProgress)


@pytest.mark.parametrize("when_busy", ["skip", "retry", "wait"])
def test_a_lock_that_the_task_itself_wants_is_another_matter(app: Celery, locks: Manager, when_busy: WhenBusy) -> None:
    other = locks.lock("other", timeout=0)

    @app.task
    @single_instance("report", when_busy=when_busy, locks=locks)
    def report() -> None:
        with other:
            raise AssertionError

    with other.acquire():
        done = report.apply()
    assert done.state == "FAILURE"
    assert isinstance(done.result, AcquireTimeout)
    assert done.result.key == "other"


def test_a_task_is_done_once_for_its_id(app: Celery, locks: Manager) -> None:
    runs: list[str] = []

    @app.task(bind=True)
    @idempotent_task(ttl=60, locks=locks)
    def charge(self: Any, order: str) -> dict[str, str]:
        runs.append(order)
        return {"order": order, "task": self.request.id}

    first, again = charge.apply(["o1"], task_id="{a}"), charge.apply(["o1"], task_id="{a}")
    assert first.result == again.result == {"order": "o1", "task": "{a}"}
    assert charge.apply(["o1"], task_id="b").result["task"] == "b"
    assert runs == ["o1", "o1"]
    known = {found.key: found.by.metadata for found in locks.results.list()}
    name = charge.name
    assert known == {f"{name}:{id_}": {"task": name, "task_id": id_} for id_ in ("{a}", "b")}
    charge("o1")
    charge("o1")
    assert len(runs) == 4, "called directly it has no id"


def test_a_task_is_done_once_for_its_key(app: Celery, locks: Manager) -> None:
    runs: list[str] = []

    @app.task
    @idempotent_task("ship:{order}", ttl=60, locks=locks)
    def ship(order: str) -> int:
        runs.append(order)
        return len(runs)

    assert [ship.apply([order]).result for order in ("o1", "o2", "o1")] == [1, 2, 1]
    assert ship("o2") == 2
    assert [found.by.metadata.get("task") for found in locks.results.list("ship:o1")] == [ship.name]


def test_a_task_that_failed_is_done_again(app: Celery, locks: Manager) -> None:
    tries: list[int] = []

    @app.task(autoretry_for=(OSError,), default_retry_delay=0)
    @idempotent_task(ttl=60, locks=locks)
    def charge() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("not yet")
        return "done"

    assert charge.apply().result == "done"
    assert len(tries) == 3


@pytest.mark.parametrize("signal", [Ignore("not mine"), Reject("not mine"), Retry("later")])
def test_what_a_task_tells_celery_is_not_kept(app: Celery, locks: Manager, signal: TaskPredicate) -> None:
    tries: list[int] = []

    @app.task
    @idempotent_task(ttl=60, store_errors=Exception, locks=locks)
    def charge() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise signal
        return "done"

    assert charge.apply(task_id="a").state in ("IGNORED", "REJECTED", "RETRY")
    assert locks.results.list() == ()
    assert charge.apply(task_id="a").result == "done"


def test_within_another_task_it_has_no_id(app: Celery, locks: Manager) -> None:
    runs: list[str] = []

    @app.task(autoretry_for=(OSError,))
    @idempotent_task(ttl=60, locks=locks)
    def charge(order: str) -> int:
        runs.append(order)
        return len(runs)

    @app.task
    @idempotent_task(ttl=60, locks=locks)
    def charge_all() -> list[int]:
        return [charge.run("o1"), charge.run("o2")]

    assert [charge_all.apply(task_id="a").result for _ in range(2)] == [[1, 2], [1, 2]]
    assert [found.key for found in locks.results.list()] == [f"{charge_all.name}:a"]


def test_within_another_task_it_is_not_that_one_that_is_skipped(app: Celery, locks: Manager) -> None:
    @idempotent_task("ship:{order}", ttl=60, when_busy="skip", locks=locks)
    def ship(order: str) -> None:
        raise AssertionError

    @app.task
    def ship_all() -> None:
        ship("o1")

    with locks.once("ship:o1", ttl=60):
        assert isinstance(ship_all.apply().result, InProgress)


def test_a_task_whose_result_cannot_be_kept_was_done(
    app: Celery, locks: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task
    @idempotent_task(ttl=60, locks=locks)
    def charge() -> Decimal:
        return Decimal("9.99")

    assert charge.apply(task_id="a").result == Decimal("9.99")
    assert "cannot be had again" in caplog.text
    again = charge.apply(task_id="a")
    assert (again.state, type(again.result)) == ("FAILURE", ResultUnavailable)


def test_what_a_task_itself_cannot_get_is_another_matter(app: Celery, locks: Manager) -> None:
    @app.task
    @idempotent_task(ttl=60, locks=locks)
    def charge() -> None:
        raise ResultUnavailable("of another work")

    assert isinstance(charge.apply().result, ResultUnavailable)


def test_what_stands_around_it_sees_the_function_as_it_is(locks: Manager) -> None:
    def report(day: int) -> None:
        """Of a day."""

    for decorated in (single_instance(locks=locks)(report), idempotent_task(ttl=60, locks=locks)(report)):
        assert (decorated.__name__, decorated.__doc__) == ("report", "Of a day.")


def test_what_cannot_work_is_refused(locks: Manager) -> None:
    def report(day: int) -> None: ...

    for decorate in (single_instance("report:{night}"), idempotent_task("report:{night}", ttl=60, locks=locks)):
        with pytest.raises(ConfigurationError, match="'night'"):
            decorate(report)
    with pytest.raises(ConfigurationError, match="not 'leave'"):
        single_instance(when_busy="leave")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="does not wait"):
        idempotent_task(ttl=60, when_busy="skip", timeout=1)
    with pytest.raises(ValueError, match="ttl"):
        idempotent_task(ttl=0, locks=locks)(report)


# With workers.


class Workers:
    """Of one broker, and what they have written down."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self._server, self._folder = server, folder
        self._started: list[subprocess.Popen[bytes]] = []
        url = server.url.rpartition("/")[0]
        self.notes = redis.Redis.from_url(f"{url}/2", decode_responses=True)
        self._broker = redis.Redis.from_url(f"{url}/1")
        # Two applications: one that sends and could read would subscribe to each result, and hold on to that.
        self._results = Celery("results", backend=f"{url}/2", set_as_current=False)
        self.app = Celery("tests", broker=f"{url}/1", set_as_current=False)
        self.app.conf.update(task_default_queue="jobs", broker_transport_options={"visibility_timeout": VISIBILITY})
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DISTLOCK_")}
        more = {"TEST_CELERY_REDIS": url, "TEST_CELERY_VISIBILITY": str(VISIBILITY)}
        self._env = {**inherited, "DISTLOCK_URL": server.url, **more, "PYTHONPATH": str(ROOT)}

    def start(self, pool: str = "solo", size: int = 1) -> subprocess.Popen[bytes]:
        name = f"w{len(self._started)}"
        options = ["-P", pool, "-c", str(size), "-n", name, "--without-gossip", "--without-mingle"]
        with (self._folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "celery", "-A", "tests.celery_app", "worker", *options]
            self._started.append(subprocess.Popen(command, cwd=ROOT, env=self._env, stdout=log, stderr=log))
        return self._started[-1]

    def send(self, task: str, argument: str = "x") -> str:
        """The task's id."""
        return str(self.app.send_task(f"tests.celery_app.{task}", [argument]).id)

    def state_of(self, task_id: str) -> str:
        return str(self._results.backend.get_task_meta(task_id, cache=False)["status"])

    def result_of(self, task_id: str) -> str:
        wait_until(lambda: self.state_of(task_id) == "SUCCESS", "the result", PATIENCE)
        return str(self._results.backend.get_task_meta(task_id)["result"])

    def started(self, task: str, count: int = 1) -> list[int]:
        """The processes that are at it, in order, when there are so many."""

        def found() -> list[int]:
            notes = [note.split() for note in self._noted("started")]
            return [int(pid) for name, pid in notes if name == task]

        wait_until(lambda: len(found()) >= count, f"{task} to start {count} times", PATIENCE)
        return found()

    def ended(self, task: str, state: str, count: int = 1) -> None:
        wait_until(lambda: self._noted("ended").count(f"{task} {state}") >= count, f"{task} to be {state}", PATIENCE)

    def let_through(self, task: str, count: int = 1) -> None:
        for _ in range(count):
            self.notes.rpush(f"gate:{task}", "go")

    def next_after(self, dead: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """A worker that comes when the message of one that is dead is due again: it looks for those when it starts, and
        then every hundred seconds."""
        dead.wait(PATIENCE)

        def due() -> Any:
            return self._broker.zcount("unacked_index", 0, time.time() - VISIBILITY)

        wait_until(due, "the message to be due again", PATIENCE)
        return self.start()

    def _noted(self, name: str) -> list[str]:
        noted = self.notes.lrange(name, 0, -1)
        assert isinstance(noted, list)
        return [str(each) for each in noted]

    def close(self) -> None:
        for process in self._started:
            end_all(process.pid)
            process.wait()
        self.app.close()
        self._results.close()
        self.notes.close()
        self._broker.close()


@pytest.fixture
def workers(redis_server: RedisServer, tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(redis_server, tmp_path)
    yield workers
    workers.close()


def test_workers_skip_what_another_does(workers: Workers) -> None:
    workers.start("prefork", 2)
    first = workers.send("skipped")
    workers.started("skipped")
    second = workers.send("skipped")
    workers.ended("skipped", "IGNORED")
    workers.let_through("skipped")
    assert workers.result_of(first) == "done by 1"
    assert workers.state_of(second) == "PENDING"
    assert len(workers.started("skipped")) == 1


def test_workers_try_again_what_another_does(workers: Workers) -> None:
    workers.start("prefork", 2)
    first = workers.send("retried")
    workers.started("retried")
    second = workers.send("retried")
    workers.ended("retried", "RETRY", 5)  # more often than a task is retried if nothing is said
    workers.let_through("retried", 2)
    assert (workers.result_of(first), workers.result_of(second)) == ("done by 1", "done by 2")


def test_workers_wait_for_what_another_does(workers: Workers, redis_server: RedisServer) -> None:
    workers.start("prefork", 2)
    sent = [workers.send("waiting", day) for day in ("monday", "tuesday")]
    with distlock.connect(redis_server.url) as locks:
        wait_until(lambda: len(locks.inspect("tests.celery_app.waiting").waiters) == 1, "the second to wait", PATIENCE)
        assert len(workers.started("waiting")) == 1
    workers.let_through("waiting", 2)
    assert sorted(map(workers.result_of, sent)) == ["done by 1", "done by 2"]


def test_a_message_that_was_done_but_not_acknowledged_is_not_done_again(workers: Workers) -> None:
    """celery/celery#5935: with a visibility timeout, messages are delivered to several workers."""
    workers.notes.rpush("kill", "the first")
    first = workers.start()
    sent = workers.send("charged")
    workers.started("charged")
    workers.let_through("charged")
    workers.next_after(first)
    assert first.returncode == -signal.SIGKILL
    workers.ended("charged", "SUCCESS", 2)
    assert workers.result_of(sent) == "done by 1"
    assert len(workers.started("charged")) == 1


def test_a_message_whose_worker_was_killed_in_the_middle_is_done_by_another(workers: Workers) -> None:
    first = workers.start()
    sent = workers.send("charged")
    assert workers.started("charged") == [first.pid]
    first.kill()
    second = workers.next_after(first)
    assert workers.started("charged", 2) == [first.pid, second.pid]
    workers.let_through("charged")
    assert workers.result_of(sent) == "done by 1"


def test_a_message_whose_process_was_killed_is_done_by_the_next(workers: Workers) -> None:
    """A prefork worker whose child is gone starts another one, which has inherited nothing."""
    workers.start("prefork")
    sent = workers.send("charged_by_a_child")
    (child,) = workers.started("charged_by_a_child")
    os.kill(child, signal.SIGKILL)
    assert workers.started("charged_by_a_child", 2)[1] != child
    workers.let_through("charged_by_a_child")
    assert workers.result_of(sent) == "done by 1"


def test_two_messages_of_one_key_are_done_once(workers: Workers) -> None:
    workers.start("prefork", 2)
    sent = [workers.send("shipped", "o1") for _ in range(2)]
    workers.started("shipped")
    workers.let_through("shipped", 2)
    assert list(map(workers.result_of, sent)) == ["done by 1"] * 2
    assert len(workers.started("shipped")) == 1
