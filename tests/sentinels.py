"""A real primary with replicas for the tests, watched over by real Sentinels, and what happens to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

from .servers import RedisServer, start_all, wait_until

__all__ = ("MASTER", "Sentinel", "SentinelSetup")

MASTER = "mymaster"
"""The name by which the Sentinels know what they watch."""

# While a crash is to be noticed. At other times a server may be silent for long, so that none is
# taken for dead on a loaded machine.
_FAST = 0.3
_DEBUG = {"INFO-PERIOD": 200, "PUBLISH-PERIOD": 200, "ASK-PERIOD": 200, "TILT-TRIGGER": 60_000}


class Sentinel(RedisServer):
    """A Sentinel that watches over the server at ``primary``, and with its companions needs ``quorum`` votes."""

    def __init__(
        self,
        primary: tuple[str, int],
        *,
        quorum: int,
        down_after: float,
        primary_password: str | None = None,
        password: str | None = None,
        binary: str | None = None,
    ) -> None:
        super().__init__(
            f"sentinel monitor {MASTER} {primary[0]} {primary[1]} {quorum}",
            f"sentinel down-after-milliseconds {MASTER} {down_after * 1000:.0f}",
            f"sentinel failover-timeout {MASTER} 2000",
            f"sentinel parallel-syncs {MASTER} 9",
            *([f'sentinel auth-pass {MASTER} "{primary_password}"'] if primary_password else []),
            *([f'sentinel sentinel-pass "{password}"'] if password else []),
            requirepass=password,
            binary=binary,
        )

    def start(self) -> None:
        super().start()
        # It looks about it ten times as often, so that what happens is known to all soon.
        self.command("SENTINEL", "DEBUG", *(word for pair in _DEBUG.items() for word in pair))

    def watched(self) -> int:
        """The port of the server that is the primary, as far as it knows."""
        address = self.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        assert isinstance(address, list)
        assert isinstance(address[1], bytes)
        return int(address[1])

    def knows(self) -> dict[str, str]:
        """What it knows of the primary (SENTINEL MASTER)."""
        words = self.command("SENTINEL", "MASTER", MASTER)
        assert isinstance(words, list)
        texts = [word.decode() for word in words if isinstance(word, bytes)]
        return dict(zip(texts[::2], texts[1::2], strict=True))

    def _arguments(self) -> list[str]:
        # What it has learned is in its file, which must outlive a restart.
        path = self.folder / "redis.conf"
        learned = path.exists() and f"port {self.port}" in path.read_text().splitlines()
        return [str(path if learned else self._write_config()), "--sentinel"]


class SentinelSetup:
    """A primary with replicas and Sentinels of the test's own, as a context manager.

    ``config`` are lines of redis.conf for the primary and its replicas, ``password`` is theirs. Every method
    returns when the Sentinels that are up agree on the primary, and each replica that is up has its data.
    """

    def __init__(
        self,
        *config: str,
        replicas: int = 2,
        sentinels: int = 3,
        password: str | None = None,
        sentinel_password: str | None = None,
        down_after: float = 15.0,
        binary: str | None = None,
    ) -> None:
        self.password = password
        self.sentinel_password = sentinel_password
        self.down_after = down_after
        self._binary = binary
        self._count = sentinels
        self.sentinels: list[Sentinel] = []
        self.nodes = [
            RedisServer(
                'save ""',
                "repl-diskless-sync yes",
                "repl-backlog-size 64kb",
                *config,
                requirepass=password,
                binary=binary,
            )
            for _ in range(1 + replicas)
        ]

    def __enter__(self) -> SentinelSetup:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.discard()

    # Where it is

    @property
    def url(self) -> str:
        return self.url_at(*(sentinel.port for sentinel in self.sentinels))

    def url_at(self, *ports: int, db: int = 0) -> str:
        """Its URL by way of some of the Sentinels, or of other ports (proxies')."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        query = f"?sentinel_password={quote(self.sentinel_password, safe='')}" if self.sentinel_password else ""
        return f"redis+sentinel://{login}{','.join(f'127.0.0.1:{port}' for port in ports)}/{MASTER}/{db}{query}"

    @property
    def servers(self) -> list[RedisServer]:
        return [*self.nodes, *self.sentinels]

    @property
    def primary(self) -> RedisServer:
        """The primary now, as the Sentinels know it."""
        port = next(sentinel for sentinel in self.sentinels if sentinel.up).watched()
        return next(node for node in self.nodes if node.port == port)

    @property
    def replicas(self) -> list[RedisServer]:
        primary = self.primary
        return [node for node in self.nodes if node is not primary]

    # What happens to it

    def flush(self) -> None:
        self.primary.command("FLUSHALL")

    def failover(self) -> RedisServer:
        """Has the Sentinels make a replica the primary (SENTINEL FAILOVER). The new primary."""
        old = self.primary

        def done() -> bool:
            if self.primary is old:
                self._ask_for_failover()
            return self.primary is not old and self.whole()

        wait_until(done, f"the Sentinels to replace {old!r}")
        return self._settled()

    def crash_primary(self) -> RedisServer:
        """Kills the primary (SIGKILL). The replica that took over."""
        return self._lose(RedisServer.kill)

    def freeze_primary(self) -> RedisServer:
        """Pauses the primary (SIGSTOP) until it has been replaced. The replica that took over; `revive` thaws."""
        return self._lose(RedisServer.pause)

    def revive(self, node: RedisServer) -> None:
        """Lets a node that was killed, stopped or paused come back; the Sentinels make a replica of an old primary."""
        if node.running:
            node.resume()
        else:
            node.start()
        self.settle()

    def settle(self) -> None:
        """Waits until all that are up agree on the primary, and each replica has its data."""
        wait_until(self.whole, "primary, replicas and Sentinels to agree")

    def whole(self) -> bool:
        """Whether the Sentinels that are up agree on the primary, and each replica that is up has its data."""
        sentinels = [sentinel for sentinel in self.sentinels if sentinel.up]
        primary = self.primary
        return (
            primary.up
            and primary.role() == "primary"
            and all(node.linked and (node is primary or node.role() == "replica") for node in self.nodes if node.up)
            and all(sentinel.watched() == primary.port for sentinel in sentinels)
            and all(self._is_ready(sentinel.knows()) for sentinel in sentinels)
        )

    # Inside

    def _start(self) -> None:
        first, *others = self.nodes
        first.start()
        for node in others:
            node.replica_of = first.address
        start_all(others)
        wait_until(lambda: all(node.linked for node in others), "the replicas to have the primary's data")
        self.sentinels = [self._sentinel(first) for _ in range(self._count)]
        start_all(self.sentinels)
        self.settle()

    def _sentinel(self, primary: RedisServer) -> Sentinel:
        return Sentinel(
            primary.address,
            quorum=self._count // 2 + 1,
            down_after=self.down_after,
            primary_password=self.password,
            password=self.sentinel_password,
            binary=self._binary,
        )

    def _is_ready(self, known: dict[str, str]) -> bool:
        return (
            known["flags"] == "master"  # neither thought to be down nor being replaced
            and int(known["num-other-sentinels"]) == self._count - 1
            and int(known["num-slaves"]) == len(self.nodes) - 1
        )

    def _ask_for_failover(self) -> None:
        try:
            next(sentinel for sentinel in self.sentinels if sentinel.up).command("SENTINEL", "FAILOVER", MASTER)
        except RuntimeError:  # it has begun already, or no replica is known to be fit yet
            return

    def _lose(self, how: Callable[[RedisServer], None]) -> RedisServer:
        old = self.primary
        with self._fast():
            how(old)
            wait_until(lambda: self.primary is not old and self.whole(), f"the Sentinels to replace {old!r}")
        return self._settled()

    def _settled(self) -> RedisServer:
        primary = self.primary
        primary.replica_of = None
        for node in self.nodes:
            if node.up and node is not primary:  # a dead one will come back as it went
                node.replica_of = primary.address
        return primary

    @contextmanager
    def _fast(self) -> Iterator[None]:
        self._set_down_after(_FAST)
        try:
            yield
        finally:
            self._set_down_after(self.down_after)

    def _set_down_after(self, seconds: float) -> None:
        for sentinel in self.sentinels:
            if sentinel.up:
                sentinel.command("SENTINEL", "SET", MASTER, "down-after-milliseconds", round(seconds * 1000))
