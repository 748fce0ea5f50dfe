"""The driver of etcd, as its tests use it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from queue import SimpleQueue

from distlock._clock import now
from distlock.backends.base import BackendError
from distlock.backends.etcd._client import Answer, Client
from distlock.backends.etcd._rpc import PUT, RANGE, WATCH, pb
from distlock.backends.etcd._url import Place

__all__ = ("Watching", "client_to", "get", "put", "threads_of_streams")

KEY = b"locks/a"


@contextmanager
def client_to(url: str) -> Iterator[Client]:
    with closing(Client.at(Place.parse(url))) as client:
        yield client


def get(client: Client, timeout: float = 5.0, *, key: bytes = KEY) -> Answer[pb.RangeResponse]:
    return client.call(RANGE, pb.RangeRequest(key=key), now() + timeout, key="lock")


def put(client: Client, timeout: float = 5.0, *, key: bytes = KEY) -> Answer[pb.PutResponse]:
    return client.call(PUT, pb.PutRequest(key=key, value=b"1"), now() + timeout, key="lock")


class Watching:
    """A stream that watches one key, and all it was told."""

    def __init__(self, client: Client, *, key: bytes = KEY) -> None:
        self._replies: SimpleQueue[pb.WatchResponse] = SimpleQueue()
        self._ended = threading.Event()
        self.ends: list[BackendError | None] = []
        self.stream = client.stream(WATCH, self._replies.put, self._end)
        self.stream.send(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=key)))

    def _end(self, error: BackendError | None) -> None:
        self.ends.append(error)
        self._ended.set()

    def next(self, timeout: float = 10.0) -> pb.WatchResponse:
        return self._replies.get(timeout=timeout)

    def end(self, timeout: float = 15.0) -> BackendError | None:
        """Why it ended."""
        if not self._ended.wait(timeout):
            raise TimeoutError("the stream has not ended")
        assert len(self.ends) == 1
        return self.ends[0]


def threads_of_streams() -> list[str]:
    """Those of ours, and those that grpc has for them."""
    return [thread.name for thread in threading.enumerate() if "etcd" in thread.name or "(_run)" in thread.name]
