"""etcd: a single server or a cluster, by URL or by a ready client of etcd3."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..base import ConfigurationError
from ._backend import EtcdBackend
from ._client import Client
from ._url import Place
from ._values import Guard

__all__ = ("EtcdBackend", "Guard", "open_client", "open_url")

_LAYOUTS = {"encoded": False, "raw": True}


def open_url(url: str, *, namespace: str, op_timeout: float) -> EtcdBackend:
    """``etcd://host,host`` or ``etcd+tls://…``. ``?layout=raw``: names are written into the keys as they are, with
    their ``/``, as Go's clients and ``etcdctl lock`` do."""
    place = Place.parse(url)
    layout = place.options.get("layout", "encoded")
    if layout not in _LAYOUTS:
        raise ConfigurationError("layout is encoded (the default) or raw")
    return EtcdBackend(partial(Client.at, place), namespace, op_timeout, raw=_LAYOUTS[layout])


def open_client(client: Any, *, namespace: str, op_timeout: float, raw: bool = False) -> EtcdBackend:
    """A client of etcd3: it lends its endpoints and credentials, not its connections."""
    return EtcdBackend(partial(Client.over, client), namespace, op_timeout, raw=raw)
