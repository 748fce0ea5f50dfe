"""What locks cost their store: counted there, or by a proxy on the way; and a clock that a test sets forward."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import distlock
from distlock import Manager, _clock
from distlock.backends.base import Claim
from distlock.backends.redis.redlock._node import Node
from distlock.testing.clock import _renamed
from distlock.testing.proxy import FaultProxy

from .clusters import ClusterSetup
from .etcd_servers import EtcdServer
from .redis_tools import Probe
from .zookeeper_backend_tools import session_of
from .zookeeper_servers import ZooKeeperServer
from .zookeeper_tools import folder_of

__all__ = (
    "KEY",
    "TTL",
    "Clock",
    "ClusterMeter",
    "EtcdMeter",
    "Meter",
    "RedlockMeter",
    "Spent",
    "ZooKeeperMeter",
    "is_asleep",
)

KEY = "orders:42"
TTL = 60.0
"""Seconds: nothing recurs by itself while a test runs, and two thirds of it are no reason to give a connection up."""


class Clock:
    """The time of distlock, which a test sets forward. Servers notice nothing, and threads that sleep sleep on."""

    def __init__(self) -> None:
        self._real = _clock.now
        self._ahead = 0.0

    def now(self) -> float:
        return self._real() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Clock]:
        clock = cls()
        with _renamed(_clock.now, clock.now):
            yield clock


def is_asleep(manager: Manager) -> bool:
    """Its watchdog has seen all leases, and waits for the time of the first."""
    watchdog = manager._watchdog
    with watchdog._mutex:
        return not watchdog._nudged and (watchdog._next_look < float("inf") or not watchdog.holds)


class Spent(NamedTuple):
    """What something has cost."""

    trips: int
    """Round trips: how often something was sent after all that was sent before had been answered."""
    requests: int
    """However many of them go out together."""
    sent: int
    """Bytes, by clients."""
    received: int


class Meter:
    """A store whose clients are counted. What they ask in the background may be counted a moment later."""

    crowd = 2
    """How many are to wait, of whom one is to be woken."""

    def __init__(self, url: str, *proxies: FaultProxy) -> None:
        self.url = url
        self._proxies = proxies

    def connect(self) -> Manager:
        """One more client."""
        return distlock.connect(self.url)

    def spending(self) -> Callable[[], Spent]:
        """Gives what is spent from now on."""
        before, then = [proxy.traffic for proxy in self._proxies], self._counts()

        def spent() -> Spent:
            passed = [proxy.traffic - each for proxy, each in zip(self._proxies, before, strict=True)]
            trips, requests = (count - earlier for count, earlier in zip(self._counts(), then, strict=True))
            sent, received = sum(each.bytes_sent for each in passed), sum(each.bytes_received for each in passed)
            # Several servers are asked at the same time.
            return Spent(trips or max((each.flights for each in passed), default=0), requests, sent, received)

        return spent

    def _counts(self) -> tuple[int, int]:
        """Round trips (0: the proxies see them) and requests so far."""
        return 0, sum(proxy.traffic.commands for proxy in self._proxies)

    def stir(self, waiters: Manager) -> None:
        """Whoever keeps places in queues looks at the clock."""
        backend: Any = waiters._backend
        backend.inbox._nudge()

    def is_quiet(self, waited: int) -> bool:
        """Nothing is under way, with so many that have begun to wait so far."""
        return all(link.server_spoke for proxy in self._proxies for link in list(proxy._links))


class ClusterMeter(Meter):
    """Its nodes say themselves where they are, past any proxy: only what they have carried out is counted."""

    def __init__(self, setup: ClusterSetup) -> None:
        super().__init__(setup.url)
        self._probes = [Probe(node) for node in setup.primaries]

    def _counts(self) -> tuple[int, int]:
        return 0, sum(probe.requests() for probe in self._probes)

    def stir(self, waiters: Manager) -> None:
        backend: Any = waiters._backend
        for inbox in backend.inbox._inboxes.values():
            inbox._nudge()


class RedlockMeter(Meter):
    """By a proxy a node.

    Who waits looks once more when a majority would tell it the news; of several it is not known which of them do.
    """

    crowd = 1

    def __init__(self, url: str, *proxies: FaultProxy) -> None:
        super().__init__(url, *proxies)
        self._looks = 0
        self._nodes: list[Node] = []

    def connect(self) -> Manager:
        manager = super().connect()
        backend: Any = manager._backend
        lost = backend._watcher.lost

        def noted(claim: Claim, *seen: Any) -> None:
            lost(claim, *seen)
            self._looks += claim.wait

        backend._watcher.lost = noted
        self._nodes += backend.nodes
        return manager

    def stir(self, waiters: Manager) -> None:
        backend: Any = waiters._backend
        backend._watcher._ring()

    def is_quiet(self, waited: int) -> bool:
        dialling = any(thread.name == "distlock-dial" for thread in threading.enumerate())
        answered = all(map(_is_answered, self._nodes))
        return super().is_quiet(waited) and self._looks >= 2 * waited and answered and not dialling


def _is_answered(node: Node) -> bool:
    """A majority is enough for a lock; the others may not even have been asked, as yet."""
    links = [*iter(node.take, None)]
    for link in links:
        node.give_back(link)
    return not any(link.owed for link in links)


class _PlacedMeter(Meter):
    """Of stores whose language no proxy knows: round trips are counted at the border to the driver."""

    def __init__(self, url: str, proxy: FaultProxy) -> None:
        super().__init__(url, proxy)
        self._trips = 0
        self._watches = 0

    def spending(self) -> Callable[[], Spent]:
        spent, before = super().spending(), self._trips
        return lambda: spent()._replace(trips=self._trips - before)

    def stir(self, waiters: Manager) -> None:
        backend: Any = waiters._backend
        with backend._clerk._mutex:
            backend._clerk._changed.notify()

    def is_quiet(self, waited: int) -> bool:
        return self._watches >= waited


class EtcdMeter(_PlacedMeter):
    """By its own metrics, in which each message of a stream is a request; those of streams are no round trips."""

    def __init__(self, server: EtcdServer, proxy: FaultProxy) -> None:
        super().__init__(server.url_at(proxy.port), proxy)
        self._server = server

    def connect(self) -> Manager:
        manager = super().connect()
        backend: Any = manager._backend
        client, watches = backend._client, backend._watches
        call, heard = client.call, watches._heard

        def counted(*args: Any, **options: Any) -> Any:
            self._trips += 1
            return call(*args, **options)

        def noted(turn: object, reply: Any) -> None:
            heard(turn, reply)
            self._watches += reply.created

        client.call, watches._heard = counted, noted
        return manager

    def _counts(self) -> tuple[int, int]:
        return 0, int(self._server.metric("grpc_server_msg_received_total"))


class ZooKeeperMeter(_PlacedMeter):
    """By its own count, less what is asked for that."""

    def __init__(self, server: ZooKeeperServer, proxy: FaultProxy) -> None:
        super().__init__(f"{server.url_at(proxy.port)}?session_timeout={TTL:g}", proxy)
        self._server = server
        self._asked = 0
        self._handles: list[Any] = []
        self._entrances: list[Any] = []
        server.client().ensure_path(folder_of(KEY))  # what locks make above them goes when they are free for a second
        server.drop_client()  # whose heartbeat would count

    def connect(self) -> Manager:
        manager = super().connect()
        backend: Any = manager._backend
        link: Any = session_of(backend, TTL)._link
        send, watch = link.send, backend.watch

        def counted(*args: Any) -> Any:
            self._trips += 1
            handles = send(*args)
            self._handles += handles
            return handles

        def noted(*args: Any) -> Any:
            watching = watch(*args)
            self._watches += 1
            return watching

        link.send, backend.watch = counted, noted
        self._entrances.append(backend._entrance)
        return manager

    def _counts(self) -> tuple[int, int]:
        self._asked += 1
        return 0, int(self._server.metric("zk_packets_received")) - self._asked

    def is_quiet(self, waited: int) -> bool:
        curious = any(entrance._asking or entrance._curious for entrance in self._entrances)
        return super().is_quiet(waited) and not curious and all(handle.result.ready() for handle in self._handles)
