"""Asking several nodes at once, from the thread that wants to know."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from ...base import BackendError, BackendUnavailable, now
from .._errors import mapped
from .._scripts import Script
from ._node import Bell, Debt, Dialling, Link, Node, Slot, is_forgotten
from ._votes import majority

__all__ = ("Fan", "Heard")

Heard = Callable[[int, Any], object]
"""Is given the place of a node and what it said: a value, or a `BackendError`."""

PATIENCE = 5.0
"""How many times as long as the majority a node may take before nobody waits for it any more."""
LEAST_PATIENCE = 0.05
"""Seconds."""

NO_DEBTS: Mapping[int, Debt] = {}

_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.DefaultSelector)


class Fan:
    """The nodes. Thread-safe."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes: Sequence[Node] = nodes
        self.needed: int = majority(len(nodes))

    def call(self, deadline: float, key: str | None = None) -> Call:
        """One or more rounds of requests; use it as a context manager."""
        return Call(self, deadline, key)


class Call:
    """Rounds of requests that go to each node over one connection, so that it reads them in order. For one thread."""

    def __init__(self, fan: Fan, deadline: float, key: str | None) -> None:
        self._fan = fan
        self._deadline = deadline
        self._key = key
        self._links: dict[int, Link] = {}
        self._bell: Bell | None = None
        self.errors: dict[int, BackendError] = {}
        """Of the nodes that failed in the latest round."""

    def __enter__(self) -> Call:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        broken = kind is not None and not issubclass(kind, Exception)  # Ctrl-C, in the middle of whatever
        for index, link in self._links.items():
            if broken:
                link.fail(ConnectionError("interrupted"))
            else:
                self._fan.nodes[index].give_back(link)
        if self._bell is not None:
            for node in self._fan.nodes:
                node.forget(self._bell)
            self._bell.close()

    def ask(
        self,
        frames: Mapping[int, bytes],
        script: Script | None,
        heard: Heard,
        is_open: Callable[[], bool],
        debts: Mapping[int, Debt] = NO_DEBTS,
        *,
        eager: bool = False,
    ) -> Sequence[Slot]:
        """Sends each node its request; returns when that is decided, or nobody is worth waiting for any more.

        ``frames``: by the place of the node. ``debts``: the same, for the nodes that do not answer. ``eager``: to be
        heard by nodes that are being connected to as well, if they are not slow. What it gives are the replies that
        have not come.
        """
        return _Round(self, frames, script, heard, is_open, debts, eager).run(self._deadline)

    def tell(self, debts: Mapping[int, Debt]) -> None:
        """Sends without waiting. Who cannot be reached is told when it can be."""
        for index, debt in debts.items():
            link = self.link(index)
            if link is None:
                self._fan.nodes[index].owe(debt, cut_off=True)
                continue
            try:
                link.send(debt.frame, debt)
            except OSError as error:
                self.drop(index, error)

    # For a round.

    @property
    def nodes(self) -> Sequence[Node]:
        return self._fan.nodes

    @property
    def needed(self) -> int:
        return self._fan.needed

    def is_linked(self, index: int) -> bool:
        """It was sent something, and the connection has not ended."""
        return index in self._links

    def link(self, index: int) -> Link | None:
        """The connection to that node, if there is one."""
        link = self._links.get(index) or self._fan.nodes[index].take()
        if link is not None:
            self._links[index] = link
        return link

    def drop(self, index: int, error: Exception) -> BackendError:
        """The connection has ended."""
        self._links.pop(index).fail(error)
        return self.mapped(index, error)

    def mapped(self, index: int, error: Exception, *, sent: bool = True) -> BackendError:
        """In our words."""
        return mapped(error, self._fan.nodes[index].address, key=self._key, sent=sent)

    def bell(self) -> Bell:
        """That rings for new connections."""
        if self._bell is None:
            self._bell = Bell()
        return self._bell

    def unreached(self, address: str) -> BackendError:
        """The error for too many nodes that do not answer, or that refuse, with each one's own."""
        refusals = [error for error in self.errors.values() if not isinstance(error, BackendUnavailable)]
        if len(refusals) >= self.needed:  # whatever the others say; and no outage, that might end
            said = "; ".join(map(str, refusals))
            sent = any(error.sent for error in self.errors.values())
            return BackendError(
                f"a majority of the nodes refused: {said} [{address}]", key=self._key, backend=address, sent=sent
            )
        said = "; ".join(str(self.errors[index]) for index in sorted(self.errors)) or "they did not answer in time"
        return BackendUnavailable(
            f"no majority of the nodes can be reached: {said} [{address}]",
            key=self._key,
            backend=address,
            sent=any(error.sent for error in self.errors.values()),
        )


