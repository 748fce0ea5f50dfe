"""The store behind the bare `lock`, `locked` and `configure`."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ._lock import F, Lock, locked_by
from ._manager import Manager, connect
from ._once.decorator import idempotent_by
from ._once.recipe import Once
from ._once.records import JSON, Serializer
from ._once.terms import LARGEST, Terms
from ._options import Options, WhenLost

__all__ = ("configure", "default_manager", "idempotent", "lock", "locked", "once")

log = logging.getLogger("distlock")

_default: Manager | None = None
_default_lock = threading.Lock()


def configure(target: Any, *, namespace: str | None = None, op_timeout: float = 5.0) -> None:
    """What the bare `lock` uses from now on; open leases stay with what they were acquired from."""
    global _default
    manager = connect(target, namespace=namespace, op_timeout=op_timeout)
    with _default_lock:
        _default = manager


def default_manager() -> Manager:
    """The configured one, else of ``DISTLOCK_URL``, else the files of this machine."""
    global _default
    manager = _default
    if manager is None:
        with _default_lock:
            manager = _default
            if manager is None:
                url = os.environ.get("DISTLOCK_URL")
                if not url:
                    url = "file://"
                manager = _default = connect(url)
                if url == "file://":
                    log.warning(
                        "distlock is not configured: locks are files (%s) and keep out programs of this user on this"
                        " machine only; set DISTLOCK_URL or call distlock.configure()",
                        manager.address,
                    )
    return manager


def lock(
    key: str,
    *,
    ttl: float = 30.0,
    timeout: float | None = None,
    renew: bool = True,
    max_hold: float | None = None,
    reentrant: bool = False,
    owner: str | None = None,
    when_lost: WhenLost | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Lock:
    """The recipe of a lock named ``key``, in the store of `configure` or ``DISTLOCK_URL``.

    ``ttl``: seconds after which the store frees it if nobody renews it. ``timeout``: seconds to wait for it
    (None: for ever, 0: try once), for the whole call. ``renew``: keep it alive until it is released.
    ``max_hold``: seconds after which renewal stops. ``reentrant``: the same thread or task, or the same
    ``owner`` anywhere, may enter it again. ``when_lost``: what a block does if the lease is lost inside it:
    ``"raise"`` at its end (default of ``with``), ``"cancel"`` the body at its next checkpoint (default of
    ``async with``), ``"warn"`` in the log. ``metadata``: shown to whoever waits or inspects.

    Raises `ValueError` for values out of range, before any I/O.
    """
    return Lock(default_manager, key, Options(ttl, timeout, renew, max_hold, reentrant, owner, when_lost, metadata))


def locked(
    template: str,
    *,
    ttl: float = 30.0,
    timeout: float | None = None,
    renew: bool = True,
    max_hold: float | None = None,
    reentrant: bool = False,
    owner: str | None = None,
    when_lost: WhenLost | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    """Decorates a function or coroutine function: each call holds the lock whose key is ``template`` filled in
    with its arguments, as in ``@locked("orders:{order.id}")``. The options are those of `lock`.

    A template that names no parameter of the function is a `ConfigurationError` when it is decorated.
    """
    options = Options(ttl, timeout, renew, max_hold, reentrant, owner, when_lost, metadata)
    return locked_by(lambda key: Lock(default_manager, key, options), template)


def once(
    key: str,
    *,
    ttl: float,
    timeout: float | None = None,
    lease: float = 30.0,
    fingerprint: Any = None,
    serializer: Serializer = JSON,
    limit: int = LARGEST,
    store_errors: type[Exception] | tuple[type[Exception], ...] = (),
    metadata: Mapping[str, str] | None = None,
) -> Once:
    """The recipe of work that is to be done once under ``key``, in the store of `configure` or ``DISTLOCK_URL``.

    ``ttl``: seconds for which what came of it is kept; longer than the longest run and the longest retry. ``timeout``:
    seconds to wait for someone else who is at it (None: for ever, 0: not at all), then `InProgress`. ``lease``: seconds
    after which the work of a process that died is taken over, and never before; renewed while the block is open.
    ``fingerprint``: what the request says, as any value of plain types: the same key with another one is
    `IdempotencyMismatch`. ``serializer``: how the result becomes bytes. ``limit``: how many of them are kept.
    ``store_errors``: exceptions that are an outcome too (a card that was declined); all others end the claim, and the
    next request does the work. ``metadata``: shown to whoever waits or looks, and in the log: a request's id.

    Raises `ValueError` for values out of range and `TypeError` for a fingerprint of other types, before any I/O.
    """
    terms = Terms(ttl, timeout, lease, fingerprint, serializer, limit, store_errors, metadata)  # type: ignore[arg-type]
    return Once(_results, key, terms)


def idempotent(
    template: str | None = None,
    *,
    ttl: float,
    timeout: float | None = None,
    lease: float = 30.0,
    fingerprint: Callable[..., Any] | None = None,
    serializer: Serializer = JSON,
    limit: int = LARGEST,
    store_errors: type[Exception] | tuple[type[Exception], ...] = (),
    metadata: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    """Decorates a function or coroutine function: calls with the same key are done once, and all get its result.

    The key is ``template`` filled in with the arguments, as in ``@idempotent("pay:{request.id}", ttl=86400)``; without
    one it is the function's qualified name and a digest of all arguments, which then are plain values. ``fingerprint``:
    a function of the same arguments, whose value is compared. The other options are those of `once`.
    """
    terms = Terms(ttl, timeout, lease, None, serializer, limit, store_errors, metadata)  # type: ignore[arg-type]
    return idempotent_by(lambda key, terms: Once(_results, key, terms), template, terms, fingerprint)


def _results() -> Manager:
    return default_manager().results_manager()


def _after_fork_in_child() -> None:
    global _default_lock
    _default_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
