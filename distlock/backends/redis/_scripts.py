"""The Lua scripts, and their requests as bytes ready to be sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from copy import copy
from importlib.resources import files

__all__ = (
    "CLUSTER",
    "CONFIRM",
    "INSPECT",
    "RECORDED",
    "RENEW",
    "SERVER",
    "SHARD",
    "Dialect",
    "Script",
    "beside",
    "bulk",
    "bulks",
    "clock_key",
    "command",
    "lock_keys",
    "own_keys",
    "record_key",
)


class Script:
    """One script, sent by its SHA1, or whole to a server that has forgotten it."""

    __slots__ = ("_eval", "_evalsha", "name")

    def __init__(self, name: str, hears: str = "server") -> None:
        """``hears``: the kind of server, by the name of a ``hears_*.lua``."""
        folder = files("distlock.backends.redis") / "lua"
        text = (folder / f"{name}.lua").read_bytes()
        # A fast path may stand before the functions: making those takes longer than a free lock does.
        parts = (b"acquire", "acquire.lua"), (b"common", "common.lua"), (b"hears", f"hears_{hears}.lua")
        for part, file in parts:
            text = text.replace(b"-- include %b.lua\n" % part, (folder / file).read_bytes())
        digest = hashlib.sha1(text, usedforsecurity=False).hexdigest()  # Redis names scripts so
        self.name: str = name
        self._evalsha = bulk(b"EVALSHA") + bulk(digest.encode())
        self._eval = bulk(b"EVAL") + bulk(text)

    def head(self, key_count: int, keys: bytes, arg_count: int) -> bytes:
        """The request up to its arguments; ``keys`` are packed already."""
        return b"*%d\r\n" % (3 + key_count + arg_count) + self._evalsha + bulk(b"%d" % key_count) + keys

    @property
    def load(self) -> bytes:
        """The request after which the server knows it."""
        return b"*3\r\n" + bulks((b"SCRIPT", b"LOAD")) + self._eval.removeprefix(bulk(b"EVAL"))

    def whole(self, frame: bytes) -> bytes:
        """The same request for a server that does not know the script."""
        return frame.replace(self._evalsha, self._eval, 1)


def bulk(word: bytes) -> bytes:
    """One word of a request."""
    return b"$%d\r\n%b\r\n" % (len(word), word)


def bulks(words: Iterable[bytes]) -> bytes:
    """Words of a request."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def command(*words: bytes) -> bytes:
    """A plain command as bytes."""
    return b"*%d\r\n" % len(words) + bulks(words)


def lock_keys(namespace: str, key: str) -> bytes:
    """The names of a lock's three keys, packed.

    They share a slot: Redis hashes what stands between the first ``{`` and the first ``}`` after it, and all
    three begin alike. No two collide: a namespace has no colon, a lock's own name ends in ``}``, its
    auxiliaries in ``}:q`` and ``}:w``; and where work is recorded, that in ``}:r``.
    """
    lock = f"distlock:{{{namespace}:{key}}}".encode()
    return bulk(lock) + bulk(lock + b":q") + bulk(lock + b":w")


def beside(namespace: str) -> str:
    """The namespace of work that is done once. Nobody has one of that name: a plus sign is not allowed there."""
    return f"{namespace}+once"


def record_key(namespace: str, key: str) -> bytes:
    """The name of the record of work, packed."""
    return bulk(f"distlock:{{{namespace}:{key}}}:r".encode())


def own_keys(namespace: str, keys: Sequence[str]) -> bytes:
    """The names of the first keys of locks, packed."""
    start = f"distlock:{{{namespace}:"
    more = len(start) + 1
    text = "".join([f"${len(key) + more}\r\n{start}{key}}}\r\n" for key in keys])
    if text.isascii():  # else characters are not bytes
        return text.encode()
    return bulks([f"{start}{key}}}".encode() for key in keys])


def clock_key(namespace: str) -> bytes:
    """The name of the namespace's token clock, packed."""
    return bulk(f"distlock:{namespace}:clock".encode())


class Dialect:
    """How a kind of server tells a process that waits, and the scripts that do so."""

    def __init__(
        self, hears: str, subscribe: bytes, message: bytes, subscribed: bytes, unsubscribed: bytes, *, by_slot: bool
    ) -> None:
        self.subscribe = subscribe
        self.message = message
        """What a message is called that comes in; and below, that a channel is listened to from now on, and no more."""
        self.subscribed = subscribed
        self.unsubscribed = unsubscribed
        self.by_slot = by_slot
        """One channel for each slot of a cluster, and in it. Else one for all locks."""
        # Read now, and not by the first lock, which may be in an event loop.
        self.acquire: Script = Script("acquire", hears)
        self.release: Script = Script("release", hears)
        self.revoke: Script = Script("revoke", hears)
        self.refresh: Script = Script("refresh", hears)
        self.complete: Script = Script("once_complete", hears)
        self.results: Dialect = copy(self)
        """The same for work that can be completed: who asks for it may find that it is done."""
        self.results.acquire = Script("once_acquire", hears)


SERVER = Dialect("server", b"SUBSCRIBE", b"message", b"subscribe", b"unsubscribe", by_slot=False)
SHARD = Dialect("shard", b"SSUBSCRIBE", b"smessage", b"ssubscribe", b"sunsubscribe", by_slot=True)
"""A cluster of Redis 7 or later."""
CLUSTER = Dialect("cluster", b"SUBSCRIBE", b"message", b"subscribe", b"unsubscribe", by_slot=True)
"""An older cluster."""

CONFIRM = Script("confirm")
RENEW = Script("renew")
INSPECT = Script("inspect")
RECORDED = Script("once_recorded")
