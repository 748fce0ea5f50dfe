"""What a process knows of a claim."""

from __future__ import annotations

from typing import Any

from .._places import Placed
from ..base import Claim, Wake
from ._client import Handle
from ._life import Life
from ._session import Session
from ._values import Layout

__all__ = ("Place",)


class Place(Placed):
    """A claim's node, from before it is asked for until it is known to be gone."""

    __slots__ = (
        "ahead",
        "beside",
        "claim",
        "czxid",
        "doomed",
        "first",
        "gone",
        "life",
        "look",
        "node",
        "second",
        "session",
        "stem",
        "wake",
    )

    def __init__(self, claim: Claim, layout: Layout, session: Session) -> None:
        super().__init__(claim)
        self.claim = claim
        self.session = session
        self.stem = layout.stem(claim)
        self.life: Life | None = None
        """The session under which it stands, or may."""
        self.node = ""
        """Its path; empty: it is not there, or nobody knows."""
        self.czxid = 0
        self.doomed = False
        """It is to go, as soon as there is a connection."""
        self.ahead = ""
        """The node that it waits for."""
        self.second = False
        """That node is the holder's."""
        self.gone = False
        """It is not there any more."""
        self.first: tuple[str, Handle | None] | None = None
        """The holder's node when it queued, and what is in it, once that was asked."""
        self.look: Handle | None = None
        """Who is in the line, asked for when that node went."""
        self.wake: Wake | None = None
        self.beside: list[Any] = []
        """What was answered besides when it entered, or queued."""

    @property
    def parent(self) -> str:
        return self.stem.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.node.rpartition("/")[2]

    def stands(self, node: str, stat: Any) -> None:
        """Its node was made, or found."""
        self.node, self.czxid = node, stat.czxid

    def leave_session(self) -> None:
        """It does not wait under it any more."""
        self.session.waiters.discard(self.claim_id)

    def vanished(self) -> None:
        """Its node is gone."""
        self.leave_session()
        self.node, self.czxid, self.ahead, self.look = "", 0, "", None
        self.granted = self.passed_over = self.second = self.gone = False
