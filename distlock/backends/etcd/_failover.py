"""What becomes of a call that has failed: the next endpoint, the same once more with a new token, or an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc

from .._dice import DICE
from ..base import BackendError, BackendUnavailable, now
from ._auth import Tokens
from ._endpoints import Endpoint, Metadata
from ._errors import TokenRefused, is_unreachable, mapped, nobody_answered

__all__ = ("Journey", "share")

SHORTEST = 0.3
"""Seconds that a try is given if the call has as many: a healthy but busy cluster takes that long now and then."""
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.5


def share(left: float, tries: int) -> float:
    """How long one of ``tries`` endpoints may take of the seconds left: a frozen one must not take them all."""
    return max(left / tries, min(left, SHORTEST))


class Journey:
    """One call's way from endpoint to endpoint. Each is asked in turn; and in turn again, if that may help, later."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        address: str,
        tokens: Tokens,
        pause: Callable[[float], object],
        deadline: float,
        key: str | None,
    ) -> None:
        self._endpoints = endpoints
        self._address = address
        self._tokens = tokens
        self._pause = pause
        self._deadline = deadline
        self._key = key
        self._to_ask = list(endpoints)
        self._rounds = 0
        self._renewed = False
        self._hope = False
        self.troubles: dict[Endpoint, BackendError] = {}
        """The last one of each endpoint that did not answer."""
        self.sent = False
        """A request may have been carried out."""

    def next(
        self, error: grpc.RpcError, endpoint: Endpoint, channel: grpc.Channel | None, metadata: Metadata
    ) -> tuple[Endpoint, float]:
        """Whom to ask next, and for how many seconds; raises if there is no hope, or no time."""
        trouble = mapped(error, endpoint.address, key=self._key)
        if isinstance(trouble, TokenRefused) and self._tokens.renewable and not self._renewed:
            self._renewed = True
            self._renew(metadata)
            return endpoint, share(self._deadline - now(), len(self._to_ask))
        if not isinstance(trouble, BackendUnavailable):
            trouble.sent = self.sent
            raise trouble from error
        self.sent = self.sent or trouble.sent
        self.troubles[endpoint] = trouble
        if is_unreachable(error):
            endpoint.redial(channel)
        else:
            self._hope = True
        self._to_ask.remove(endpoint)
        if not self._to_ask:
            self._once_more(error)
        left = self._deadline - now()
        if left <= 0:
            raise self._given_up() from error
        return self._to_ask[0], share(left, len(self._to_ask))

    def _renew(self, refused: Metadata) -> None:
        try:
            self._tokens.renewed(refused, self._deadline, self._key)
        except BackendError as error:
            error.sent = self.sent
            raise

    def _once_more(self, error: grpc.RpcError) -> None:
        """All were asked. Those that cannot be reached at all will not be so in a moment; others may."""
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._rounds) * DICE.uniform(0.8, 1.2)
        if not self._hope or now() + pause >= self._deadline:
            raise self._given_up() from error
        self._pause(pause)
        self._rounds += 1
        self._hope = False
        self._to_ask = list(self._endpoints)

    def _given_up(self) -> BackendError:
        trouble = nobody_answered(list(self.troubles.values()), self._address, key=self._key)
        trouble.sent = self.sent
        return trouble
