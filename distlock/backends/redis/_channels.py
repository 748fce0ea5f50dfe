"""What a process is told on: one channel on a single server, one for each slot in a cluster."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable

from ._scripts import Dialect, command
from ._slots import slot_of, tag_of

__all__ = ("Channels",)


class Channels:
    """By slot; where there are no slots, all is in slot 0. Whoever has the inbox's mutex may use it."""

    def __init__(self, namespace: str, dialect: Dialect) -> None:
        self._namespace = namespace
        self._dialect = dialect
        self._suffix = f"{namespace}:inbox:{secrets.token_hex(8)}".encode()
        self._names = {0: b"distlock:" + self._suffix}  # kept, for the queues on the server name them
        self.heard: set[int] = set()
        """The slots whose channels are listened to."""
        self.asked: deque[int] = deque()
        """And those of which the server has not said yet that they are, in the order of its answers."""

    def slot(self, key: str) -> int:
        """Where the lock of this name lies; and so does the channel."""
        if not self._dialect.by_slot:
            return 0
        slot = slot_of(f"distlock:{{{self._namespace}:{key}}}".encode())
        self._names[slot] = b"distlock:{%b}:%b" % (tag_of(slot), self._suffix)
        return slot

    def name(self, slot: int) -> bytes:
        """The channel of a slot that `slot` has given."""
        return self._names[slot]

    def ask_for(self, slots: Iterable[int]) -> bytes:
        """The request to listen to these too; nothing if that was asked already."""
        new = [slot for slot in slots if slot not in self.heard and slot not in self.asked]
        self.asked.extend(new)
        # One by one, for all of a command has to be in one slot.
        return b"".join([command(self._dialect.subscribe, self._names[slot]) for slot in new])

    def gone(self, channel: bytes) -> set[int]:
        """The slot that the server stopped telling of, if any was."""
        slots = {slot for slot in self.heard if self._names[slot] == channel}
        self.heard -= slots
        return slots

    def clear(self) -> None:
        """The connection has ended."""
        self.heard.clear()
        self.asked.clear()
