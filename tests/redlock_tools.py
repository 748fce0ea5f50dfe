"""Several Redis servers that know nothing of each other, for the tests of Redlock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import distlock
import distlock.backends.redis.redlock  # imports read files: not in an event loop
from distlock.testing import Store

from .redis_tools import Probe
from .servers import RedisServer

__all__ = ("Nodes", "nodes_of", "redlock_store")


class Nodes:
    """The servers, some of which may be dead."""

    def __init__(self, servers: Sequence[RedisServer], dead: Sequence[RedisServer] = ()) -> None:
        self.servers = servers
        self.dead = set(dead)

    def __getitem__(self, place: int) -> RedisServer:
        return self.servers[place]

    @property
    def living(self) -> Sequence[RedisServer]:
        return [server for server in self.servers if server not in self.dead]

    @property
    def url(self) -> str:
        return self.url_at(*(server.port for server in self.servers))

    @staticmethod
    def url_at(*ports: int) -> str:
        return f"redlock://{','.join(f'127.0.0.1:{port}' for port in ports)}/0"

    def probes(self) -> Sequence[Probe]:
        return [Probe(server) for server in self.living]

    def flush(self) -> None:
        for server in self.living:
            server.command("FLUSHALL")

    def keys(self) -> list[str]:
        """What lies on any of them, but for the clocks."""
        return sorted(key for probe in self.probes() for key in probe.keys())  # noqa: SIM118 - no dict

    def kill(self, place: int) -> None:
        self.servers[place].kill()
        self.dead.add(self.servers[place])

    def start(self, place: int) -> None:
        self.servers[place].start()
        self.dead.discard(self.servers[place])


@contextmanager
def nodes_of(count: int, dead: int = 0, *, appendonly: bool = False) -> Iterator[Nodes]:
    """So many, the last ones of which are dead."""
    with ExitStack() as stack:
        servers = [stack.enter_context(RedisServer(appendonly=appendonly)) for _ in range(count)]
        nodes = Nodes(servers)
        for place in range(count - dead, count):
            nodes.kill(place)
        yield nodes


def redlock_store(nodes: Nodes) -> Store:
    """For the suite."""

    def lose(key: str) -> None:
        for probe in nodes.probes():
            probe.ask("DEL", probe.name(key))

    return Store(connect=partial(distlock.connect, nodes.url), lose=lose, url=nodes.url, left=nodes.keys)
