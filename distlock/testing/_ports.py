"""Ports for servers and proxies that come and go, and come back."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from itertools import cycle, islice

__all__ = ("bind_free_port",)

# Below the ports that the kernel gives to outgoing connections: a client that keeps dialling the port of
# a server that is down must not end up connected to itself. Cluster buses (port + 10000) fit there too.
_PORTS = range(15_000, 22_000)


def _ports_in_turn() -> Iterator[int]:
    """This worker's share of the ports, for ever: one that was given up is the last to be given again.

    A server that is down, or a proxy that refuses, comes back at its port: nobody else may have it meanwhile.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = _PORTS[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    first = random.randrange(len(share))  # another run of the tests may be going on
    return cycle([*share[first:], *share[:first]])


_ports = _ports_in_turn()


def bind_free_port() -> socket.socket:
    """A TCP socket bound to a free port of 127.0.0.1, not listening yet."""
    for port in islice(_ports, 200):
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(("127.0.0.1", port))
        except OSError:
            bound.close()
        else:
            return bound
    raise RuntimeError(f"no free port in {_PORTS}")
