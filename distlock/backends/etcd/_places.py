"""What a process knows of a claim."""

from __future__ import annotations

from .._places import Placed
from ..base import Claim
from ._session import Session
from ._values import Layout

__all__ = ("Place",)


class Place(Placed):
    """A claim's key, from before it is asked for until it is known to be gone."""

    __slots__ = (
        "ahead",
        "key",
        "late",
        "leases",
        "mod_revision",
        "own",
        "prefix",
        "revision",
        "session",
        "strays",
    )

    def __init__(self, claim: Claim, layout: Layout) -> None:
        super().__init__(claim)
        self.prefix = layout.prefix(claim.key)
        self.late = layout.late(claim.id)
        self.key = b""
        self.revision = 0
        """Its create revision; 0: it is not there, or nobody knows."""
        self.mod_revision = 0
        """Of what we wrote last. 0: that is not known."""
        self.session: Session | None = None
        """Under which it stands."""
        self.own: Session | None = None
        """A lease that is this claim's alone."""
        self.strays: list[Session] = []
        """Leases that were made for it, and under which it may stand, or not."""
        self.leases: tuple[Session, ...] = ()
        """Under which a request that is on its way may put it."""
        self.ahead: tuple[bytes, int, bool] = b"", 0, False
        """The key it waits for, the first revision of which it does not know, and whether that key is the holder's."""

    def may_stand_under(self, hold: Session, wait: Session | None) -> None:
        """It is about to be asked for under one of these; an earlier request may still be on its way, too."""
        leases = (hold,) if wait is None or wait is hold else (hold, wait)
        self.leases = tuple(dict.fromkeys((*self.leases, *leases))) if self.unknown else leases

    def settle_in(self, session: Session, revision: int, mod_revision: int) -> None:
        """Its key is there."""
        self.leave_session()
        self.session, self.revision, self.mod_revision = session, revision, mod_revision

    def leave_session(self) -> None:
        """It does not wait under it any more."""
        if self.session is not None:
            self.session.waiters.discard(self.claim_id)

    def vanished(self) -> None:
        """Its key is gone."""
        self.leave_session()
        self.session, self.revision, self.mod_revision = None, 0, 0
        self.granted = self.passed_over = False
