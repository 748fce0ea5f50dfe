"""Ways for the library to be wrong, for the tests of the model; those of the stores are in `Memory`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distlock import LeaseState
from distlock._core import acquire, hold, release
from distlock.backends.base import proven_until
from distlock.backends.redis import _backend, _inbox, _values, _waiting
from distlock.backends.redis.redlock import _backend as redlock, _votes
from distlock.backends.redis.redlock._votes import Verdict

from .fibers import SIM

__all__ = ("BROKEN",)

Swap = tuple[Any, str, object]


def _proofs(proof: Callable[[float, float], float]) -> list[Swap]:
    modules: list[Any] = [_backend, _values, _waiting, redlock, release]
    return [(module, "proven_until", proof) for module in modules]


def _revives(self: Any, deadline: float) -> bool:
    self.deadline, self.ended = deadline, None
    return True


def _elected(self: Any, final: bool) -> Verdict:
    self.token = max(vote.token for vote in self.votes.values())
    return Verdict.GRANTED


def _nothing(*_: object, **__: object) -> None:
    pass


BROKEN: dict[str, list[Swap]] = {
    "counts from the reply": _proofs(lambda sent_at, ttl: proven_until(SIM.now(), ttl)),
    "no margin for drift": _proofs(lambda sent_at, ttl: sent_at + ttl),
    "what has ended is renewed": [(hold.Hold, "_prove", _revives)],
    "nobody is told": [(hold.Hold, "lose", lambda self, reason: self._end(LeaseState.LOST, reason))],
    "what got no answer is not withdrawn": [
        (acquire._Asker, "reached", property(lambda self: self.busy is not None)),
    ],
    "a timeout does not withdraw": [(_backend.RedisBackend, "withdraw", _nothing)],
    "places are not kept": [(_inbox.Inbox, "_refresh_all", _nothing)],
    "less than a majority": [(_votes, "majority", lambda count: count // 2)],
    "no second round": [(_votes.Ballot, "_elected", _elected)],
    "votes are not taken back": [(redlock.RedlockBackend, "_take_back", _nothing)],
}
