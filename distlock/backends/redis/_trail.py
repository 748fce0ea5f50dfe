"""One request that follows what it looks for: to another node, to another primary, or to a later moment.

Sent again until its deadline, which is safe because each request may be repeated. Pure: it neither sleeps nor sends.
"""

from __future__ import annotations

from redis.exceptions import TimeoutError as RedisTimeoutError

from ..base import BackendError, BackendUnavailable, now

__all__ = ("Address", "Trail", "host_of", "share_of")

Address = tuple[str, int]

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
FREE_REDIRECTS = 5
"""Redirections in a row that are followed at once; who sends us in circles is asked more slowly."""
SHARE = 0.4
"""Of the time that is left, for one try: if a server hangs, there is some left for the one that takes over."""
FIRST_TRY = 1.0
"""Seconds at most for the first try; twice as many for each that follows, as a server may just be slow."""


def share_of(deadline: float) -> float:
    """The deadline of one try."""
    t = now()
    return min(deadline, t + max(0.05, (deadline - t) * SHARE))


def host_of(told: str, asked: Address) -> str:
    """Without a host (``?``: it does not know its own) it is the one that was asked."""
    return asked[0] if told in ("", "?") else told


class Trail:
    """How far one request has come."""

    __slots__ = ("_patience", "_pause", "_redirects", "_said", "ask_at", "deadline", "lost", "moved_to", "sent")

    def __init__(self, deadline: float) -> None:
        self.deadline: float = deadline
        self.ask_at: Address | None = None
        """For the next try alone: this node has the key already, though not yet the slot."""
        self.moved_to: Address | None = None
        """The last try learnt that this node has the slot."""
        self.lost: bool = False
        """The last try found nobody: look again who is where."""
        self.sent: bool = False
        """Some try may have been carried out."""
        self._pause = FIRST_PAUSE
        self._patience = FIRST_TRY
        self._redirects = 0
        self._said = ""
        """What became of the last try that had the time to find out."""

    def limit(self) -> float:
        """Until when to wait in the next try."""
        patience, self._patience = self._patience, 2 * self._patience
        return min(share_of(self.deadline), now() + patience)

    def after(self, error: BackendError, asked: Address | None) -> float:
        """Seconds to pause before another try; raises ``error`` if none can help, or it would come too late."""
        self.sent = error.sent = self.sent or getattr(error, "sent", False)
        self.ask_at = self.moved_to = None
        self.lost = False
        code, _, rest = str(error.__cause__).partition(" ")
        if code in ("MOVED", "ASK") and asked is not None:
            where = _target(rest, asked)
            if code == "ASK":
                self.ask_at = where
            else:
                self.moved_to = where
            self._redirects += 1
            return self._in_time(error, 0.0 if self._redirects <= FREE_REDIRECTS else self._longer())
        if not isinstance(error, BackendUnavailable):
            raise error
        self.lost = code != "TRYAGAIN"  # which says: some keys of the lock have moved already, others not yet
        return self._in_time(error, self._longer())

    def _longer(self) -> float:
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause

    def _in_time(self, error: BackendError, pause: float) -> float:
        hurried = isinstance(error.__cause__, (RedisTimeoutError, TimeoutError))
        if now() + pause >= self.deadline:
            if hurried and self._said:
                error.args = (f"{error}; before that: {self._said}",)
            raise error
        if not hurried:
            self._said = str(error)
        return pause


def _target(rest: str, asked: Address) -> Address:
    """From ``3999 127.0.0.1:6381``."""
    host, _, port = rest.partition(" ")[2].rpartition(":")
    return host_of(host, asked), int(port)
