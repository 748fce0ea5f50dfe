"""What a network does to those who use it, by a proxy before the store: nobody needs to be root for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

from ..._errors import ConfigurationError
from ..proxy import FaultProxy
from ._faults import Arena, Hurt, in_background

__all__ = ("proxied", "proxy_faults")

_PORTS = {"redis": 6379, "etcd": 2379, "zookeeper": 2181, "zk": 2181}

_FAULTS: Mapping[str, Callable[[FaultProxy, Arena], None]] = {
    "replies dropped": lambda proxy, arena: proxy.drop_replies(arena.dice.randint(1, 5)),
    "replies dropped in silence": lambda proxy, arena: proxy.drop_replies(arena.dice.randint(1, 3), then="silence"),
    "requests dropped": lambda proxy, arena: proxy.drop_requests(arena.dice.randint(1, 5)),
    "half-open connections": lambda proxy, _: proxy.silence_all(),
    "connections reset": lambda proxy, _: proxy.reset_all(),
    "black hole": lambda proxy, _: proxy.pause(),
    "requests held": lambda proxy, _: proxy.pause(replies=False),
    "replies held": lambda proxy, _: proxy.pause(requests=False),
    "slow network": lambda proxy, arena: proxy.delay(arena.plan.ttl * arena.dice.uniform(0.01, 0.2)),
    "connections refused": lambda proxy, _: _refuse(proxy),
}


def _refuse(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.reset_all()


def proxy_faults(*proxies: FaultProxy) -> tuple[Hurt, ...]:
    """They strike one of the proxies, or all of them at a time. No promise excepts any of it."""
    weathers = (Hurt(name, partial(_weather, proxies, begin), lasts=(0.2, 2.5)) for name, begin in _FAULTS.items())
    return (*weathers, Hurt("flapping network", partial(_flapping, proxies), lasts=(0.5, 3.0)))


def proxied(url: str) -> tuple[str, FaultProxy]:
    """A proxy before the one address of a URL, and the URL by way of it. Close it when it is not needed any more.

    Raises `ConfigurationError` for a URL that names several addresses, or none, or is encrypted.
    """
    parts = urlsplit(url)
    login, at, place = parts.netloc.rpartition("@")
    if parts.scheme not in _PORTS or "," in place or not place:
        raise ConfigurationError(f"a proxy stands before one address of {', '.join(_PORTS)}, without TLS")
    proxy = FaultProxy((parts.hostname or "", parts.port or _PORTS[parts.scheme]))
    host, port = proxy.address
    return parts._replace(netloc=f"{login}{at}{host}:{port}").geturl(), proxy


@contextmanager
def _weather(proxies: Sequence[FaultProxy], begin: Callable[[FaultProxy, Arena], None], arena: Arena) -> Iterator[str]:
    struck = _some(proxies, arena)
    try:
        for proxy in struck:
            begin(proxy, arena)
        yield _names(struck)
    finally:
        for proxy in struck:
            proxy.heal()


@contextmanager
def _flapping(proxies: Sequence[FaultProxy], arena: Arena) -> Iterator[str]:
    struck = _some(proxies, arena)
    turn = arena.plan.ttl * arena.dice.uniform(0.02, 0.3)

    def flap(over: threading.Event) -> None:
        while not over.wait(turn):
            for proxy in struck:
                proxy.pause()
            over.wait(turn)
            for proxy in struck:
                proxy.resume()

    with in_background(flap):
        yield _names(struck)


def _some(proxies: Sequence[FaultProxy], arena: Arena) -> Sequence[FaultProxy]:
    """One of them, or all."""
    return proxies if arena.dice.random() < 0.5 else [arena.dice.choice(proxies)]


def _names(proxies: Sequence[FaultProxy]) -> str:
    return ", ".join(f"{host}:{port}" for host, port in (proxy.address for proxy in proxies))
