"""The same request in many processes, which are killed, stopped and forked; and Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

import distlock
from distlock import Manager, Unsupported
from distlock._clock import now
from distlock.testing.process import Process

from .interruption import Interruption
from .once_worker import KEY, TTL
from .programs import wait_until
from .zookeeper_servers import ZooKeeperServer

ROOT = Path(__file__).parent.parent


class Ground(NamedTuple):
    """A store that other processes can reach."""

    name: str
    fixture: str
    """Gives its URL."""
    lease: float
    """Seconds: short, for tests that wait for its end."""
    duplicates: int
    """That two processors carry in a few seconds."""


STORES = (
    Ground("file", "file_url", 2.0, 500),
    Ground("redis", "redis_url", 2.0, 500),
    Ground("etcd", "etcd_url", 2.0, 200),
    Ground("zookeeper", "zookeeper_url", 4.0, 200),
)
STORES_WITHOUT_RESULTS = {"redlock": "redlock://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3"}


class Worker(Process):
    """See `once_worker`."""

    def __init__(self, url: str, ledger: Path) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.once_worker", url, str(ledger)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


class Scene:
    """One store, the workers at it, and the ledger in which each run of the body has a line."""

    def __init__(self, ground: Ground, url: str, ledger: Path) -> None:
        self.ground = ground
        self.url = url
        self._ledger = ledger
        self._workers: list[Worker] = []
        ledger.touch()

    def worker(self) -> Worker:
        self._workers.append(Worker(self.url, self._ledger))
        return self._workers[-1]

    def begun(self) -> Worker:
        """A worker in the body."""
        worker = self.worker()
        assert worker.ask(f"begin {self.ground.lease}") == "begun"
        return worker

    def crowd(self, processes: int, duplicates: int, lease: float) -> list[Worker]:
        """So many duplicates in so many processes, a fifth of them threads and the others tasks."""
        workers = [self.worker() for _ in range(processes)]
        each = duplicates // processes
        for worker in workers:
            worker.tell(f"ask {lease} {each // 5} {each - each // 5}")
        assert [worker.hear() for worker in workers] == ["asked"] * processes
        return workers

    def answers(self, workers: list[Worker]) -> Counter[str]:
        """All that they got, once the body may go on."""
        self._ledger.with_suffix(".go").touch()
        for worker in workers:
            worker.tell("answers")
        return sum((Counter(json.loads(worker.hear())) for worker in workers), Counter())

    @property
    def runs(self) -> list[tuple[int, float]]:
        """Who has begun the work, and when."""
        lines = [line.split() for line in self._ledger.read_text().splitlines()]
        return [(int(pid), float(at)) for pid, at in lines]

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def zookeeper_url(shared_zookeeper: ZooKeeperServer) -> str:
    return shared_zookeeper.url


@pytest.fixture(params=STORES, ids=[ground.name for ground in STORES])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    ground: Ground = request.param
    scene = Scene(ground, request.getfixturevalue(ground.fixture), tmp_path / "ledger")
    yield scene
    scene.close()


@contextmanager
def connected(scene: Scene) -> Iterator[Manager]:
    with distlock.connect(scene.url) as locks:
        yield locks


def ask(locks: Manager, result: str, key: str = KEY) -> object:
    """What whoever asks now gets: ``result``, if it is theirs to do."""
    with locks.once(key, ttl=TTL, timeout=60) as work:
        return work.result if work.replayed else work.complete(result)


@pytest.mark.parametrize("url", STORES_WITHOUT_RESULTS.values(), ids=STORES_WITHOUT_RESULTS)
def test_a_store_that_keeps_no_results_says_so(url: str) -> None:
    with distlock.connect(url) as locks, pytest.raises(Unsupported, match="no results"):
        locks.once(KEY, ttl=TTL)


def test_duplicates_are_done_once(scene: Scene) -> None:
    workers = scene.crowd(4, scene.ground.duplicates, lease=30.0)
    answers = scene.answers(workers)
    ((pid, _),) = scene.runs
    assert answers == {f"by {pid}": scene.ground.duplicates}


def test_work_of_a_killed_worker_is_done_once_more(scene: Scene) -> None:
    """And not before its lease is over: until then nobody knows that it is dead; but of `flock` the kernel does."""
    killed, duplicates = scene.begun(), scene.ground.duplicates // 5
    workers = scene.crowd(2, duplicates, scene.ground.lease)
    proven_until = float(killed.ask("proven"))
    killed.kill()
    answers = scene.answers(workers)
    (first, _), (second, began_at) = scene.runs
    assert first == killed.popen.pid
    assert answers == {f"by {second}": duplicates}
    with connected(scene) as locks:
        if locks.guarantees.dead_holder != "at once":
            assert began_at >= proven_until


def test_a_stopped_worker_does_not_overwrite_the_result(scene: Scene) -> None:
    """It stopped for longer than its lease, and goes on as if nothing had been."""
    stopped = scene.begun()
    stopped.popen.send_signal(signal.SIGSTOP)
    stopped_at = now()
    answers: list[object] = []
    with connected(scene) as locks:
        other = threading.Thread(target=lambda: answers.append(ask(locks, "second")))
        other.start()
        if locks.guarantees.dead_holder != "at once":
            wait_until(lambda: bool(answers), "the other to do the work")
        else:  # the kernel gives nobody a lock that a stopped process has
            wait_until(lambda: now() > stopped_at + scene.ground.lease, "the lease to end")
            assert answers == []
        stopped.tell("complete first")
        stopped.popen.send_signal(signal.SIGCONT)
        assert stopped.hear() == "LockLost"
        other.join()
        assert answers == ["second"]
        assert ask(locks, "third") == "second"


def test_a_forked_child_cannot_complete_the_work(scene: Scene) -> None:
    worker = scene.begun()
    assert worker.ask("fork") == "fine"
    with connected(scene) as locks:
        found = locks.results.get(KEY)
        assert found is not None
        assert found.state == "in progress"
        assert worker.ask("complete parent") == "parent"
        assert ask(locks, "other") == "parent"


def test_a_result_is_there_for_who_comes_later(scene: Scene) -> None:
    """When the process that did the work is long gone."""
    worker = scene.begun()
    assert worker.ask("complete first") == "first"
    worker.kill()
    assert scene.worker().ask(f"begin {scene.ground.lease}") == "replayed"


# Ctrl-C


@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a lease that was made, and never given
def test_work_that_is_interrupted_anywhere_is_done_or_free() -> None:
    """At each line of distlock: never in progress with nobody at it, nor done without a record."""
    package = str(Path(distlock.__file__).parent)
    with distlock.connect("memory://") as locks:
        ask(locks, "warm")
        for line in range(1, 3000):
            key, began = f"k{line}", False
            try:
                with Interruption(line, package) as interruption, locks.once(key, ttl=TTL) as work:
                    began = True
                    work.complete("first")
            except KeyboardInterrupt:
                pass
            wait_until(lambda: not locks.results_manager()._watchdog._chores, "what was left over to be done")
            answers = [ask(locks, result, key) for result in ("second", "third")]
            assert answers in (["first"] * 2, ["second"] * 2)
            assert began or answers[0] == "second"
            if not interruption.happened:
                break
        assert 50 < line < 2999
