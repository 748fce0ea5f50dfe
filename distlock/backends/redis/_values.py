"""What is stored in Redis, as seen from Python. The format is described in ``common.lua``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote, unquote

from ..base import Busy, Claim, Done, Grant, Holder, Inspection, LeaseState, Renewal, Waiter, proven_until
from ._scripts import bulks

__all__ = ("NO_INBOX", "acquired", "inspection", "milliseconds", "recorded", "renewals", "terms")

NO_INBOX = b"-"
LOST = Renewal(LeaseState.LOST)


def milliseconds(seconds: float) -> bytes:
    """A ttl as Redis takes it: whole, and never 0."""
    return b"%d" % max(1, round(seconds * 1000))


@lru_cache(maxsize=512)
def terms(ttl: float, owner: str | None, reentrant: bool, about: str, inbox: bytes) -> bytes:
    """ARGV of ``acquire.lua`` after the claim id, packed: the same for every call from one place."""
    name = b"-" if owner is None else (("=" if reentrant else "~") + quote(owner, safe="")).encode()
    return bulks((milliseconds(ttl), name, about.encode(), inbox))


def acquired(claim: Claim, asked_at: float, reply: Any, in_flight: bool, inbox: bytes) -> Grant | Busy | Done:
    """What ``acquire.lua``, or that of work, said to who asked with this inbox."""
    if isinstance(reply, int):
        return Grant(claim, reply, proven_until(asked_at, claim.ttl), in_flight)
    if len(reply) == 2:
        return Done(claim, *recorded(*reply), in_flight)
    pttl, held_us, value = reply
    # Who is told, or finds out by the refresh, need not ask by itself as well.
    watched = math.inf if claim.wait and inbox != NO_INBOX else None
    return Busy(claim, partial(_holder, value, held_us, pttl), watched, in_flight, pttl / 1000 if pttl >= 0 else None)


def recorded(pttl: int, value: bytes) -> tuple[bytes, float | None]:
    """A record, and the seconds for which it is kept. One that is not ours is handed on, to be found unreadable."""
    version, _, rest = value.partition(b" ")
    return rest.partition(b" ")[2] if version == b"1" else value, pttl / 1000 if pttl >= 0 else None


def inspection(key: str, reply: Any) -> Inspection:
    """What ``inspect.lua`` said."""
    value, pttl, now_us, *queue = reply
    holder = _holder(value, None, pttl, now_us) if value else None
    pairs = zip(queue[::2], queue[1::2], strict=True)
    return Inspection(key, holder, tuple(_waiter(*pair) for pair in pairs))


def _holder(value: bytes, held_us: int | None, pttl: int, now_us: int = 0) -> Holder:
    ttl = pttl / 1000 if pttl >= 0 else None
    version, _, rest = value.partition(b" ")
    fields = rest.split(b" ", 3)
    if version != b"1" or len(fields) != 4 or not fields[0] or not fields[1].isdigit():
        return Holder("unknown: the value is not one of distlock's", ttl=ttl)
    ids, token, owner, about = fields
    held = held_us if held_us is not None else now_us - int(token)
    return Holder.found(
        _owner_name(ids, owner),
        about.decode(errors="replace"),
        token=int(token),
        held_for=max(0, held) / 1e6,
        ttl=ttl,
    )


def _waiter(claim_id: bytes, record: bytes) -> Waiter:
    _, _, _, owner, _, about = record.split(b" ", 5)
    return Waiter.read(_owner_name(claim_id, owner), about.decode(errors="replace"))


def _owner_name(ids: bytes, owner: bytes) -> str:
    named, alone = owner[1:], ids.partition(b",")[0]
    return unquote(named.decode(errors="replace")) if owner != b"-" else alone.decode(errors="replace")


def renewals(ttls: Sequence[float], asked_at: float, lost: Sequence[int]) -> list[Renewal]:
    """What ``renew.lua`` said."""
    held = {ttl: Renewal(LeaseState.HELD, proven_until(asked_at, ttl)) for ttl in set(ttls)}
    results = [held[ttl] for ttl in ttls]
    for position in lost:
        results[position - 1] = LOST
    return results
