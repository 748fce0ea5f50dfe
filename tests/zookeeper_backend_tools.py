"""The backend of ZooKeeper as its tests see it: what it asks, and what they do to that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import distlock
from distlock.backends.base import BackendUnavailable
from distlock.backends.zookeeper import ZooKeeperBackend, open_url
from distlock.backends.zookeeper._session import Session

from .backend_tools import soon

__all__ = ("Spy", "backend_of", "opened", "session_of")


class Spy:
    """Sees all requests of one session, and may have its way with the answers."""

    def __init__(self, session: Session) -> None:
        self.asked: list[str] = []
        """The names of the requests, in order."""
        self.after: Callable[[Sequence[str]], object] = lambda names: None
        """Called with what was asked, when it was answered and nobody knows yet."""
        self._send = session._link.send
        self._call = session.call
        session._link.send = self._sent  # type: ignore[method-assign]
        session.call = self._called  # type: ignore[method-assign]

    def _sent(self, requests: Sequence[Any], session_id: int) -> Any:
        self.asked += [type(request).__name__ for request in requests]
        return self._send(requests, session_id)

    def _called(self, life: Any, requests: Sequence[Any], deadline: float, key: str | None = None) -> Any:
        outcomes = self._call(life, requests, deadline, key)
        self.after([type(request).__name__ for request in requests])
        return outcomes

    def lose(self, name: str) -> None:
        """The next requests of that name are carried out, which nobody learns."""

        def cut(names: Sequence[str]) -> None:
            if name in names:
                self.after = lambda names: None
                raise BackendUnavailable("the line is cut", backend="zookeeper", sent=True)

        self.after = cut


@contextmanager
def opened(url: str, op_timeout: float = 5.0) -> Iterator[ZooKeeperBackend]:
    backend = open_url(url, namespace="default", op_timeout=op_timeout)
    try:
        yield backend
    finally:
        backend.close()


def backend_of(manager: distlock.Manager) -> ZooKeeperBackend:
    backend = manager._backend
    assert isinstance(backend, ZooKeeperBackend)
    return backend


def session_of(backend: ZooKeeperBackend, ttl: float = 30.0) -> Session:
    """That for locks of ``ttl``, connected."""
    session = backend._sessions.get(ttl)
    session.alive(soon(), None)
    return session
