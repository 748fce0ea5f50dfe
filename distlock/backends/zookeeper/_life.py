"""What is proven of one session, from its making to its end.

Who ends a session is the leader: when it has heard nothing of it for the time that was agreed to. It hears of one that
is connected to itself with each request. But a follower tells the leader *once in half a tick* of the sessions that it
has heard of; it forwards requests, and a forwarded request does not count as a sign of life (`LearnerHandler`,
`Leader.PING` and `Leader.REQUEST`, in ZooKeeper's source). So an answer that came through the leader does not prove
that the leader has heard of *that* request. It proves, since the follower sends everything on one connection, that the
leader has got what the follower told it before it forwarded the request: of whatever was sent here at least half
a tick earlier. A tick is no more than half of the shortest session that a server agrees to, so half a tick is a
quarter of ours at most; with room for the way, three tenths are counted.

And it must be *the* leader. One that has been replaced, and does not know it for as long as its ``syncLimit``, answers
a `sync` all the same, and lets sessions be taken up. So only what a majority has decided on counts: writes, among them
a transaction that only checks.

Hence: the session is alive until its length after the *last thing sent no later than three tenths of it before* a
write that was answered. Answers of the follower alone, as those to pings are, prove nothing: it gives them when it is
cut off from the leader, too. When a connection is made the leader is asked whether there is such a session, which is
a sign of life that it has heard of at once: the first write that is answered proves that.
"""

from __future__ import annotations

import threading
from collections import deque

from ..base import proven_until

__all__ = ("Life",)

TOLD = 0.3
"""Of its length: when something was sent so long before a write that was answered, the leader has heard of it."""


class Life:
    """Thread-safe."""

    __slots__ = ("_mutex", "_signs", "_taken_up", "base", "checked_at", "ended", "id", "timeout")

    def __init__(self, session_id: int, timeout: float) -> None:
        self.id = session_id
        self.timeout = timeout
        """Seconds, as agreed to by the server."""
        self.base = 0.0
        """The leader has heard of it then, or later."""
        self.checked_at = 0.0
        """When the nodes that are held under it were found to be there."""
        self.ended = False
        self._signs: deque[float] = deque()
        self._taken_up = 0.0
        """When this connection was begun, if nothing has proven yet that it leads to the leader."""
        self._mutex = threading.RLock()  # see `Clerk`

    def connected(self, since: float) -> None:
        """A leader has said that it is there; what was sent on another connection tells nothing any more."""
        with self._mutex:
            self._signs.clear()
            self._signs.append(since)
            self._taken_up = since

    def sent(self, at: float) -> None:
        """Something is about to be sent on its connection."""
        with self._mutex:
            if (
                not self._signs or at - self._signs[-1] >= self.timeout / 50
            ):  # fewer do: an earlier time is the safe one
                self._signs.append(at)

    def answered(self, sent_at: float) -> None:
        """A write that was sent then, or a little later, was answered."""
        told = sent_at - TOLD * self.timeout
        with self._mutex:
            if self._taken_up and sent_at >= self._taken_up:
                self.base, self._taken_up = max(self.base, self._taken_up), 0.0
            signs = self._signs
            while len(signs) > 1 and signs[1] <= told:
                signs.popleft()
            if signs and self.base < signs[0] <= told:
                self.base = signs[0]

    @property
    def deadline(self) -> float:
        """Until when it is proven to be there."""
        return 0.0 if self.ended else proven_until(self.base, self.timeout)
