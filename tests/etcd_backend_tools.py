"""The backend of etcd as its tests see it: what it asks, and what they do to that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import distlock
from distlock._clock import now
from distlock.backends.base import BackendUnavailable
from distlock.backends.etcd import EtcdBackend, open_url
from distlock.backends.etcd._client import Answer
from distlock.backends.etcd._rpc import TXN, Method, pb
from distlock.backends.etcd._watches import Watches

from .etcd_servers import EtcdServer

__all__ = (
    "Spy",
    "backend_of",
    "in_threads",
    "names_of_leases",
    "opened",
    "spied",
    "watch_made",
)

Request = Any
Send = Callable[[], Answer[Any]]


class Spy:
    """Sees all single requests of a backend (not what goes over its streams), and may have its way with them."""

    def __init__(self, backend: EtcdBackend) -> None:
        self.asked: list[str] = []
        """The names of the methods, in order."""
        self._call = backend._client.call
        self._ways: list[tuple[Method[Any, Any], Callable[[Request], bool], Callable[[Send], Answer[Any]]]] = []
        backend._client.call = self._pass  # type: ignore[method-assign]

    def _pass(self, method: Method[Any, Any], request: Request, deadline: float, *, key: str | None = None) -> Any:
        self.asked.append(method.path.rpartition("/")[2])
        for number, (of, fits, way) in enumerate(self._ways):
            if of is method and fits(request):
                del self._ways[number]
                return way(lambda: self._call(method, request, now() + 5, key=key))
        return self._call(method, request, deadline, key=key)

    def next(
        self,
        way: Callable[[Send], Answer[Any]],
        method: Method[Any, Any] = TXN,
        fits: Callable[[Request], bool] = lambda request: True,
    ) -> None:
        """What becomes of the next such request. ``way`` is given a function that sends it."""
        self._ways.append((method, fits, way))

    def hold_back(self, method: Method[Any, Any] = TXN) -> list[Send]:
        """The next such request is not answered; the test sends it, late, if it likes."""
        held: list[Send] = []

        def way(send: Send) -> Answer[Any]:
            held.append(send)
            raise _unanswered()

        self.next(way, method)
        return held

    def lose_reply(self, method: Method[Any, Any] = TXN, fits: Callable[[Request], bool] = lambda _: True) -> None:
        """The next such request is carried out, which nobody learns."""

        def way(send: Send) -> Answer[Any]:
            send()
            raise _unanswered()

        self.next(way, method, fits)

    def send_twice(self) -> list[Send]:
        """The next transaction is sent again, as if the first had not been answered; that one may come late."""
        held: list[Send] = []

        def way(send: Send) -> Answer[Any]:
            held.append(send)
            return Answer(send().value, again=True)

        self.next(way)
        return held


def _unanswered() -> BackendUnavailable:
    return BackendUnavailable("the line is cut", backend="etcd", sent=True)


@contextmanager
def opened(url: str, op_timeout: float = 5.0) -> Iterator[EtcdBackend]:
    backend = open_url(url, namespace="default", op_timeout=op_timeout)
    try:
        yield backend
    finally:
        backend.close()


@contextmanager
def spied(url: str, **options: Any) -> Iterator[tuple[EtcdBackend, Spy]]:
    with opened(url, **options) as backend:
        yield backend, Spy(backend)


def watch_made(watches: Watches) -> threading.Event:
    """Is set when the first watch is made, and the server has said so. To be asked for before anyone waits."""
    made, hear = threading.Event(), watches._heard

    def heard(turn: object, reply: pb.WatchResponse) -> None:
        hear(turn, reply)
        made.set()

    watches._heard = heard  # type: ignore[method-assign]
    return made


def names_of_leases(server: EtcdServer) -> dict[int, Sequence[str]]:
    """The keys of each lease."""
    return {lease: server.lease_keys(lease) for lease in server.leases()}


def in_threads(count: int, call: Callable[[int], object]) -> None:
    """All at the same time, to their end."""
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait(10)
            call(number)
        except BaseException as error:  # noqa: BLE001 - it is the test's
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def backend_of(manager: distlock.Manager) -> EtcdBackend:
    backend = manager._backend
    assert isinstance(backend, EtcdBackend)
    return backend
