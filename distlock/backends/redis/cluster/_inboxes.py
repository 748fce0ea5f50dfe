"""Where those wait who wait for locks of a Cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ...base import Busy, Claim, Subscription, Wake
from .._inbox import Inbox
from .._values import NO_INBOX
from ._nodes import Address, Cluster

__all__ = ("ClusterInboxes",)


class ClusterInboxes:
    """An inbox for each node where someone waits; a claim is in that of the node which has its slot.

    When the slot moves the inbox wakes it, and asking again brings it to the next one.
    """

    def __init__(self, cluster: Cluster, make: Callable[[Address], Inbox]) -> None:
        self._cluster = cluster
        self._make = make
        self._reset()

    def _reset(self) -> None:
        self._inboxes: dict[Address, Inbox] = {}
        self._homes: dict[str, Inbox] = {}
        self._wakes: dict[str, Wake] = {}  # not lost when the next home cannot be reached
        self._mutex = threading.Lock()
        self._closed = False

    connected = False
    """`watch` may have to wait for a server: which one depends on the claim."""

    def is_settled(self, claim: Claim) -> bool:
        """See `settle`."""
        before = self._homes.get(claim.id)
        return before is None or before is self._known_home(claim)

    def settle(self, claim: Claim, deadline: float) -> None:
        """Brings a claim that waits to where its slot is now."""
        before = self._homes.get(claim.id)
        if before is not None:
            home = self._home(claim, deadline)
            if before is not home and (wake := self._wakes.get(claim.id)) is not None:
                before.forget(claim.id)
                home.watch(Busy(claim), wake, deadline)
                self._homes[claim.id] = home  # not before: until then it has to be tried again

    def expect(self, claim: Claim) -> bytes:
        """See `Inbox.expect`."""
        home = self._known_home(claim)
        if home is None or self._homes.get(claim.id, home) is not home:  # it has moved since: to be settled first
            return NO_INBOX
        channel = home.expect(claim)
        if channel != NO_INBOX:
            self._homes[claim.id] = home
        return channel

    def watch(self, busy: Busy, wake: Wake, deadline: float, *, here: bool = False) -> Subscription:
        """See `Inbox.watch`. Not ``here``: the news may come at another inbox than the one of now."""
        claim = busy.claim
        before, home = self._homes.get(claim.id), self._home(claim, deadline)
        if before is not None and before is not home:
            before.forget(claim.id)
        self._homes[claim.id], self._wakes[claim.id] = home, wake
        try:
            home.watch(busy, wake, deadline)
        except BaseException:
            self.forget(claim.id)
            raise
        return _Watch(self, claim.id)

    def forget(self, claim_id: str) -> None:
        """See `Inbox.forget`."""
        self._wakes.pop(claim_id, None)
        home = self._homes.pop(claim_id, None)
        if home is not None:
            home.forget(claim_id)

    def forget_unwatched(self, claim_id: str) -> None:
        """See `Inbox.forget_unwatched`."""
        home = self._homes.get(claim_id)
        if home is not None and home.forget_unwatched(claim_id):
            del self._homes[claim_id]

    def ends_in(self, busy: Busy, epoch: float | None = None) -> None:
        """See `Inbox.ends_in`."""
        home = self._homes.get(busy.claim.id)
        if home is not None:
            home.ends_in(busy, epoch)

    def _known_home(self, claim: Claim) -> Inbox | None:
        node = self._cluster.known_owner(self._cluster.slot_of(claim.key))
        return None if node is None else self._at(node)

    def _home(self, claim: Claim, deadline: float) -> Inbox:
        return self._at(self._cluster.owner(self._cluster.slot_of(claim.key), deadline))

    def _at(self, node: Address) -> Inbox:
        inbox = self._inboxes.get(node)
        if inbox is None:
            with self._mutex:
                inbox = self._inboxes.get(node)
                if inbox is None:
                    inbox = self._inboxes[node] = self._make(node)
        if self._closed:  # meanwhile: nobody would end its thread
            inbox.close()
        return inbox

    def close(self) -> None:
        """See `Inbox.close`."""
        self._closed = True
        for inbox in list(self._inboxes.values()):
            inbox.close()

    def after_fork(self) -> None:
        """See `Inbox.after_fork`."""
        for inbox in list(self._inboxes.values()):
            inbox.after_fork()
        self._reset()


class _Watch:
    __slots__ = ("_claim_id", "_inboxes")

    def __init__(self, inboxes: ClusterInboxes, claim_id: str) -> None:
        self._inboxes = inboxes
        self._claim_id = claim_id

    def close(self) -> None:
        self._inboxes.forget(self._claim_id)
