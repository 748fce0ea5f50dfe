"""The Lua scripts, and their requests as bytes ready to be sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.resources import files

__all__ = (
    "ACQUIRE",
    "INSPECT",
    "REFRESH",
    "RELEASE",
    "RENEW",
    "REVOKE",
    "Script",
    "bulk",
    "bulks",
    "clock_key",
    "command",
    "lock_keys",
    "own_key",
)


class Script:
    """One script, sent by its SHA1, or whole to a server that has forgotten it."""

    __slots__ = ("_eval", "_evalsha", "name")

    def __init__(self, name: str) -> None:
        folder = files("distlock.backends.redis")
        common = (folder / "common.lua").read_bytes()
        # A fast path may stand before the functions: making those takes longer than a free lock does.
        text = (folder / f"{name}.lua").read_bytes().replace(b"-- include common.lua\n", common)
        digest = hashlib.sha1(text, usedforsecurity=False).hexdigest()  # Redis names scripts so
        self.name = name
        self._evalsha = bulk(b"EVALSHA") + bulk(digest.encode())
        self._eval = bulk(b"EVAL") + bulk(text)

    def head(self, key_count: int, keys: bytes, arg_count: int) -> bytes:
        """The request up to its arguments; ``keys`` are packed already."""
        return b"*%d\r\n" % (3 + key_count + arg_count) + self._evalsha + bulk(b"%d" % key_count) + keys

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
    auxiliaries in ``}:q`` and ``}:w``.
    """
    lock = f"distlock:{{{namespace}:{key}}}".encode()
    return bulk(lock) + bulk(lock + b":q") + bulk(lock + b":w")


def own_key(namespace: str, key: str) -> bytes:
    """The name of a lock's first key, packed."""
    return bulk(f"distlock:{{{namespace}:{key}}}".encode())


def clock_key(namespace: str) -> bytes:
    """The name of the namespace's token clock, packed."""
    return bulk(f"distlock:{namespace}:clock".encode())


ACQUIRE = Script("acquire")
RELEASE = Script("release")
RENEW = Script("renew")
REVOKE = Script("revoke")
REFRESH = Script("refresh")
INSPECT = Script("inspect")
