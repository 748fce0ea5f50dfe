"""The server behind a URL, asked without distlock: the least that any lock on it costs, and what it has to do."""

from __future__ import annotations

import fcntl
import os
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .. import ConfigurationError
from ._measure import Unknown
from ._plan import PREFIX

__all__ = ("FileServer", "NoServer", "Server", "Usage", "server_of", "watched")

NOT_TOLD = Unknown("the server does not tell; name its process by --pid")
NO_SERVER = Unknown("there is no server")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server uses."""

    cpu: float | Unknown = NOT_TOLD
    """Seconds of processor time so far."""
    memory: float | Unknown = NOT_TOLD
    """Bytes."""
    connections: float | Unknown = NOT_TOLD


class Server(Protocol):
    """Used by one thread. Errors are the driver's own."""

    floor: str
    """What `run` does; empty if there is nothing less than the lock itself."""

    def run(self, count: int) -> None:
        """Takes and gives back the simplest of locks so many times."""

    def requests(self) -> float | Unknown:
        """How many it has received so far, this question not among them."""
        raise NotImplementedError

    def usage(self) -> Usage:
        """As of now."""
        raise NotImplementedError

    def close(self) -> None:
        """Deletes what `run` has left, and disconnects."""


class NoServer:
    """Of locks in the memory of a process."""

    floor = ""

    def run(self, count: int) -> None:
        """Nothing."""

    def requests(self) -> float | Unknown:
        """Nobody is asked."""
        return NO_SERVER

    def usage(self) -> Usage:
        """Nobody uses anything."""
        return Usage(NO_SERVER, NO_SERVER, NO_SERVER)

    def close(self) -> None:
        """Nothing."""


class FileServer(NoServer):
    """The kernel."""

    floor = "open, flock, unlock, close"

    def __init__(self, address: str, run: str) -> None:
        self._path = Path(urllib.parse.unquote(urllib.parse.urlsplit(address).path)) / f".distlock-bench-{run}"

    def run(self, count: int) -> None:
        """So many times."""
        for _ in range(count):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def close(self) -> None:
        """Deletes the file."""
        self._path.unlink(missing_ok=True)


def server_of(url: str, address: str, run: str) -> Server:
    """Connects. What the floor works on has ``run`` in its name, lies where the rights of the locks' user reach, and
    has a ~ before it where a namespace, which has none, would have its name."""
    scheme = url.partition("://")[0].lower()
    if "redis" in scheme or scheme.startswith(("redlock", "unix")):
        from ._redis import RedisServer

        return RedisServer(url, f"distlock:~bench:{run}", f"distlock:{{*:{PREFIX}{run}/*")
    if scheme.startswith("etcd"):
        from ._etcd import EtcdServer

        return EtcdServer(url, f"distlock/~bench/{run}")
    if scheme.startswith(("zk", "zookeeper")):
        from ._zookeeper import ZooKeeperServer

        return ZooKeeperServer(url, f"~bench-{run}")
    return FileServer(address, run) if scheme == "file" else NoServer()


def watched(pid: int) -> Callable[[Usage], Usage]:
    """Completes what a server tells by what the system knows of its process and all that it has started."""
    try:
        import psutil
    except ModuleNotFoundError as error:
        raise ConfigurationError("psutil is not installed; run: pip install 'pydistlock[bench]'") from error
    try:
        process = psutil.Process(pid)
    except psutil.Error as error:
        raise ConfigurationError(f"--pid: {error}") from None

    def complete(told: Usage) -> Usage:
        try:
            found = [_of_one(process)]
            ended = process.cpu_times()[2:4]  # of children
            family = process.children(recursive=True)
        except psutil.Error as error:
            why = Unknown(f"{type(error).__name__} of process {pid}")
            return Usage(why, why, told.connections)
        for each in family:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                found.append(_of_one(each))
        cpus, memories, links = zip(*found, strict=True)
        connections = sum(links) if isinstance(told.connections, Unknown) else told.connections
        return Usage(sum(cpus) + sum(ended), sum(memories), connections)

    return complete


def _of_one(process: Any) -> tuple[float, float, float]:
    """Seconds of processor time, bytes, and connections."""
    links = process.net_connections() if hasattr(process, "net_connections") else process.connections()
    established = sum(link.status == "ESTABLISHED" for link in links)
    return sum(process.cpu_times()[:2]), float(process.memory_info().rss), float(established)
