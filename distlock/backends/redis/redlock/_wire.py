"""What is said to the nodes of a Redlock, and what lies on them. The format is described in ``redlock_vote.lua``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from ...base import Claim, Holder
from .._scripts import INSPECT, Script, bulk, bulks, clock_key, command, lock_keys, own_keys
from .._values import inspection, milliseconds

__all__ = ("RENEW", "SEAL", "VOTE", "Found", "Requests", "found_at")

VOTE = Script("redlock_vote")
SEAL = Script("redlock_seal")
END = Script("redlock_end")
RENEW = Script("redlock_renew")


@dataclass(frozen=True, slots=True)
class Found:
    """What a node has of a lock."""

    claim: str
    """Empty, if it is not ours."""
    place: int
    """Of the node in the claim's own list."""
    sealed: bool
    token: int | None
    free_in: float
    """Seconds."""
    holder: Holder | None


def found_at(key: str, value: bytes, pttl: int, us: int) -> Found:
    """``value``, which ends in ``pttl`` ms, at a node whose clock says ``us``."""
    holder = inspection(key, [value, pttl, us]).holder
    ids = value.split(b" ", 2)[1].split(b",") if value.startswith(b"1 ") else []
    claim = ids[0].decode(errors="replace") if len(ids) == 4 else ""
    sealed = not claim or ids[3] == b"s"  # what is not ours keeps us out as well
    token = None if holder is None else holder.token
    place = int(ids[1]) if claim else 0
    return Found(claim, place, sealed, token, pttl / 1000 if pttl >= 0 else math.inf, holder)


class Requests:
    """The requests as bytes, for the locks of one namespace."""

    def __init__(self, namespace: str, op_timeout: float) -> None:
        self.namespace = namespace
        self._op_timeout = op_timeout
        self._clock = clock_key(namespace)
        self.channel = lru_cache(maxsize=512)(self._channel)

    def _channel(self, key: str) -> bytes:
        return f"distlock:{{{self.namespace}:{key}}}:free".encode()

    def vote(self, claim: Claim, node: int, attempt: int) -> bytes:
        """For its vote."""
        head = VOTE.head(3, own_keys(self.namespace, [claim.key]) + self._tombstone(claim) + self._clock, 5)
        return head + bulks((_voter(claim, node), b"%d" % attempt)) + _terms(claim.ttl, claim.owner, claim.about)

    def seal(self, claim: Claim, node: int, attempt: int, token: int) -> bytes:
        """To write the token beside its vote."""
        head = SEAL.head(2, own_keys(self.namespace, [claim.key]) + self._clock, 2)
        return head + bulks((b"%b,%d" % (_voter(claim, node), attempt), b"%d" % token))

    def undo(self, claim: Claim, node: int, attempt: int) -> bytes:
        """To take the vote of one attempt back."""
        return self._ending(claim, node, (b"%d" % attempt, b"", b"0"))

    def end(self, claim: Claim, node: int, *, in_flight: bool = False) -> bytes:
        """To take back whatever the claim has there, and to tell who waits."""
        late = milliseconds(min(claim.ttl, self._op_timeout)) if in_flight else b"0"
        return self._ending(claim, node, (b"", self.channel(claim.key), late))

    def _ending(self, claim: Claim, node: int, args: tuple[bytes, bytes, bytes]) -> bytes:
        head = END.head(2, own_keys(self.namespace, [claim.key]) + self._tombstone(claim), 4)
        return END.whole(head + bulk(_voter(claim, node)) + bulks(args))  # whoever sends it may not wait for an answer

    def renew(self, claims: Sequence[tuple[Claim, float]], node: int) -> bytes:
        """To keep votes alive."""
        keys = own_keys(self.namespace, [claim.key for claim, _ in claims])
        args = [arg for claim, ttl in claims for arg in (_voter(claim, node), milliseconds(ttl))]
        return RENEW.head(len(claims), keys, len(args)) + bulks(args)

    def inspect(self, key: str) -> bytes:
        """To look at a lock."""
        return INSPECT.head(3, lock_keys(self.namespace, key), 0)

    def scan(self, cursor: bytes, prefix: str) -> bytes:
        """One step of looking for locks."""
        escaped = "".join(f"\\{c}" if c in "\\*?[]^-" else c for c in prefix)
        pattern = f"distlock:{{{self.namespace}:{escaped}*}}".encode()
        return command(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"500")

    def keys_in(self, names: Sequence[bytes]) -> Iterator[str]:
        """The lock names among keys of a node."""
        start = f"distlock:{{{self.namespace}:".encode()
        for name in names:
            if name.startswith(start) and name.endswith(b"}"):
                yield name[len(start) : -1].decode(errors="replace")

    def _tombstone(self, claim: Claim) -> bytes:
        # No lock's name ends so.
        return bulk(f"distlock:{{{self.namespace}:{claim.key}}}:x:{claim.id}".encode())


@lru_cache(maxsize=512)
def _terms(ttl: float, owner: str | None, about: str) -> bytes:
    """The same for every call from one place. An owner never re-enters: that is refused."""
    name = b"-" if owner is None else b"~" + quote(owner, safe="").encode()
    return bulks((milliseconds(ttl), name, about.encode()))


def _voter(claim: Claim, node: int) -> bytes:
    return b"%b,%d" % (claim.id.encode(), node)
