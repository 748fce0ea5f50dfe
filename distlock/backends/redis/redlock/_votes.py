"""What follows from what the nodes of a Redlock have said. No I/O, no clock: the model checker runs this same code.

An attempt has two rounds. In the first each node gives its vote to one claim, for a ttl, and names the least token
it accepts, which is above every token ever sealed there. In the second the highest of a majority's is sealed beside
those votes that still stand. The lease is given out when a majority has sealed the same token: any two majorities
share a node, and on that one the later claim's vote came after the earlier one's seal.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from dataclasses import dataclass

from ...base import LeaseState

__all__ = ("Ballot", "Refusal", "Verdict", "Vote", "majority", "tally")


def majority(nodes: int) -> int:
    """How many of ``nodes`` any other such group shares one with."""
    return nodes // 2 + 1


class Verdict(enum.Enum):
    """What has come of an attempt."""

    OPEN = "more has to be heard"
    SEAL = "a majority voted for it: seal"
    GRANTED = "a majority has sealed"
    TAKEN = "another claim may have a majority"
    SPLIT = "nobody has a majority: try again"
    UNREACHED = "no majority answers"


@dataclass(frozen=True, slots=True)
class Vote:
    """A node's vote for this claim."""

    token: int
    """The least that it accepts, or the one that it has sealed."""
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node's vote for another claim."""

    claim: str
    sealed: bool
    free_in: float = math.inf
    """Seconds."""


class Ballot:
    """One attempt of one claim, by the answers of the nodes, which are numbers."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.needed: int = majority(nodes)
        self.votes: dict[int, Vote] = {}
        self.refusals: dict[int, Refusal] = {}
        self.failed: set[int] = set()
        self.token = 0
        self._asked: set[int] = set()
        self._sealed: set[int] = set()
        self._answered: set[int] = set()

    # The first round.

    def hear(self, node: int, answer: Vote | Refusal | None) -> None:
        """What a node said to the request for its vote; None: an error, which is its refusal alone."""
        if isinstance(answer, Vote):
            self.votes[node] = answer
        elif answer is not None:
            self.refusals[node] = answer
        else:
            self.failed.add(node)

    def voting(self, *, final: bool) -> Verdict:
        """``final``: nobody is waited for any more."""
        if len(self.votes) >= self.needed:
            return self._elected(final)
        answered, unheard = len(self.votes) + len(self.refusals), self._unheard
        if not final and unheard and (len(self.votes) + unheard >= self.needed or answered < self.needed):
            return Verdict.OPEN
        if answered < self.needed:
            return Verdict.UNREACHED
        return Verdict.TAKEN if self.holder is not None else Verdict.SPLIT

    def _elected(self, final: bool) -> Verdict:
        sealed = Counter(vote.token for vote in self.votes.values() if vote.sealed)
        for token, count in sealed.items():  # it is asked again, perhaps after its grant
            if count >= self.needed:
                self.token = token
                return Verdict.GRANTED
            if count + self._unheard >= self.needed and not final:
                return Verdict.OPEN
        return Verdict.SEAL

    @property
    def _unheard(self) -> int:
        return self.nodes - len(self.votes) - len(self.refusals) - len(self.failed)

    @property
    def holder(self) -> str | None:
        """The other claim that has a majority, or may have one among the nodes that did not answer."""
        silent = self.nodes - len(self.votes) - len(self.refusals)
        counts = Counter(refusal.claim for refusal in self.refusals.values())
        sealed = {refusal.claim for refusal in self.refusals.values() if refusal.sealed}
        for claim, count in counts.most_common():
            if count >= self.needed or (claim in sealed and count + silent >= self.needed):
                return claim
        return None

    @property
    def free_in(self) -> float:
        """Seconds until a majority may be free, if nobody renews."""
        times = sorted(refusal.free_in for refusal in self.refusals.values())
        missing = self.needed - len(self.votes)
        return times[missing - 1] if 0 < missing <= len(times) else (0.0 if missing <= 0 else math.inf)

    # The second round, or rounds.

    def seal(self) -> set[int]:
        """The nodes to send `token` to: also those whose vote is still on its way here."""
        self.token = max(self.token, *(vote.token for vote in self.votes.values()))
        self._asked = {node for node in range(self.nodes) if node not in self.refusals and node not in self.failed}
        self._sealed, self._answered = set(), set()
        return self._asked

    def hear_seal(self, node: int, answer: int | None) -> None:
        """What it said to that: 0 sealed, -1 the vote is gone, else the least that it accepts; None: an error."""
        if answer is None or answer < 0:
            self.votes.pop(node, None)
            self.failed.add(node)
        elif answer > 0:
            self.votes[node] = Vote(answer)
        else:
            self.votes[node] = Vote(self.token, sealed=True)
            self._sealed.add(node)
        if answer is not None:
            self._answered.add(node)

    def sealing(self, *, final: bool) -> Verdict:
        """``SEAL``: with a higher token."""
        if len(self._sealed) >= self.needed:
            return Verdict.GRANTED
        unheard = self._asked - self._answered - self.failed
        if not final and unheard:
            return Verdict.OPEN
        if len(self._answered - self.failed) >= self.needed:
            return Verdict.SEAL
        return Verdict.SPLIT if len(self._answered) + len(self.refusals) >= self.needed else Verdict.UNREACHED


def tally(yes: int, no: int, nodes: int) -> LeaseState:
    """Whether a majority has a vote for the claim: HELD, LOST, or UNKNOWN as long as neither is certain."""
    if yes >= majority(nodes):
        return LeaseState.HELD
    return LeaseState.LOST if no > nodes - majority(nodes) else LeaseState.UNKNOWN
