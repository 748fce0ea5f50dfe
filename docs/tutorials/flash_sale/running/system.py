"""Starts every process of the shop, and starts again what dies, as systemd or Kubernetes do in real life."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
from redis import Redis, RedisError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from .. import tables
from ..outbox import STREAM
from ..settings import Settings
from .processes import CannotStart, Process, end, listen

__all__ = ("CannotStart", "System", "opening_database")

TUTORIALS = Path(__file__).resolve().parents[2]
START_TIMEOUT = 180.0
"""Seconds, for each of them to answer on a busy machine."""
SHORTEST_LIFE = 1.0
"""Seconds between two starts of the same process: one that dies at once must not keep the machine busy."""
GLANCE = 0.1
"""Seconds between two looks at who is alive."""
END_IN_ORDER = ({"shop"}, {"saga", "publisher", "consumer"}, {"services"}, {"redis"})
"""So that nobody loses what it works with."""


class System:
    """The whole shop, as a context manager: it answers when the block is entered, and is gone when it is left.

    The database has to be a new one. Settings may have "" for it and for Redis: then the system has its own, in the
    folder. What they say of the services is replaced. ``port`` is the shop's, 0 for a free one. ``tell`` is called with
    a line whenever a process is started again. Entering the block raises `CannotStart`. The methods may be called in
    any thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        port: int = 0,
        shop_workers: int = 3,
        saga_workers: int = 2,
        publishers: int = 2,
        consumers: int = 1,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.settings = settings
        """Once the block is entered, with the addresses of what runs."""
        self.url = ""
        """The shop's."""
        self._port = port
        self._shops = shop_workers
        self._workers = {"saga": saga_workers, "publisher": publishers, "consumer": consumers}
        self._tell = tell
        self._processes: list[Process] = []
        self._listeners: list[socket.socket] = []
        # Not joined, but told of by an event: a `join` that Ctrl-C interrupts believes that the thread is over.
        self._ready, self._ending, self._over = threading.Event(), threading.Event(), threading.Event()
        self._failure: Exception | None = None
        # One thread starts them all and outlives them: the kernel ties a child to the *thread* that started it.
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def __enter__(self) -> System:
        try:
            self._prepare()
            self._supervisor.start()
            self._ready.wait()
            if self._failure:
                raise self._failure
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        if self._supervisor.ident:
            self._over.wait()
        for listener in self._listeners:
            listener.close()

    def wait(self) -> None:
        """For ever, unless it cannot go on; then that error is raised."""
        self._over.wait()
        if self._failure:
            raise self._failure

    # For those who try what it withstands

    def pids(self, role: str) -> list[int]:
        """Of the processes that live now: ``shop``, ``saga``, ``publisher``, ``consumer``, ``services`` or
        ``redis``."""
        return [each.popen.pid for each in self._processes if each.role == role and each.popen and each.alive]

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to one of `pids`. Nothing happens if it has died meanwhile."""
        for each in self._processes:
            if each.popen and each.popen.pid == pid:
                each.signal(number)

    def restart_redis(self, number: int = signal.SIGKILL) -> None:
        """Ends its own Redis server by a signal. Returns when that is back, with what its disk has kept."""
        (server,) = (each for each in self._processes if each.role == "redis")
        lives = server.lives
        server.signal(number)
        self._wait_for("redis", lambda: server.lives > lives and _pings(self.settings.redis))

    # What there is to run

    def _prepare(self) -> None:
        folder = Path(self.settings.folder)
        folder.mkdir(parents=True, exist_ok=True)
        shop, services = self._listen(self._port), self._listen()
        self.url = _address(shop)
        redis = self.settings.redis or self._add_redis()
        database = self.settings.database or f"sqlite:///{folder.resolve()}/shop.db"
        self.settings = replace(self.settings, database=database, redis=redis, services=_address(services))
        on_trial = self.settings.faults or self.settings.without
        shop_module = "flash_sale.trial.entry" if on_trial else "flash_sale.shop"
        self._add("services", 1, _uvicorn("flash_sale.services", services), services)
        self._add("shop", self._shops, _uvicorn(shop_module, shop), shop)
        for role, count in self._workers.items():
            worker = "flash_sale.trial.entry" if on_trial else "flash_sale.worker"
            self._add(role, count, [sys.executable, "-m", worker, role])

    def _listen(self, port: int = 0) -> socket.socket:
        self._listeners.append(listen(port))
        return self._listeners[-1]

    def _add(self, role: str, count: int, command: Sequence[str], listener: socket.socket | None = None) -> None:
        for number in range(1, count + 1):
            name = f"{role}-{number}" if count > 1 else role
            log = Path(self.settings.folder, f"{name}.log")
            self._processes.append(Process(role, name, command, log, listener))

    def _add_redis(self) -> str:
        """Its URL. What it has acknowledged is on the disk: it may be killed at any time."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise CannotStart("there is no redis-server on this machine: install it, or give --redis URL")
        folder = tempfile.mkdtemp(prefix="redis-", dir=self.settings.folder)  # it must know nothing of an old sale
        with listen() as free:
            port = str(free.getsockname()[1])
        where = ("--bind", "127.0.0.1", "--port", port, "--dir", folder)
        self._add("redis", 1, [program, *where, "--appendonly", "yes", "--appendfsync", "always", "--save", ""])
        return f"redis://127.0.0.1:{port}/0"

    # The supervisor

    def _supervise(self) -> None:
        try:
            self._start()
            self._ready.set()
            while not self._ending.wait(GLANCE):
                self._start_the_dead()
        except Exception as error:  # noqa: BLE001 - it is raised in the thread that waits
            self._failure = error
        finally:
            for roles in END_IN_ORDER:
                end(each for each in self._processes if each.role in roles)
            self._over.set()
            self._ready.set()

    def _start(self) -> None:
        for each in self._processes:
            if each.role == "redis":
                each.start(self._environment())
                self._wait_for(each.name, lambda: _pings(self.settings.redis))
        _check_redis(self.settings.redis, make_ready=True)
        _make_tables(self.settings)
        for each in self._processes:
            if each.role != "redis":
                each.start(self._environment())
        self._wait_for("services", lambda: _is_well(self.settings.services))
        self._wait_for("shop", lambda: _is_well(self.url))

    def _start_the_dead(self) -> None:
        for each in self._processes:
            if not each.alive and time.monotonic() >= each.started + SHORTEST_LIFE:
                self._tell(f"{each.name} ended with status {each.status} and is started again; its log is {each.log}")
                each.start(self._environment())

    def _environment(self) -> dict[str, str]:
        path = [str(TUTORIALS), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**self.settings.environment(), "PYTHONPATH": os.pathsep.join(path)}

    def _wait_for(self, name: str, answers: Callable[[], bool]) -> None:
        """`CannotStart` as soon as it is known that it is in vain."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            dead = [each for each in self._processes if each.lives and not each.alive]
            if dead and not self._ready.is_set():
                raise CannotStart(dead[0].fate)
            if answers():
                return
            if time.monotonic() > deadline:
                raise CannotStart(f"{name} does not answer; its log is in {self.settings.folder}")
            if self._ending.wait(GLANCE):
                raise CannotStart("it was told to end")


def _uvicorn(module: str, listener: socket.socket) -> list[str]:
    served = ("--factory", f"{module}:create_app", "--fd", str(listener.fileno()))
    # The loop of asyncio takes the socket as it is. Whoever watches the live page must not keep the shop from ending.
    how = ("--loop", "asyncio", "--no-access-log", "--timeout-graceful-shutdown", "1")
    return [sys.executable, "-m", "uvicorn", *served, *how]


def _address(listener: socket.socket) -> str:
    return "http://{}:{}".format(*listener.getsockname())


def _is_well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1.0, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _check_redis(url: str, make_ready: bool = False) -> None:
    """Whether it answers; then it may be freed of an old sale's events."""
    try:
        with Redis.from_url(url, socket_connect_timeout=5.0, socket_timeout=5.0) as client:
            client.ping()
            if make_ready:
                client.delete(STREAM)
    except (ValueError, OSError, RedisError) as error:  # ValueError: it is no such URL
        raise CannotStart(f"Redis: {error}") from error


def _pings(url: str) -> bool:
    try:
        _check_redis(url)
    except CannotStart:
        return False
    return True


def _make_tables(settings: Settings) -> None:
    with opening_database():
        engine = tables.engine_of(settings.database)
        try:
            tables.create(engine, settings.stock)
        finally:
            engine.dispose()


@contextmanager
def opening_database() -> Iterator[None]:
    """Around the first use of a database: what is wrong with its URL, or with itself, is `CannotStart`."""
    try:
        yield
    except (SQLAlchemyError, RuntimeError, ImportError, ValueError) as error:  # no URL, no driver, or not a new one
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise CannotStart(f"the database: {' '.join(str(cause).split())}") from error
