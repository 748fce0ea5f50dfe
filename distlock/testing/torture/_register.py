"""The register that all critical sections write to, a process of its own: it refuses tokens below the highest it has
seen of a key, and takes everything else, lost updates too, for the checker to see.

A request is a line of JSON, ``[verb, who asks, number of the attempt, key, token, version]``, and so is its answer:
``["at", version]``, ``["took", new version]`` or ``["refused", highest token]``. A token that is null is never refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import anyio

from ._events import Log, What

__all__ = ("READY", "Ask", "Register", "ask_register", "main")

READY = "ready"

Ask: TypeAlias = "Callable[..., Awaitable[tuple[str, int]]]"


class Register:
    """One version and one highest token a key. For one thread."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._versions: defaultdict[str, int] = defaultdict(int)
        self._highest: defaultdict[str, int] = defaultdict(int)

    def answer(self, line: str) -> str:
        """What was asked is done, and logged, when this returns."""
        verb, by, number, key, token, read = json.loads(line)
        refused = token is not None and token < self._highest[key]
        if token is not None:
            self._highest[key] = max(self._highest[key], token)
        if verb == "read":
            return json.dumps(["at", self._versions[key]])
        about = {"by": by, "try": number, "token": token}
        if refused:
            self._log.say("register", What.TURNED_DOWN, key, **about, highest=self._highest[key])
            return json.dumps(["refused", self._highest[key]])
        self._versions[key] += 1
        self._log.say("register", What.TOOK, key, **about, version=self._versions[key], read=read)
        return json.dumps(["took", self._versions[key]])


@asynccontextmanager
async def ask_register(path: str, *, is_async: bool) -> AsyncIterator[Ask]:
    """A connection, for one critical section. In sync code nothing here suspends."""
    if is_async:
        async with await anyio.connect_unix(path) as stream:

            async def ask(*request: object) -> tuple[str, int]:
                # Not what is to be cancelled: what the register has taken, its writer has to know.
                answer = b""
                with anyio.CancelScope(shield=True):
                    await stream.send(_line(request))
                    while not answer.endswith(b"\n"):
                        answer += await stream.receive()
                return _read(answer)

            yield ask
        return
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)

        async def ask_here(*request: object) -> tuple[str, int]:
            line.sendall(_line(request))
            answer = b""
            while not answer.endswith(b"\n"):
                more = line.recv(4096)
                if not more:
                    raise ConnectionError("the register has ended")
                answer += more
            return _read(answer)

        yield ask_here


def _line(request: tuple[object, ...]) -> bytes:
    return json.dumps(request).encode() + b"\n"


def _read(answer: bytes) -> tuple[str, int]:
    word, number = json.loads(answer)
    return word, number


async def _serve(folder: Path, path: str) -> None:
    register = Register(Log(folder / "register.jsonl"))

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(register.answer(line.decode()).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # whoever asked was killed, perhaps in the midst of a line
            pass
        finally:
            writer.close()

    async with await asyncio.start_unix_server(attend, path, backlog=1024):
        print(READY, flush=True)
        await asyncio.Event().wait()


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)  # nothing is left to write: each line stands when it is answered


def main() -> None:
    """Serves until its stdin ends. Arguments: the folder of the logs, the path of the socket."""
    os.setpgid(0, 0)  # Ctrl-C is for the run
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2]))
