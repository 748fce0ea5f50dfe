"""The network between the members of an ensemble: a process that passes their bytes on, and cuts members off.

A line of stdin names those that are cut off from now on; a line of stdout says that it is so. The end of stdin ends
it. What is under way at a cut is late, as in a network that drops packets and sends them again.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ("Door", "Link", "run")

_CHUNK = 65536


class Link:
    """A connection from one member to another, which is cut with any of its ``ends``."""

    def __init__(self, *ends: str) -> None:
        self.ends = {*ends}

    def passed(self, data: bytes) -> bytes:
        """What is passed on of what the one that dialled has said."""
        return data


class Door(NamedTuple):
    """Where members dial: the descriptor of a bound socket, the port to pass on to, and a link for each that does."""

    descriptor: int
    port: int
    link: Callable[[], Link]


class _Network:
    def __init__(self) -> None:
        self._cut: set[str] = set()
        self._tasks: set[asyncio.Task[None] | None] = set()  # asyncio itself would let them be collected
        self._changed = asyncio.Event()

    def cut(self, ends: Iterable[str]) -> None:
        """These, and no others from now on."""
        self._cut = {*ends}
        self._changed.set()
        self._changed = asyncio.Event()

    async def serve(self, door: Door) -> None:
        async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._tasks.add(asyncio.current_task())
            link, writers = door.link(), [writer]
            try:
                await self._open(link)
                there, to_there = await asyncio.open_connection("127.0.0.1", door.port)
                writers.append(to_there)
                await asyncio.gather(
                    self._pass_on(link, reader, to_there, dialled=True),
                    self._pass_on(link, there, writer, dialled=False),
                )
            except OSError:
                pass  # either of them has gone
            finally:
                for each in writers:
                    each.transport.abort()
                self._tasks.discard(asyncio.current_task())

        listener = socket.socket(fileno=door.descriptor)
        listener.listen(128)
        await asyncio.start_server(welcome, sock=listener)

    async def _open(self, link: Link) -> None:
        while self._cut & link.ends:
            await self._changed.wait()

    async def _pass_on(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, dialled: bool
    ) -> None:
        while data := await reader.read(_CHUNK):
            if dialled:
                data = link.passed(data)
            await self._open(link)
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def _main(doors: Iterable[Door]) -> None:
    network = _Network()
    for door in doors:
        await network.serve(door)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        network.cut(line.decode().split())
        sys.stdout.write("done\n")
        sys.stdout.flush()


def run(doors: Iterable[Door]) -> None:
    asyncio.run(_main(doors))
