"""The layout of the nodes, and what they hold.

::

    /distlock/<namespace>/<name>/lock-<claim id>-<sequence>       a holder or a waiter, in the order of the sequence

All above the last are containers, which the server deletes when they have become empty. A name is percent-encoded.

Two other layouts share locks with others, each name's nodes being what that library makes itself::

    <path>/<name>/<claim id>__lock__<sequence>                    kazoo's ``Lock``
    <path>/<name>/_c_<claim id>-lock-<sequence>                   Curator's ``InterProcessMutex``

The claim's id in the name is by which a node is found again whose creation was not answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote

from .._records import read
from ..base import Claim, Holder, Inspection, Waiter

__all__ = ("Guard", "Layout", "holder", "inspection", "parents_of")


class Guard(NamedTuple):
    """What a transaction in ZooKeeper checks, to be carried out only while a lock is held."""

    path: str
    """Of the lock's node, from the chroot on."""
    version: int


class _Names(NamedTuple):
    """How nodes are called: what stands before and after the claim's id, and where the sequence is."""

    before: str
    after: str
    sequence: re.Pattern[str]
    signed: bool
    """The sequence counts as a number, not as a text."""


_NAMES = {
    "distlock": _Names("lock-", "-", re.compile(r"^lock-[^/]+?-(-?\d{9,10})$"), True),
    "kazoo": _Names("", "__lock__", re.compile(r"__lock__(-?\d{9,10})$"), False),
    "curator": _Names("_c_", "-lock-", re.compile(r"lock-(-?\d{9,10})$"), False),
}


class Layout:
    """Where the nodes of one manager's locks are."""

    def __init__(self, namespace: str, layout: str, chroot: str, path: str) -> None:
        self.chroot = chroot
        self.root = f"{chroot}{path or f'/distlock/{namespace}'}"
        """Under which there is a node for each name."""
        self._names = _NAMES[layout]
        self.parent: Callable[[str], str] = lru_cache(maxsize=512)(self._parent)

    def _parent(self, key: str) -> str:
        name = quote(key, safe="")
        return f"{self.root}/{name.replace('.', '%2E') if name in ('.', '..') else name}"

    def stem(self, claim: Claim) -> str:
        """The path of a claim's node, but for the sequence."""
        return f"{self.parent(claim.key)}/{self._names.before}{claim.id}{self._names.after}"

    def line(self, children: Iterable[str], own: str = "") -> list[str]:
        """Those of a name's children who hold the lock or wait for it, in order. ``own``: one that is right."""
        pattern = self._names.sequence
        found = [(match[1], name) for name in children if (match := pattern.search(name))]
        if not self._names.signed:
            return [name for _, name in sorted(found)]
        # The server counts to 2³¹ - 1, and goes on at -2³¹: what is at most half of all numbers ahead is later.
        match = pattern.search(own)
        base = int(match[1]) if match else int(found[0][0]) if found else 0
        found.sort(key=lambda each: (int(each[0]) - base + 2**31) % 2**32)
        return [name for _, name in found]

    def is_of(self, name: str, stem: str) -> bool:
        """Whether a child is the node of the claim with that stem, whatever its sequence."""
        return name.startswith(stem.rpartition("/")[2]) and self._names.sequence.search(name) is not None

    def keys(self, children: Iterable[str], prefix: str) -> Iterator[str]:
        """The locks that have the nodes ``children`` of the root, and begin so."""
        return (key for key in map(unquote, children) if key.startswith(prefix))

    def from_chroot(self, path: str) -> str:
        return path[len(self.chroot) :]


def parents_of(path: str) -> list[str]:
    """All nodes above, and the node itself, from the top."""
    parts = path[1:].split("/")
    return ["/" + "/".join(parts[: number + 1]) for number in range(len(parts))]


def holder(value: bytes, name: str, token: int) -> Holder:
    """Who holds a lock: the one whose node was there first."""
    return Holder.found(*read(value, name), token=token, held_for=None, ttl=None)


def inspection(key: str, line: Sequence[tuple[str, bytes, int]]) -> Inspection:
    """A lock, of names, contents and czxids in order."""
    if not line:
        return Inspection(key, None)
    first, value, token = line[0]
    waiters = tuple(Waiter.read(*read(value, name)) for name, value, _ in line[1:])
    return Inspection(key, holder(value, first, token), waiters)
