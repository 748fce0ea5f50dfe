"""What is drawn of a run: of each attempt the spans that it waited and held, and who sat where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from ._events import What
from ._holdings import Attempt, History, Life

__all__ = ("Try", "colour_of", "seats_of", "tries_of")


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt at a lock. Times are those of the log."""

    who: str
    number: int
    key: str
    wants: float
    got: float | None
    token: int | None
    until: float
    """The last moment for which holding was known to be proven."""
    over: float
    """It waits, or believes to hold, no longer."""
    lost: float | None
    left: float | None
    """The release was answered."""
    refused: tuple[float, ...]
    """When the register turned a write of it down."""
    how: str
    """How it ended, in words."""

    @property
    def met(self) -> bool:
        """It is of those that one wants to look at."""
        return self.lost is not None or bool(self.refused) or self.how == "died"

    @property
    def proven(self) -> tuple[float, float]:
        """From when to when it held, as far as that is known."""
        got = self.got or 0.0
        return got, max(got, min(self.over, self.until))


def tries_of(history: History) -> list[Try]:
    """All attempts, in the order of the log."""
    refused = _refused(history)
    return [
        _try(attempt, history.ended, refused.get((attempt.who, attempt.number), ())) for attempt in history.attempts
    ]


def _try(attempt: Attempt, ended: float, refused: tuple[float, ...]) -> Try:
    got, left, died = attempt.got, attempt.left, attempt.life.died
    ends = [event.t for event in (attempt.gave_up, attempt.lost, attempt.leaves, left) if event]
    proofs = [float(event.more["until"]) for event in (got, *attempt.sure) if event]
    how = "lost" if attempt.lost else str(left.more.get("how", "")) if left else ""
    if not how and attempt.gave_up:
        how = str(attempt.gave_up.more.get("error", attempt.gave_up.what.value))
    return Try(
        attempt.who,
        attempt.number,
        attempt.key,
        min(attempt.waits_from, min(ends, default=ended)),
        got.t if got else None,
        attempt.token,
        max(proofs, default=-inf),
        min([*ends, died, ended]),
        attempt.lost.t if attempt.lost else left.t if left and how == "lost" else None,
        left.t if left else None,
        refused,
        how or ("died" if died < inf else "not over at the end"),
    )


def _refused(history: History) -> Mapping[tuple[str, int], tuple[float, ...]]:
    found: defaultdict[tuple[str, int], tuple[float, ...]] = defaultdict(tuple)
    for event in history.register:
        if event.what is What.TURNED_DOWN:
            found[event.more["by"], event.more["try"]] += (event.t,)
    return found


def seats_of(history: History) -> list[list[Life]]:
    """Each process with those that took its place, one after the other."""
    seats: list[list[Life]] = []
    for life in sorted(history.lives, key=_began):
        before = (seat for seat in seats if seat[-1].died <= _began(life) and colour_of(seat[-1]) == colour_of(life))
        seat = next(before, None)
        if seat is None:
            seats.append([life])
        else:
            seat.append(life)
    return seats


def colour_of(life: Life) -> str:
    return str(life.begins.more.get("colour", "")) if life.begins else ""


def _began(life: Life) -> float:
    return life.begins.t if life.begins else -inf
