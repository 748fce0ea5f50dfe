"""From a URL or a ready client to a backend. Drivers are imported here and only when asked for."""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Callable
from typing import Any

from ._errors import ConfigurationError
from .backends.base import SyncBackend

__all__ = ("open_backend", "without_secrets")

# Scheme: module, extra. Third parties add theirs by an entry point in the group "distlock.backends".
BUILT_IN = {
    "memory": ("memory", ""),
    "file": ("file", ""),
    "redis": ("redis", "redis"),
    "rediss": ("redis", "redis"),
    "unix": ("redis", "redis"),
    "redis+sentinel": ("redis", "redis"),
    "rediss+sentinel": ("redis", "redis"),
    "redis+cluster": ("redis", "redis"),
    "rediss+cluster": ("redis", "redis"),
    "redlock": ("redis.redlock", "redis"),
    "redlock+tls": ("redis.redlock", "redis"),
    "etcd": ("etcd", "etcd"),
    "etcd+tls": ("etcd", "etcd"),
    "zookeeper": ("zookeeper", "zookeeper"),
    "zookeeper+tls": ("zookeeper", "zookeeper"),
    "zk": ("zookeeper", "zookeeper"),
    "zk+tls": ("zookeeper", "zookeeper"),
}

# By the package whose clients it takes.
CLIENTS = {"redis": ("redis", "redis"), "etcd3": ("etcd", "etcd"), "kazoo": ("zookeeper", "zookeeper")}

NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}")


def open_backend(target: Any, namespace: str | None, op_timeout: float) -> SyncBackend:
    """The backend behind ``target``: a URL, a ready client, or a backend already."""
    given, namespace = (
        namespace,
        namespace if namespace is not None else os.environ.get("DISTLOCK_NAMESPACE") or "default",
    )
    if not isinstance(namespace, str) or not NAMESPACE.fullmatch(namespace) or not namespace.strip("."):
        raise ConfigurationError(f"a namespace is 1 to 64 letters, digits, '.', '_' or '-'; not {namespace!r}")
    is_number = isinstance(op_timeout, (int, float)) and not isinstance(op_timeout, bool)
    if not is_number or not 0 < op_timeout < math.inf:
        raise ConfigurationError(f"op_timeout must be a finite number of seconds above 0, not {op_timeout!r}")
    if isinstance(target, str):
        scheme, separator, _ = target.partition("://")
        if not separator:
            raise ConfigurationError(
                f"not a URL: {without_secrets(target)!r}; write scheme://…, as in redis://localhost:6379/0"
            )
        return _opener(scheme.lower())(target, namespace=namespace, op_timeout=op_timeout)
    if isinstance(target, SyncBackend):
        if given is not None:
            raise ConfigurationError("a backend has its namespace already: give it to the backend, not to connect()")
        return target
    drivers = {base.__module__.partition(".")[0] for base in type(target).__mro__}
    for driver, (module, extra) in CLIENTS.items():
        if driver in drivers:
            return _load(module, extra).open_client(target, namespace=namespace, op_timeout=op_timeout)  # type: ignore[no-any-return]
    raise ConfigurationError(
        f"cannot connect to a {type(target).__name__}: give a URL, a client of redis-py, etcd3 or kazoo, or a backend"
    )


def without_secrets(url: str) -> str:
    """``url`` with user, password and query left out."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url.rpartition("@")[2].partition("?")[0]
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _opener(scheme: str) -> Callable[..., SyncBackend]:
    if scheme in BUILT_IN:
        return _load(*BUILT_IN[scheme]).open_url  # type: ignore[no-any-return]
    from importlib.metadata import entry_points  # takes as long to import as all of distlock

    found = entry_points(group="distlock.backends")
    for point in found:
        if point.name == scheme:
            return point.load()  # type: ignore[no-any-return]
    known = ", ".join(sorted({*BUILT_IN, *found.names}))
    raise ConfigurationError(f"no backend for {scheme}://; there are: {known}")


def _load(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(f"distlock.backends.{module}")
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").startswith("distlock"):
            raise
        raise ConfigurationError(f"{error.name} is not installed; run: pip install 'pydistlock[{extra}]'") from error
