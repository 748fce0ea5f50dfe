"""A stream of requests and replies with one endpoint, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from ..base import BackendError, BackendUnavailable
from ._endpoints import Endpoint, Metadata
from ._errors import closed, is_unreachable, mapped
from ._rpc import Method, R

__all__ = ("OnEnd", "Stream")

Q_contra = TypeVar("Q_contra", bound=Message, contravariant=True)
OnEnd: TypeAlias = Callable[[BackendError | None], None]
Leave: TypeAlias = Callable[[Endpoint | None, BackendError | None], None]
"""Told with which endpoint a stream has ended, and why, before anybody else can open the next one."""
OpenTo: TypeAlias = Callable[[], tuple[Endpoint, Metadata]]


class Stream(Generic[Q_contra]):
    """Thread-safe. It is never opened again: its user asks for another one."""

    def __init__(self, method: Method[Q_contra, R], on_reply: Callable[[R], None], on_end: OnEnd, leave: Leave) -> None:
        self.endpoint: Endpoint | None = None
        """Whose it is; ``None`` until that is known."""
        self._method: Method[Q_contra, Any] = method
        self._on_reply: Callable[[Any], None] = on_reply
        self._on_end = on_end
        self._leave = leave
        self._requests: SimpleQueue[Q_contra | None] = SimpleQueue()
        self._channel: grpc.Channel | None = None
        self._call: Any = None
        self._closed = False
        self._trouble: BackendError | None = None
        self._changing = threading.RLock()  # see `Clerk`
        self._thread: threading.Thread | None = None

    def start(self, open_to: OpenTo) -> None:
        """``open_to`` says with whom; it may block, and raise a `BackendError`."""
        self._thread = threading.Thread(target=self._run, args=(open_to,), name="distlock-etcd-stream", daemon=True)
        self._thread.start()

    def send(self, request: Q_contra) -> None:
        """Never blocks. A stream that has ended drops it."""
        self._requests.put(request)

    def close(self) -> None:
        """Never blocks; ``on_end`` is called soon afterwards, with ``None``. May be called twice."""
        self._end(None)

    def fail(self, trouble: BackendError | None = None) -> None:
        """As `close`, for a reason that ``on_end`` is told; whoever asks next begins with another endpoint.

        For a user to whom a reply was due, and none came.
        """
        self._end(trouble or BackendUnavailable("the server did not answer in time"))

    def _end(self, trouble: BackendError | None) -> None:
        with self._changing:
            if self._closed:
                return
            self._closed = True
            self._trouble = trouble
            call = self._call
        self._leave(self.endpoint, trouble)
        self._requests.put(None)
        if call is not None:
            call.cancel()

    def join(self, timeout: float) -> None:
        """Until its thread has ended, unless that is the one that asks."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self, open_to: OpenTo) -> None:
        address = None
        try:
            self.endpoint, metadata = open_to()
            address = self.endpoint.address
            for reply in self._replies(self.endpoint, metadata):
                if self._closed:
                    break
                self._on_reply(reply)
        except grpc.RpcError as error:
            if self.endpoint is not None and is_unreachable(error):
                self.endpoint.redial(self._channel)
            self._end(mapped(error, address or ""))
        except BackendError as error:
            self._end(error)
        finally:
            self._end(BackendUnavailable(f"the server has ended the stream [{address}]", backend=address))
            self._on_end(self._trouble)

    def _replies(self, endpoint: Endpoint, metadata: Metadata) -> Iterable[Any]:
        method = self._method
        self._channel = channel = endpoint.open()
        with self._changing:
            if self._closed:
                return ()
            try:
                ask = channel.stream_stream(method.path, method.request.SerializeToString, method.reply.FromString)
                self._call = call = ask(iter(self._requests.get, None), metadata=metadata)
            except ValueError as error:  # grpc's, if the channel was closed in this moment
                raise closed(endpoint.address) from error
        return call
