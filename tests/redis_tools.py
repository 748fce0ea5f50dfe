"""For the tests of Redis: one test in three colours, a look into the server, and processes to be killed."""

from __future__ import annotations

import functools
import inspect
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

import distlock.backends.redis  # imports read files: not in an event loop
from distlock import AsyncLease, Inspection, Lease, Lock, Manager
from distlock.testing import Store, colours

from .children import untraced
from .servers import RedisServer, _encode

__all__ = (
    "ASYNC",
    "Child",
    "Colour",
    "Connect",
    "Probe",
    "in_colours",
    "monitor",
    "store_of",
    "touching_its_keys",
    "until",
)

ASYNC = colours.COLOURS[1:]
PATIENCE = 40.0
"""Seconds after which something will not happen any more. A bound, never a measure."""

AnyLease = Lease | AsyncLease
Connect = Callable[..., Manager]
"""`distlock.connect`, with a manager that is closed after the test."""


def in_colours(*names: str) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """A test in colours: an async function that is given ``colour`` and, if it likes, ``connect``."""

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        signature = inspect.signature(test)
        wanted = list(signature.parameters.values())

        @functools.wraps(test)
        def run(colour: str, **fixtures: Any) -> None:
            with ExitStack() as managers:
                if "connect" in signature.parameters:
                    fixtures["connect"] = lambda *args, **kwargs: managers.enter_context(
                        distlock.connect(*args, **kwargs)
                    )
                painted = Colour(colour)
                painted.run(lambda: test(painted, **fixtures))

        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[parameter for parameter in wanted if parameter.name != "connect"]
        )
        each: Callable[..., None] = pytest.mark.parametrize("colour", names or colours.COLOURS)(run)
        return each

    return decorate


def until(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Waits, outside of event loops, for what no event tells."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


class Colour(colours.Colour):
    """With the managers that a test has connected itself."""

    async def acquire(self, lock: Lock, timeout: float | None = PATIENCE) -> AnyLease:  # type: ignore[override]
        lease: AnyLease = await super().acquire(lock, timeout=timeout)
        return lease

    async def inspect(self, locks: Manager, key: str) -> Inspection:
        return await locks.inspect_async(key) if self.is_async else locks.inspect(key)

    async def list(self, locks: Manager, prefix: str = "") -> Sequence[Inspection]:
        return await locks.list_async(prefix) if self.is_async else locks.list(prefix)


class Probe:
    """What a server says of the locks of one namespace, asked on connections that are not counted."""

    def __init__(self, server: RedisServer, namespace: str = "default") -> None:
        self._server = server
        self._namespace = namespace

    def name(self, key: str, suffix: str = "") -> str:
        """The name under which the server knows a lock."""
        return f"distlock:{{{self._namespace}:{key}}}{suffix}"

    @property
    def clock(self) -> str:
        return f"distlock:{self._namespace}:clock"

    def ask(self, *command: str | bytes | int) -> Any:
        return self._server.command(*command)

    def keys(self) -> set[str]:
        """All keys of the database but the clock."""
        return {name.decode() for name in self.ask("KEYS", "*")} - {self.clock}

    def value(self, key: str) -> bytes | None:
        value: bytes | None = self.ask("GET", self.name(key))
        return value

    def pttl(self, key: str) -> int:
        return int(self.ask("PTTL", self.name(key)))

    def queued(self, key: str) -> int:
        """How many wait. A claim that was withdrawn leaves a tombstone for a while, which does not count."""
        return sum(record.split()[4] != b"-" for record in self.ask("HVALS", self.name(key, ":w")))

    def clients(self) -> list[dict[str, str]]:
        """The connections, but for those of the probe."""
        lines = self.ask("CLIENT", "LIST").decode().splitlines()
        found = [dict(word.partition("=")[::2] for word in line.split()) for line in lines]
        return [client for client in found if client["user"] != "harness"]

    def subscribers(self) -> int:
        return sum(client["sub"] != "0" for client in self.clients())

    def calls(self) -> Counter[str]:
        """How often each command was carried out, those in scripts included."""
        lines = self.ask("INFO", "commandstats").decode().splitlines()
        pairs = [line.removeprefix("cmdstat_").split(":calls=") for line in lines if ":calls=" in line]
        return Counter({name: int(rest.partition(",")[0]) for name, rest in pairs})

    def requests(self) -> int:
        """How many scripts clients have run."""
        calls = self.calls()
        return calls["evalsha"] + calls["eval"]


def store_of(url: str, node_of: Callable[[str], RedisServer], nodes: Sequence[RedisServer]) -> Store:
    """Of several servers, of which one has the key of that name."""

    def lose(key: str) -> None:
        name = f"distlock:{{default:{key}}}"
        node_of(name).command("DEL", name)

    def left() -> list[bytes]:
        names = [name for node in nodes for name in cast("list[bytes]", node.command("KEYS", "distlock:*"))]
        return [name for name in names if not name.endswith(b":clock")]

    return Store(connect=partial(distlock.connect, url), lose=lose, url=url, left=left)


Lines = list[tuple[str, list[str]]]


@contextmanager
def monitor(server: RedisServer) -> Iterator[Lines]:
    """What the server carries out meanwhile: for each command where it came from, and its words."""
    lines: Lines = []
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(server.socket_path)
        link.sendall(_encode(["AUTH", "harness", "-"]) + _encode(["MONITOR"]))
        stream = link.makefile("rb")
        assert stream.readline() + stream.readline() == b"+OK\r\n+OK\r\n"
        try:
            yield lines
        finally:
            server.command("ECHO", "that was it")
            for line in stream:
                source = re.search(rb"\[\d+ (lua)?", line)
                words = [word.decode() for word in re.findall(rb'"((?:[^"\\]|\\.)*)"', line)]
                if words[:2] == ["ECHO", "that was it"]:
                    break
                lines.append(("lua" if source and source[1] else "client", words))
            stream.close()


def touching_its_keys(lines: Lines) -> set[str]:
    """The commands that scripts have carried out, on none but the keys that each was given."""
    given: set[str] = set()
    seen: set[str] = set()
    for source, words in lines:
        name = words[0].upper()
        if name in ("EVALSHA", "EVAL"):
            given = set(words[3 : 3 + int(words[2])])
        elif source == "lua" and name not in ("TIME", "PUBLISH", "PUBSUB"):
            touched = set(words[1:]) if name in ("EXISTS", "DEL") else {words[1]}
            assert touched <= given, words
            seen.add(name)
    return seen


class Child:
    """Another process that acquires one lock and does as it is told. See ``redis_child.py``."""

    def __init__(self, url: str, key: str, ttl: float = 10.0, *, op_timeout: float = 5.0) -> None:
        """Ctrl-C may end it, so that it is not traced."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.redis_child", url, key, str(ttl), str(op_timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
            env=untraced(),
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def says(self) -> str:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the child has ended"
        return line

    def do(self, order: str) -> str:
        """What it answers to ``state`` or ``release``."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self.says()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """A crash."""
        self._process.kill()
        self._process.wait()
