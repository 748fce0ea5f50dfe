"""What happened, one line of JSON each: written by all processes of a run, each into a file of its own, and merged.

Times are those of `distlock`'s own clock, which all processes of a machine share. A line is one `write` to a file that
is open for appending, so that a process may be killed at any moment: what it wrote stands.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ...backends.base import now

__all__ = ("Event", "Log", "What", "read_logs")


class What(enum.Enum):
    """``more`` of an event has what is named in brackets, beside ``try``: the number of the attempt at a lock, unique
    within its process, which all events of that attempt share."""

    # Of a process
    BEGINS = "begins"
    """[pid, colour, counts] ``counts``: how many threads, fds, … it had before it connected."""
    ENDS = "ends"
    """[counts] The same after all was closed. Absent if it was killed."""

    # Of an attempt, with its key
    WANTS = "wants"
    """[try, timeout] Before the call; ``timeout`` is None for ever."""
    GOT = "got"
    """[try, token, until] ``until``: the moment until which it is proven. ``token`` is None of locks that have none."""
    BUSY = "busy"
    """[try] Not had in time."""
    FAILED = "failed"
    """[try, error] The store, or the lock, raised something: ``error`` is its type and text."""
    CANCELLED = "cancelled"
    """[try] Given up by the nemesis or at the end of the run, while waiting or holding."""
    SURE = "sure"
    """[try, at, until] ``ensure_held`` passed, asked at ``at``; proven until ``until``."""
    LOST = "lost"
    """[try] It was told of the loss, by ``on_lost`` or by `LockLost`; the first of it counts."""
    READ = "read"
    """[try, version] What the register said, in answer to a read with its token."""
    WROTE = "wrote"
    """[try, version] The register took its write, which made that version."""
    REFUSED = "refused"
    """[try] The register knew a higher token."""
    LEAVES = "leaves"
    """[try] Before it releases. From here on it does not believe to hold."""
    LEFT = "left"
    """[try, how] ``how``: ``"released"``, ``"lost"``, or the text of the error."""

    # Of the register
    TOOK = "took"
    """[by, try, token, version, read] A write was taken; ``read`` is the version that the writer had seen before."""
    TURNED_DOWN = "turned down"
    """[by, try, token, highest] Its token was too low."""

    # Of the nemesis
    STRIKES = "strikes"
    """[fault, on, excused] Before it hurts: ``on`` says whom, ``excused`` names members of `distlock.Fault`."""
    STRUCK = "struck"
    """[fault, on] It has happened, and lasts."""
    HEALS = "heals"
    """[fault, on] Before it heals."""
    HEALED = "healed"
    """[fault, on] All is as before."""

    # Of the whole
    STARTED = "started"
    """[plan] All workers are connected."""
    STOPS = "stops"
    """Nobody begins anything new."""
    FINAL = "final"
    """[found] What was found after the end: ``{"left in the store": [...], "not free": [...], "hung": [...]}``."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line."""

    t: float
    """Seconds of `distlock.backends.base.now`."""
    who: str
    """``"w2.5"`` is the sixth actor of the third worker process; ``"w2"`` that process, ``"w2.fork"`` a child of it;
    ``"register"``, ``"nemesis"``, ``"run"``. A process that takes the place of one that was killed has a new number."""
    what: What
    key: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """As it stands in the log, without the line's end."""
        line = {"t": round(self.t, 6), "who": self.who, "what": self.what.value}
        if self.key is not None:
            line["key"] = self.key
        return json.dumps(line | dict(self.more), separators=(",", ":"))

    @staticmethod
    def read(line: str) -> Event:
        """What `text` wrote; `ValueError` if it is something else."""
        data = json.loads(line)
        t, who, what = data.pop("t"), data.pop("who"), What(data.pop("what"))
        return Event(t, who, what, data.pop("key", None), data)


class Log:
    """The log of one process. Thread-safe; a forked child may go on with it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def say(self, who: str, what: What, key: str | None = None, /, t: float | None = None, **more: Any) -> None:
        """``t`` is now, if it is not given."""
        event = Event(now() if t is None else t, who, what, key, more)
        os.write(self._fd, (event.text() + "\n").encode())

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_logs(folder: Path) -> list[Event]:
    """All events of the ``*.jsonl`` in a folder, in the order of their times. A line that was cut off is left out."""
    return sorted((event for path in folder.glob("*.jsonl") for event in _read(path)), key=lambda event: event.t)


def _read(path: Path) -> Iterator[Event]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield Event.read(line)
        except (ValueError, KeyError):  # its writer was killed in the midst of it
            continue
