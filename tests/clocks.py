"""Wall clocks that tests set, of servers that run."""

from __future__ import annotations

import atexit
import ctypes
import mmap
import shutil
import subprocess
import tempfile
import time
import uuid
from functools import cache
from pathlib import Path

from .programs import missing

__all__ = ("WallClock",)

_SOURCE = Path(__file__).with_name("clock_shim.c")
_SECOND = 10**9  # nanoseconds


@cache
def _folder() -> Path:
    """For the files of this process, which go with it."""
    folder = tempfile.mkdtemp(prefix="distlock-clock-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def _shim() -> str:
    """The path of the library that is preloaded."""
    compiler = shutil.which("cc")
    if compiler is None:
        missing("no cc, which builds the clock of servers")
    path = _folder() / "clock_shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", path, _SOURCE], check=True)
    return str(path)


class WallClock:
    """The wall clock of the servers that are started with it (``RedisServer(clock=...)``), in seconds.

    It takes effect at once, and in later lives of a server too. What a server measures by the monotonic clock goes on.
    """

    def __init__(self) -> None:
        self._path = _folder() / uuid.uuid4().hex
        self._path.write_bytes(bytes(mmap.PAGESIZE))
        with self._path.open("r+b") as file:
            setting = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        # Each is written in one piece, so that no server sees half of it.
        self._ahead = ctypes.c_int64.from_buffer(setting, 0)
        self._still = ctypes.c_int64.from_buffer(setting, 8)

    @property
    def environment(self) -> dict[str, str]:
        """What a server is to be started with."""
        return {"LD_PRELOAD": _shim(), "CLOCK_SHIM": str(self._path)}

    @property
    def now(self) -> float:
        """What the servers see."""
        return (self._still.value or time.time_ns() + self._ahead.value) / _SECOND

    @property
    def ahead(self) -> float:
        """How far it is before that of the machine."""
        return (self._still.value - time.time_ns() if self._still.value else self._ahead.value) / _SECOND

    def jump(self, seconds: float) -> None:
        """Forwards, or backwards if it is negative. It may stand still while it does."""
        by = round(seconds * _SECOND)
        if self._still.value:
            self._still.value += by
        else:
            self._ahead.value += by

    def stop(self) -> None:
        """It stands still."""
        self._still.value = self._still.value or time.time_ns() + self._ahead.value

    def go_on(self) -> None:
        """From where it stands."""
        if self._still.value:
            self._ahead.value = self._still.value - time.time_ns()
            self._still.value = 0

    def set_right(self) -> None:
        """To the time of the machine."""
        self._ahead.value = 0
        self._still.value = 0
