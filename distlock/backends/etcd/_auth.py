"""What goes with every call: that a member without a leader is to say so at once, and the token of the user."""

from __future__ import annotations

from collections.abc import Callable

from ..base import BackendUnavailable
from ._endpoints import Metadata
from ._turns import Turn, Turns

__all__ = ("ANYBODY", "Ask", "Tokens")

ANYBODY: Metadata = (("hasleader", "true"),)
"""A member that was cut off from the others refuses the call, and does not sit on it till the deadline."""

Ask = Callable[[str | None, float, str | None], str | None]
"""For a token other than the one given, by a deadline, for a lock of that name; ``None``: goes without."""


class Tokens:
    """Thread-safe. One thread asks for a new token, the others that want one wait for it."""

    def __init__(self, ask: Ask | None) -> None:
        self._ask = ask
        self.after_fork()

    def after_fork(self) -> None:
        """Forgets, and locks anew."""
        self._asking = Turns()
        self._token: str | None = None
        self.current: Metadata | None = None if self._ask else ANYBODY
        """The metadata for a call; ``None`` until the user has logged in."""

    @property
    def renewable(self) -> bool:
        return self._ask is not None

    def renewed(self, stale: Metadata | None, deadline: float, key: str | None) -> Metadata:
        """Others than ``stale``, which the server has refused."""
        turn = Turn()
        if not self._asking.take("token", turn, deadline):
            raise BackendUnavailable("the server did not take the login in time", key=key)
        try:
            if self._ask and (self.current is None or self.current is stale):
                self._token = self._ask(self._token, deadline, key)
                self.current = (*ANYBODY, ("token", self._token)) if self._token else (*ANYBODY,)
            return self.current or ANYBODY
        finally:
            self._asking.leave("token", turn)
