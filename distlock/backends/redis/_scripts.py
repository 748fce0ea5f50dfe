"""The Lua scripts, and their requests as bytes ready to be sent."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files

__all__ = ("ACQUIRE", "INSPECT", "REFRESH", "RELEASE", "RENEW", "Script", "command", "lock_keys")


class Script:
    """One script, sent by its SHA1, or whole to a server that has forgotten it."""

    __slots__ = ("_eval", "_evalsha", "name")

    def __init__(self, name: str) -> None:
        folder = files(__package__)
        text = ((folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text()).encode()
        self.name = name
        self._evalsha = _bulk(b"EVALSHA") + _bulk(hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())
        self._eval = _bulk(b"EVAL") + _bulk(text)

    def frame(self, key_count: int, keys: bytes, *args: bytes) -> bytes:
        """The request; ``keys`` are packed already."""
        return self._pack(self._evalsha, key_count, keys, args)

    def whole(self, frame: bytes) -> bytes:
        """The same request for a server that does not know the script."""
        head, _, rest = frame.partition(self._evalsha)
        return head + self._eval + rest

    @staticmethod
    def _pack(head: bytes, key_count: int, keys: bytes, args: tuple[bytes, ...]) -> bytes:
        tail = b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args])
        count = b"%d" % key_count
        return b"*%d\r\n%b$%d\r\n%b\r\n%b%b" % (3 + key_count + len(args), head, len(count), count, keys, tail)


def command(*words: bytes) -> bytes:
    """A plain command as bytes."""
    return b"*%d\r\n" % len(words) + b"".join([_bulk(word) for word in words])


@lru_cache(maxsize=512)
def lock_keys(namespace: str, key: str) -> bytes:
    """The names of a lock's three keys, packed.

    They share a slot: Redis hashes what stands between the first ``{`` and the first ``}`` after it, and all
    three begin alike. No two collide: a namespace has no colon, a lock's own name ends in ``}``, its
    auxiliaries in ``}:q`` and ``}:w``.
    """
    lock = f"distlock:{{{namespace}:{key}}}".encode()
    return _bulk(lock) + _bulk(lock + b":q") + _bulk(lock + b":w")


@lru_cache(maxsize=512)
def own_key(namespace: str, key: str) -> bytes:
    """The name of a lock's first key, packed."""
    return _bulk(f"distlock:{{{namespace}:{key}}}".encode())


@lru_cache(maxsize=64)
def clock_key(namespace: str) -> bytes:
    """The name of the namespace's token clock, packed."""
    return _bulk(f"distlock:{namespace}:clock".encode())


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


ACQUIRE = Script("acquire")
RELEASE = Script("release")
RENEW = Script("renew")
REFRESH = Script("refresh")
INSPECT = Script("inspect")
