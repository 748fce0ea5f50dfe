"""distlock, kazoo's ``Lock`` and Curator's ``InterProcessMutex`` keep each other out, in one queue."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import pytest

import distlock

from .backend_tools import Rival
from .programs import missing, wait_until
from .zookeeper_servers import ZooKeeperServer

JARS = Path("/usr/share/java")
CLASSES = ":".join(str(JARS / f"{name}.jar") for name in ("curator-recipes", "commons-lang3", "slf4j-simple"))
KAZOO = """
import sys
from kazoo.client import KazooClient
client = KazooClient(sys.argv[1])
client.start()
with client.Lock(sys.argv[2], "kazoo"):
    print("held", flush=True)
    sys.stdin.read()
client.stop()
"""


@cache
def _compiled(folder: str) -> str:
    """The class path of the Java program, which is compiled there."""
    if not (JARS / "curator-recipes.jar").exists() or not (JARS / "ecj.jar").exists():
        missing("no Curator, or no compiler of Java: run scripts/install-servers")
    source = Path(__file__).parent / "java" / "CuratorLock.java"
    compiler = ["java", "-cp", str(JARS / "ecj.jar"), "org.eclipse.jdt.internal.compiler.batch.Main"]
    jars = ":".join(str(JARS / f"curator-{name}.jar") for name in ("client", "framework", "recipes"))
    subprocess.run([*compiler, "-11", "-nowarn", "-cp", jars, "-d", folder, str(source)], check=True)
    return f"{folder}:{CLASSES}"


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _compiled(str(tmp_path_factory.mktemp("classes")))


class Others:
    """Programs of one library that take locks below a path."""

    def __init__(self, server: ZooKeeperServer, layout: str, command: list[str]) -> None:
        self._server = server
        self._command = command
        self._stack = ExitStack()
        self.layout = layout
        self.url = f"{server.url}?layout={layout}&path=/some/locks"

    def queue(self) -> list[str]:
        return self._server.children("/some/locks/k")

    def start(self) -> Rival:
        """Starts one that wants the lock ``k``, and waits until it has queued."""
        before = len(self.queue())
        program = self._stack.enter_context(Rival(*self._command, self._server.hosts, "/some/locks/k"))
        wait_until(lambda: len(self.queue()) > before, f"a program of {self.layout} to queue")
        return program

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(params=["kazoo", "curator"])
def others(request: pytest.FixtureRequest, shared_zookeeper: ZooKeeperServer) -> Iterator[Others]:
    if request.param == "kazoo":
        command = [sys.executable, "-c", KAZOO]
    else:
        command = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", request.getfixturevalue("classes")]
        command += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "CuratorLock"]
    programs = Others(shared_zookeeper, request.param, command)
    yield programs
    programs.close()


@pytest.fixture
def locks(others: Others) -> Iterator[distlock.Manager]:
    with distlock.connect(others.url) as manager:
        yield manager


def test_neither_enters_while_the_other_holds(others: Others, locks: distlock.Manager) -> None:
    with locks.lock("k"):
        program = others.start()
        assert not program.is_in(0.3)
    assert program.is_in(20)
    assert locks.lock("k").try_acquire() is None
    holder = locks.inspect("k").holder
    assert holder is not None
    assert holder.owner.startswith("unknown: ")
    program.release()
    with locks.lock("k", timeout=20):
        pass


def test_all_wait_in_one_queue_in_the_order_of_arrival(others: Others, locks: distlock.Manager) -> None:
    order: list[str] = []

    def ours() -> None:
        with locks.lock("k", timeout=55):
            order.append("ours")

    first = locks.lock("k").acquire()
    queue: list[Callable[[], object]] = []
    for turn in range(4):
        if turn % 2:
            thread = threading.Thread(target=ours)
            thread.start()
            wait_until(partial(_long, others, turn + 2), "a thread to queue")
            queue.append(thread.join)
        else:
            program = others.start()

            def let_go(program: Rival = program) -> None:
                assert program.is_in(20)
                order.append(others.layout)
                program.release()

            queue.append(let_go)
    assert len(locks.inspect("k").waiters) == 4
    first.release()
    for each in queue:
        each()
    assert order == [others.layout, "ours"] * 2


def _long(others: Others, length: int) -> bool:
    return len(others.queue()) == length


def test_one_that_was_killed_is_passed_over(others: Others, locks: distlock.Manager) -> None:
    program = others.start()
    assert program.is_in(20)
    program.process.kill()
    with locks.lock("k", timeout=40) as lease:
        assert lease.token
