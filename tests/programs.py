"""Servers of the tests' own: started on a free port of this machine, ended by process id.

A server never outlives the tests: the kernel kills it when the process that started it dies.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import current_thread, main_thread
from types import MappingProxyType
from typing import NoReturn, TypeVar

import pytest

from distlock.testing._ports import bind_free_port

__all__ = (
    "START_TIMEOUT",
    "Program",
    "bind_free_port",
    "launch",
    "launch_prefix",
    "missing",
    "start_all",
    "wait_until",
)

START_TIMEOUT = 120.0  # three servers of Java need some, on a machine that is busy with other tests
_STOP_TIMEOUT = 10.0
_CHANGE_TIMEOUT = 120.0  # for several servers to agree; some seconds less than a test may last

ProgramT = TypeVar("ProgramT", bound="Program")


def _free_port() -> int:
    with bind_free_port() as bound:
        return int(bound.getsockname()[1])


def missing(reason: str, *, in_ci: bool = True) -> NoReturn:
    """For a test whose server is not there: it fails in CI, and is skipped elsewhere."""
    if os.environ.get("CI") and in_ci:
        pytest.fail(reason)
    pytest.skip(reason)


class Program(ABC):
    """A server of the test's own, as a context manager."""

    start_timeout = START_TIMEOUT

    def __init__(self, within: Sequence[str] = ()) -> None:
        """``within``: what its command begins with, to run in another namespace."""
        self.port = 0
        self._within = [*within]
        self._paused = False
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} port={self.port} pid={self._process.pid if self._process else None}>"

    def __enter__(self: ProgramT) -> ProgramT:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    # Where it is

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether it was started and not ended since; it may be paused."""
        return self._process is not None

    @property
    def up(self) -> bool:
        """Whether it runs and is not paused."""
        return self.running and not self._paused

    @property
    def folder(self) -> Path:
        """Its files. Short, since the path of a Unix socket may have some hundred characters at most."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="distlock-"))
        return self._folder

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    # Its life

    def start(self) -> None:
        """Starts it and waits until it answers. Later starts use the port of the first."""
        if self._process is not None:
            raise RuntimeError("the server runs already")
        program = self._program()
        deadline = time.monotonic() + self.start_timeout
        first = self.port == 0
        while True:
            if first:
                self._take_ports()
            before = len(self.log())
            self._process = launch(
                [*self._within, program, *self._arguments()], self.folder / "out.log", self._environment()
            )
            if self._answers(deadline):
                return
            self.kill()
            said = self.log()[before:]
            # Someone else may have bound the port before the server did; nothing else is worth another try.
            if "address already in use" not in said.lower() or time.monotonic() > deadline:
                raise RuntimeError(f"{Path(program).name} did not start:\n{said[-2000:]}")

    def stop(self) -> None:
        """An orderly shutdown (SIGTERM), which saves the data."""
        process = self._running()
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_TIMEOUT)
        self._process, self._paused = None, False

    def kill(self) -> None:
        """A crash (SIGKILL)."""
        process = self._running()
        process.kill()
        process.wait(_STOP_TIMEOUT)
        self._process, self._paused = None, False

    def discard(self) -> None:
        """Ends it at once, with all of its files."""
        if self.running:
            self.kill()
        self.__exit__()

    def restart(self, *, data: bool = True, crash: bool = False) -> None:
        """Down and up again at the same address, with its data or empty."""
        if crash:
            self.kill()
        else:
            self.stop()
        if not data:
            self.forget()
        self.start()

    def forget(self) -> None:
        """Its data is deleted, while it does not run."""
        shutil.rmtree(self.folder / "data")

    def pause(self) -> None:
        """Stops it (SIGSTOP), as a long pause of its machine would; on return it stands still."""
        pid = self.pid
        self._paused = True
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Lets it go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def log(self) -> str:
        path = self.folder / "out.log"
        return path.read_text() if path.exists() else ""

    # Each kind's own

    @abstractmethod
    def _program(self) -> str:
        """The path of its binary."""

    @abstractmethod
    def _arguments(self) -> list[str]: ...

    def _environment(self) -> Mapping[str, str]:
        """What is added to ours."""
        return {}

    @abstractmethod
    def _ready(self) -> bool:
        """Whether it is this server that answers now. An `OSError` or `RuntimeError` is a no."""

    def _take_ports(self) -> None:
        self.port = _free_port()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process

    def _answers(self, deadline: float) -> bool:
        process = self._running()
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError, RuntimeError):
                if self._ready():
                    return True
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        return False


def start_all(programs: Iterable[Program]) -> None:
    """Starts servers side by side."""
    programs = list(programs)
    with ThreadPoolExecutor(len(programs)) as pool:
        list(pool.map(lambda program: program.start(), programs))


def wait_until(condition: Callable[[], object], what: str, timeout: float = _CHANGE_TIMEOUT) -> None:
    """Asks until the answer is yes; the error tells what was waited for. An error of a server is a no."""
    deadline = time.monotonic() + timeout
    while True:
        error: Exception | None = None
        try:
            if condition():
                return
        except (OSError, RuntimeError) as no:  # Sentinels cut the connections of whom they demote, for one
            error = no
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout:g} s in vain for {what}") from error
        time.sleep(0.02)


@cache
def _launcher() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="server-launcher")


def launch(argv: list[str], log: Path, more: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen[bytes]:
    """Starts a program that the kernel kills when this process dies; ``more`` is added to our environment."""
    if current_thread() is not main_thread():
        # The kernel means the *thread* that started the program (prctl(2), PR_SET_PDEATHSIG), so a
        # thread that ends with the test must not be the one.
        return _launcher().submit(_popen, argv, log, more).result()
    return _popen(argv, log, more)


def launch_prefix() -> list[str]:
    """What a command begins with whose process is to die with ours."""
    # setpriv, not preexec_fn: Python code between fork and exec may deadlock where there are threads.
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def _popen(argv: list[str], log: Path, more: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [*launch_prefix(), *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, **more},
        )
