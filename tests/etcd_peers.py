"""The network between the members of an etcd cluster (see `tests.peers`).

Members dial each other here. Arguments: for each member, the descriptor of a bound socket and the port to pass on to.
Who is cut off is named by its number and its id.
"""

from __future__ import annotations

import re
import sys
from functools import partial

from .peers import Door, Link, run

__all__ = ()

_SENDER = re.compile(rb"\r\nX-Server-From: ([0-9a-f]+)\r\n", re.IGNORECASE)


class _Link(Link):
    """Raft's requests name their sender; others, probes, harm no cut."""

    def passed(self, data: bytes) -> bytes:
        if len(self.ends) == 1 and (found := _SENDER.search(data)):
            self.ends.add(found[1].decode())
        return data


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    places = zip(numbers[::2], numbers[1::2], strict=True)
    run([Door(descriptor, port, partial(_Link, f"m{number}")) for number, (descriptor, port) in enumerate(places)])
