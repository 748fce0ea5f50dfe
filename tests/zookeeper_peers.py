"""The network between the members of a ZooKeeper ensemble (see `tests.peers`).

Each member reaches each other one here. Arguments: for each link, the descriptor of a bound socket, the port to pass
on to, and the numbers of the two members. An election message names where its sender is, for an answer on a
connection of the receiver's own: the next arguments, after ``--``, are which address is to stand there instead, as
``link,address,address``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from .peers import Door, Link, run

__all__ = ()


class _Link(Link):
    def __init__(self, ends: Sequence[str], name: tuple[bytes, bytes] | None) -> None:
        super().__init__(*ends)
        self._name = name

    def passed(self, data: bytes) -> bytes:
        return data.replace(*self._name) if self._name else data  # of the same length


def _doors(arguments: list[str]) -> list[Door]:
    end = arguments.index("--")
    names = {}
    for argument in arguments[end + 1 :]:
        number, before, after = argument.split(",")
        names[int(number)] = before.encode(), after.encode()
    links = [arguments[start : start + 4] for start in range(0, end, 4)]
    return [
        Door(int(descriptor), int(port), partial(_Link, ends, names.get(number)))
        for number, (descriptor, port, *ends) in enumerate(links)
    ]


if __name__ == "__main__":
    run(_doors(sys.argv[1:]))
