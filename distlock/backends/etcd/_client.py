"""What the locks ask of etcd, over gRPC: of any endpoint that answers, in time, as the user."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from ..base import BackendError, BackendUnavailable, Unsupported, now
from ._auth import ANYBODY, Ask, Tokens
from ._endpoints import Endpoint, Metadata, endpoints_of
from ._errors import AuthDisabled, closed
from ._failover import Journey, share
from ._rpc import AUTHENTICATE, Method, Q, R, pb
from ._stream import OnEnd, Stream
from ._url import Place

__all__ = ("Answer", "Client")

V = TypeVar("V")
LOGIN_TIMEOUT = 5.0
"""Seconds that a stream may take to log in before it is opened."""
JOIN_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class Answer(Generic[V]):
    """What was replied, and whether the request was sent ``again``, so that it may have been carried out before."""

    value: V
    again: bool = False


class Client:
    """Thread-safe. Connects when first asked."""

    def __init__(self, endpoints: Sequence[Endpoint], address: str, user: Ask | None = None) -> None:
        self.address = address
        """For people: scheme and places, without secrets."""
        self._endpoints = list(endpoints)
        self._tries = max(2, len(endpoints))  # what a member sends on to a leader that just died is lost: ask again
        self._tokens = Tokens(user)
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._first = self._endpoints[0]
        """The one that answered last."""
        self._lock = threading.RLock()  # see `Clerk`
        self._streams: set[Stream[Any]] = set()
        self._closing = threading.Event()
        self._one_ended = False

    @classmethod
    def at(cls, place: Place) -> Client:
        """One to the endpoints of a URL."""
        client = cls(endpoints_of(place), place.address)
        user, password = place.user, place.password
        if user is not None and password is not None:
            client._tokens = Tokens(lambda _, deadline, key: client._log_in(user, password, deadline, key))
        return client

    @classmethod
    def over(cls, client: Any) -> Client:
        """One to the endpoints of an ``etcd3`` client, with its credentials, on connections of our own."""
        lent = getattr(client, "endpoints", None)
        if not isinstance(lent, dict) or not lent:
            raise Unsupported(f"a {type(client).__name__} is not supported: give a client of etcd3, or a URL")
        endpoints = [_like(one) for one in lent.values()]
        address = f"{endpoints[0].address.partition('://')[0]}://{','.join(lent)}"
        return cls(endpoints, address, _token_of(client, address) if client.metadata else None)

    def call(self, method: Method[Q, R], request: Q, deadline: float, *, key: str | None = None) -> Answer[R]:
        """One call. An endpoint that is dead, frozen or cut off is left for the next while time remains.

        ``deadline`` is a moment on `distlock._clock.now`. A stream's method works as well: one request, one reply.
        Raises `BackendUnavailable`, or `BackendError` if etcd refuses; with ``sent`` if it may have been carried out.
        """
        return self._call(method, request, deadline, key, None)

    def _call(
        self, method: Method[Q, R], request: Q, deadline: float, key: str | None, fixed: Metadata | None
    ) -> Answer[R]:
        endpoint, timeout = self._first, share(deadline - now(), self._tries)
        if timeout <= 0:
            raise BackendUnavailable(f"no time was left to ask [{self.address}]", key=key, backend=self.address)
        journey = None
        while True:
            metadata = fixed or self._tokens.current or self._tokens.renewed(None, deadline, key)
            channel = endpoint.channel
            try:
                value = endpoint.unary(method)(request, timeout, metadata)
            except grpc.RpcError as error:
                if self._closed:
                    raise closed(self.address, key=key) from error
                journey = journey or self._journey(endpoint, deadline, key)
                endpoint, timeout = self._next(journey, error, endpoint, channel, metadata)
            except ValueError as error:  # grpc's, if the channel was closed in this moment
                if self._closed:
                    raise closed(self.address, key=key) from error
                if channel is not None and endpoint.channel is channel:
                    raise
            else:
                if journey is None:
                    return Answer(value)
                self._prefer(endpoint, journey)
                return Answer(value, journey.sent)

    def _journey(self, start: Endpoint, deadline: float, key: str | None) -> Journey:
        at = self._endpoints.index(start)
        in_turn = self._endpoints[at:] + self._endpoints[:at]
        return Journey(in_turn, self.address, self._tokens, self._closing.wait, deadline, key)

    def _next(
        self,
        journey: Journey,
        error: grpc.RpcError,
        endpoint: Endpoint,
        channel: grpc.Channel | None,
        metadata: Metadata,
    ) -> tuple[Endpoint, float]:
        try:
            return journey.next(error, endpoint, channel, metadata)
        except BackendUnavailable:
            self._move_on(endpoint)
            raise

    def _prefer(self, endpoint: Endpoint, journey: Journey) -> None:
        """It has answered. Streams with those that did not would hang, or be cut off like them."""
        self._first = endpoint
        for stream in list(self._streams):
            if stream.endpoint in journey.troubles and stream.endpoint is not endpoint:
                stream.fail(journey.troubles[stream.endpoint])

    def _log_in(self, user: str, password: str, deadline: float, key: str | None) -> str | None:
        request = pb.AuthenticateRequest(name=user, password=password)
        try:
            return self._call(AUTHENTICATE, request, deadline, key, ANYBODY).value.token
        except AuthDisabled:
            return None  # as etcd's own clients do: users can be introduced while they run
        except BackendError as error:
            error.sent = False  # the login was, and that does nothing to a lock
            raise

    def stream(self, method: Method[Q, R], on_reply: Callable[[R], None], on_end: OnEnd) -> Stream[Q]:
        """Opens a stream with the endpoint that answered last. Never blocks; if it fails, ``on_end`` is told.

        Both are called in the stream's thread; ``on_end`` once, with ``None`` after `Stream.close`. A member without a
        leader ends it, and so does a call that found that its endpoint does not answer. One that is opened
        after another has ended logs in again, as its token may be why.
        """
        with self._lock:
            if self._closed:
                raise closed(self.address)

            def ended(trouble: BackendError | None) -> None:
                self._streams.discard(stream)
                on_end(trouble)

            stream = Stream(method, on_reply, ended, self._left)
            self._streams.add(stream)
            try:
                stream.start(self._opening)
            except RuntimeError as error:  # no room for one more thread; or the interpreter is going down
                self._streams.discard(stream)
                what = f"nobody can listen to the server: {error} [{self.address}]"
                raise BackendUnavailable(what, backend=self.address) from error
            return stream

    def _opening(self) -> tuple[Endpoint, Metadata]:
        stale = self._tokens.current if self._one_ended else None
        return self._first, self._tokens.renewed(stale, now() + LOGIN_TIMEOUT, None)

    def _left(self, endpoint: Endpoint | None, trouble: BackendError | None) -> None:
        self._one_ended = True
        if endpoint is not None and trouble is not None:
            self._move_on(endpoint)

    def _move_on(self, endpoint: Endpoint) -> None:
        """Whoever asks next is to begin elsewhere."""
        if endpoint is self._first:
            self._first = self._endpoints[(self._endpoints.index(endpoint) + 1) % len(self._endpoints)]

    def close(self) -> None:
        """Ends streams, threads and connections. May be called twice."""
        with self._lock:
            self._closed = True
        self._closing.set()
        streams = list(self._streams)
        for stream in streams:
            stream.close()
        for endpoint in self._endpoints:
            endpoint.close()
        until = now() + JOIN_TIMEOUT
        for stream in streams:
            stream.join(max(0.0, until - now()))

    def after_fork(self) -> None:
        """In a forked child: nothing of the parent's is touched. See `Endpoint` for what a child can do."""
        for endpoint in self._endpoints:
            endpoint.after_fork()
        self._tokens.after_fork()
        self._reset()


def _like(lent: Any) -> Endpoint:
    credentials = lent.credentials
    return Endpoint(lent.netloc, (lambda: credentials) if lent.secure else None)


def _token_of(client: Any, address: str) -> Ask:
    def ask(stale: str | None, deadline: float, key: str | None) -> str:
        token = str(dict(client.metadata)["token"])
        if token == stale:
            what = "the token of the etcd3 client is refused, and it keeps no password to ask for another; give a URL"
            raise BackendError(f"{what} [{address}]", key=key, backend=address)
        return token

    return ask
