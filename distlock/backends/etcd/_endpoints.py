"""One endpoint of etcd: a channel of grpc, and the methods that are asked over it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import grpc

from ..base import BackendError
from ._errors import closed
from ._rpc import Method, Q, R
from ._url import Place

__all__ = ("Endpoint", "Metadata", "endpoints_of")

Metadata: TypeAlias = tuple[tuple[str, str], ...]
Credentials: TypeAlias = Callable[[], grpc.ChannelCredentials]

# How long a silent server goes unnoticed while a watch is open. etcd takes no pings oftener than each 5 s (its
# --grpc-keepalive-min-time) and breaks the connection over them.
PING_EVERY = 6.0
PING_TIMEOUT = 3.0
CONNECT_TIMEOUT = 3.0
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.keepalive_time_ms", int(PING_EVERY * 1000)),
    ("grpc.keepalive_timeout_ms", int(PING_TIMEOUT * 1000)),
    ("grpc.http2.ping_timeout_ms", int(PING_TIMEOUT * 1000)),  # a minute, else, in grpc of late: it counts as well
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),  # as many as it takes: a watch is silent for hours
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT * 1000)),  # it bounds a single attempt
    ("grpc.use_local_subchannel_pool", 1),  # connections of our own, whatever else this process does with etcd
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.max_receive_message_length", -1),
)

_first_pid: int | None = None
"""The process that has first opened a channel: a forked child of it finds grpc without its threads, and would hang.

grpc's own remedy (GRPC_ENABLE_FORK_SUPPORT) helps only if no thread is in a call at that moment, and hangs otherwise.
"""
_left_behind: list[grpc.Channel] = []
"""Channels of a parent. In a child they may be neither used nor closed nor collected: their sockets are shared.

The calls of streams are kept by the frames of their threads, which stayed behind.
"""


class Endpoint:
    """Thread-safe. Connects when first asked."""

    def __init__(self, place: str, credentials: Credentials | None = None, server_name: str | None = None) -> None:
        self.address: str = f"{'etcd+tls' if credentials else 'etcd'}://{place}"
        self._target = f"dns:///{place}"
        self._credentials = credentials
        self._options = (*OPTIONS, ("grpc.ssl_target_name_override", server_name)) if server_name else OPTIONS
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._opening = threading.RLock()  # see `Clerk`
        self.channel: grpc.Channel | None = None
        """``None`` until something is asked."""
        self._unary: dict[Method[Any, Any], Callable[..., Any]] = {}

    def unary(self, method: Method[Q, R]) -> Callable[[Q, float, Metadata], R]:
        """Asks once: request, timeout, metadata; `grpc.RpcError` if that fails."""
        try:
            return self._unary[method]
        except KeyError:
            with self._opening:  # else it may be kept beyond its channel
                ask = self._opened().unary_unary(method.path, method.request.SerializeToString, method.reply.FromString)
                self._unary[method] = ask
            return ask

    def open(self) -> grpc.Channel:
        """Its channel: opened now if it is not open yet."""
        with self._opening:
            return self._opened()

    def _opened(self) -> grpc.Channel:
        if self._closed:
            raise closed(self.address)
        if self.channel is None:
            _check_fork(self.address)
            self.channel = self._dialled()
        return self.channel

    def _dialled(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self._target, self._options)
        return grpc.secure_channel(self._target, self._credentials(), self._options)

    def redial(self, failed: grpc.Channel | None) -> None:
        """Its channel could not connect: the next call has another one, and so an attempt of its own.

        grpc leaves a server alone for up to two minutes after some failures; and until 1.75 it does not get on with an
        attempt unless some call waits for it, which those that fail at once do not.
        """
        with self._opening:
            if failed is None or failed is not self.channel:
                return
            self.channel = None
            self._unary = {}
        failed.close()

    def close(self) -> None:
        """Calls that are under way end with an error."""
        self._closed = True
        with self._opening:
            channel, self.channel = self.channel, None
            self._unary = {}
        if channel is not None:
            channel.close()

    def after_fork(self) -> None:
        """Leaves the parent's channel to the parent."""
        if self.channel is not None:
            _left_behind.append(self.channel)
        self._reset()


def _check_fork(address: str) -> None:
    global _first_pid
    pid = os.getpid()
    if _first_pid is None:
        _first_pid = pid
    elif _first_pid != pid:
        raise BackendError(
            "grpc cannot be used in a process that was forked from one that has used it: start the process by spawn,"
            f" forkserver or exec, or let the parent fork before it uses etcd [{address}]",
            backend=address,
        )


def endpoints_of(place: Place) -> list[Endpoint]:
    """Those that a URL names."""
    tls = place.tls
    if tls is None:
        return [Endpoint(one) for one in place.endpoints]
    credentials = partial(grpc.ssl_channel_credentials, tls.ca, tls.key, tls.cert)
    return [Endpoint(one, credentials, tls.server_name) for one in place.endpoints]
