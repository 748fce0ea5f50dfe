"""Where a key lies in a Cluster, by the rules of the Redis Cluster Specification (redis.io)."""

from __future__ import annotations

import itertools
import threading
from binascii import crc_hqx  # CRC-16/XMODEM, which Cluster takes

__all__ = ("SLOTS", "slot_of", "tag_of")

SLOTS = 16384


def slot_of(name: bytes) -> int:
    """The slot of a key: by what stands between the first ``{`` and the first ``}`` after it, if that is anything."""
    start = name.find(b"{")
    if start >= 0:
        end = name.find(b"}", start + 1)
        if end > start + 1:
            name = name[start + 1 : end]
    return crc_hqx(name, 0) % SLOTS


class _Tags:
    """For each slot the smallest number whose digits lie in it: the same in every process."""

    def __init__(self) -> None:
        self._found: dict[int, int] = {}
        self._next = itertools.count()
        self._mutex = threading.Lock()

    def tag_of(self, slot: int) -> bytes:
        with self._mutex:
            while slot not in self._found:  # a tenth of a second for all of them, at most
                number = next(self._next)
                self._found.setdefault(crc_hqx(b"%d" % number, 0) % SLOTS, number)
            return b"%d" % self._found[slot]


_tags = _Tags()


def tag_of(slot: int) -> bytes:
    """A hash tag by which a key of any name comes to lie in ``slot``."""
    return _tags.tag_of(slot)
