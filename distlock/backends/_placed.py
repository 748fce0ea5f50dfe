"""Backends of stores in which each claim has a place of its own, in the order of arrival."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from ._clerk import Clerk
from ._places import Placed, Places
from .base import BackendError, Busy, Claim, Done, Grant, SyncBackend, now

__all__ = ("PlacedBackend",)

P = TypeVar("P", bound=Placed)


class _Forked(Protocol):
    def after_fork(self) -> None: ...


class PlacedBackend(SyncBackend, Generic[P]):
    """How a claim comes to its place, and what such a backend has besides: two clerks, and an end."""

    _places: Places[P]

    def __init__(self, store: str, address: str, op_timeout: float) -> None:
        self.address: str = address
        self._op_timeout = op_timeout
        self._closed = False
        self._clerk = Clerk(f"distlock-{store}-clerk")
        """Keeps sessions alive and looks after them. It never waits for a server."""
        self._tidier = Clerk(f"distlock-{store}-tidier")
        """Asks for what can wait, and may have to wait for the answer."""

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        """See `SyncBackend.acquire`."""
        if self._closed:
            raise self._error("this manager was closed", claim)
        place = self._places.enter(claim)
        try:
            outcome = self._ask(place, claim, deadline)
        except BaseException as error:
            self._failed(place, claim, error)
            raise
        finally:
            self._places.returned(place)
        self._answered(place, claim, outcome)
        return outcome

    def close(self) -> None:
        """See `SyncBackend.close`."""
        if self._closed:
            return
        self._closed = True
        deadline = now() + self._op_timeout
        for clerk in (self._clerk, self._tidier):
            clerk.close(min(self._op_timeout, 1.0))
        self._disconnect(deadline)

    def after_fork(self) -> None:
        """See `SyncBackend.after_fork`."""
        own: tuple[_Forked, ...] = self._clerk, self._tidier, self._places
        for each in (*own, *self._others()):
            each.after_fork()

    def _error(self, what: str, claim: Claim) -> BackendError:
        return BackendError(f"{what} [{self.address}]", key=claim.key, backend=self.address)

    # Each store's own.

    @abstractmethod
    def _ask(self, place: P, claim: Claim, deadline: float) -> Grant | Busy | Done: ...

    @abstractmethod
    def _failed(self, place: P, claim: Claim, error: BaseException) -> None:
        """It was asked for in vain; or nobody knows."""

    @abstractmethod
    def _answered(self, place: P, claim: Claim, outcome: Grant | Busy | Done) -> None: ...

    @abstractmethod
    def _others(self) -> Iterable[_Forked]:
        """What a forked child has to forget, too."""

    @abstractmethod
    def _disconnect(self, deadline: float) -> None: ...