class _Round:
    """One request to each of some nodes."""

    def __init__(
        self,
        call: Call,
        frames: Mapping[int, bytes],
        script: Script | None,
        heard: Heard,
        is_open: Callable[[], bool],
        debts: Mapping[int, Debt],
        eager: bool,
    ) -> None:
        self._call = call
        self._frames = frames
        self._script = script
        self._heard = heard
        self._is_open = is_open
        self._debts = debts
        self._eager = eager
        self._started: set[int] = set()
        self._slots: dict[int, Slot] = {}
        self._cut_off: list[Slot] = []
        """Sent over a connection that ended: the node may read them yet."""
        self._unsent = set(frames)
        self._dialling: set[int] = set()
        self._put_off: set[int] = set()
        self._answered = 0
        call.errors = {}

    def run(self, deadline: float) -> Sequence[Slot]:
        asked_at = now()
        for index in self._frames:
            self._send(index)
        until = deadline
        while self._is_open() or (self._eager and self._started & self._dialling):
            if not (self._slots or self._dialling) and not self._insist():
                break
            if until == deadline and self._answered >= self._call.needed:
                t = now()
                until = min(deadline, t + max(LEAST_PATIENCE, PATIENCE * (t - asked_at)))
            left = until - now()
            if left <= 0:
                break
            self._wait(left)
        # Who has said nothing may still carry it out.
        for index in self._slots:
            self._call.errors[index] = self._call.mapped(index, TimeoutError())
        for index in self._dialling:
            self._call.errors[index] = self._call.mapped(index, TimeoutError(), sent=False)
        for index in self._unsent & set(self._debts):
            self._call.nodes[index].owe(self._debts[index], cut_off=True)
        return [*self._slots.values(), *self._cut_off]

    def _send(self, index: int, *, at_once: bool = False) -> None:
        link = self._call.link(index)
        if link is None:
            dialling = self._call.nodes[index].dial(self._call.bell(), at_once=at_once)
            if dialling is Dialling.STARTED:
                self._started.add(index)
            (self._put_off if dialling is Dialling.LATER else self._dialling).add(index)
            return
        try:
            self._unsent.discard(index)  # from here on the debt is the connection's
            self._slots[index] = link.send(self._frames[index], self._debts.get(index))
        except OSError as error:
            self._fail(index, self._call.drop(index, error))

    def _insist(self) -> bool:
        """Nodes that failed a moment ago are tried again after all, if without them there is no majority."""
        put_off, self._put_off = self._put_off, set()
        if self._answered >= self._call.needed:
            return False
        for index in put_off:
            self._send(index, at_once=True)
        return bool(self._slots or self._dialling)

    def _wait(self, seconds: float) -> None:
        with _Selector() as selector:
            for index in self._slots:
                link = self._call.link(index)
                assert link is not None
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.is_full else 0)
                selector.register(link, events, index)
            if self._dialling:
                selector.register(self._call.bell(), selectors.EVENT_READ, -1)
            for ready, _ in selector.select(seconds):
                if ready.data < 0:
                    self._look_for_links()
                else:
                    self._receive(ready.data)

    def _receive(self, index: int) -> None:
        link, slot = self._call.link(index), self._slots[index]
        assert link is not None
        try:
            link.flush()
            link.receive()
        except (OSError, ValueError) as error:
            self._cut_off.append(self._slots.pop(index))
            self._fail(index, self._call.drop(index, error))
            return
        if not slot.is_done:
            return
        reply = slot.reply
        del self._slots[index]
        if is_forgotten(reply) and self._script is not None:
            try:
                self._slots[index] = link.send(self._script.whole(self._frames[index]), self._debts.get(index))
            except OSError as error:
                self._fail(index, self._call.drop(index, error))
        elif isinstance(reply, Exception):
            self._fail(index, self._call.mapped(index, reply, sent=False))
        else:
            self._answered += 1
            self._heard(index, reply)

    def _look_for_links(self) -> None:
        self._call.bell().quiet()
        for index in list(self._dialling):
            self._dialling.discard(index)
            error = self._call.nodes[index].error
            if error is not None and self._call.link(index) is None:
                self._fail(index, error)
            else:
                self._send(index)

    def _fail(self, index: int, error: BackendError) -> None:
        self._call.errors[index] = error
        self._heard(index, error)
