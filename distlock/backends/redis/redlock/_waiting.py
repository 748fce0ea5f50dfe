"""How a process waits for locks on several nodes: one thread, subscribed to the releases on each of them.

Messages are hints. Whoever waits looks again when enough nodes have told of a release, when the present lease is known
to end, and every third of a ttl. Of those in this process that want one lock, one looks at a time, from the first
attempt on: a thousand that ask at once would split the votes for ever.
"""

from __future__ import annotations

import logging
import math
import selectors
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from redis import Connection

from ..._dice import DICE
from ...base import Claim, Holder, Subscription, Wake, now
from .._connect import Server
from .._scripts import command
from ._node import Bell, Dialer, Stream
from ._votes import majority
from ._wire import Requests

__all__ = ("Watcher",)

log = logging.getLogger("distlock")

JITTER = 0.004
"""Seconds within which processes that hear of the same release ask, so that they do not split the votes."""
STRAGGLERS = 0.05
"""Seconds after the first node's word in which a majority's should have come."""


@dataclass(slots=True)
class _Waiting:
    claim: Claim
    wake: Wake
    woken: bool = False


@dataclass(slots=True)
class _Key:
    """One lock that is waited for."""

    waiting: OrderedDict[str, _Waiting] = field(default_factory=OrderedDict)
    due: float = math.inf
    subscribed: set[int] = field(default_factory=set)
    confirmed: set[int] = field(default_factory=set)
    told: dict[str, set[int]] = field(default_factory=dict)
    """The nodes that told of the end of a claim."""
    holder: Holder | None = None
    """As the last one saw that looked."""


class Watcher:
    """Thread-safe. Connects when the first claim has to wait, and stays connected until `close`."""

    def __init__(self, servers: Sequence[Server], requests: Requests, op_timeout: float) -> None:
        self._servers = servers
        self._requests = requests
        self._op_timeout = op_timeout
        self._needed = majority(len(servers))
        self._reset()

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        self._keys: dict[str, _Key] = {}
        self._askers: dict[str, str] = {}
        """By lock: the claim that asks for it without having waited, until it has it, or waits, or is given up."""
        self._names: dict[bytes, str] = {}
        self._streams: dict[int, Stream] = {}
        self._new: dict[int, Connection] = {}
        self._bell: Bell | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._dialers = [
            Dialer(server, self._op_timeout, partial(self._dialled, node), self._is_wanted)
            for node, server in enumerate(self._servers)
        ]

    # Called by whoever acquires.

    def begin(self, claim: Claim) -> bool:
        """Whether it may ask. If not, others here are before it, and one of them or the watcher passes it the turn."""
        with self._mutex:
            entry = self._keys.get(claim.key)
            waiting = entry.waiting if entry is not None else {}
            if claim.id in waiting:
                return True
            if waiting or claim.key in self._askers:
                return False
            self._askers[claim.key] = claim.id
            return True

    def failed(self, claim: Claim) -> None:
        """It could not ask, which all who wait are to learn."""
        with self._mutex:
            self._leave(claim.id)
            entry = self._keys.get(claim.key)
            wakes = [waiting.wake for waiting in entry.waiting.values()] if entry is not None else []
        for wake in wakes:
            wake()

    def holder(self, key: str) -> Holder | None:
        """Who had it when one of this process looked last, if somebody waits for it."""
        entry = self._keys.get(key)
        return entry.holder if entry is not None else None

    def watch(self, claim: Claim, wake: Wake) -> Subscription:
        """Wakes when asking again may help: also once releases are heard of, since one may have been missed before."""
        with self._mutex:
            entry = self._keys.setdefault(claim.key, _Key())
            self._leave(claim.id)
            alone = not entry.waiting and claim.key not in self._askers
            entry.waiting[claim.id] = _Waiting(claim, wake)
            self._names[self._requests.channel(claim.key)] = claim.key
            heard = len(entry.confirmed) >= self._needed
            entry.due = min(entry.due, now() + claim.ttl / 3)
            self._start()
        if (heard and alone) or self._closed:
            wake()
        self._ring()
        return _Watch(self, claim.id)

    def lost(self, claim: Claim, free_in: float, holder: Holder | None) -> None:
        """It has asked, for nothing; a majority is free in so many seconds, if nobody renews."""
        with self._mutex:
            entry = self._keys.get(claim.key)
            if entry is not None:
                entry.holder = holder
            if entry is None or claim.id not in entry.waiting:
                return
            entry.waiting[claim.id].woken = False
            due = now() + min(free_in + _jitter(), claim.ttl / 3)
            sooner = due < entry.due
            entry.due = min(entry.due, due)
        if sooner:
            self._ring()

    def won(self, claim: Claim) -> None:
        """It has the lock; nobody else need look now."""
        self._drop(claim.id, pass_on=False)

    def forget(self, claim_id: str) -> None:
        """It waits no more. If it was its turn to look, that passes to the next one."""
        self._drop(claim_id, pass_on=True)

    def claims(self, key: str) -> Sequence[Claim]:
        """Who waits for that lock in this process."""
        with self._mutex:
            entry = self._keys.get(key)
            return [waiting.claim for waiting in entry.waiting.values()] if entry is not None else []

    def awaited(self) -> Sequence[str]:
        """The locks that are waited for in this process."""
        with self._mutex:
            return [key for key, entry in self._keys.items() if entry.waiting]

    def close(self) -> None:
        """Ends the thread and its connections. Who still waits is woken, to find that out."""
        self._closed = True
        for dialer in self._dialers:
            dialer.close()
        self._ring()
        self._wake_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._op_timeout)

    def after_fork(self) -> None:
        """In a forked child: the inherited sockets are closed without a word to the nodes."""
        for stream in self._streams.values():
            stream.close()
        for connection in self._new.values():
            connection.disconnect()
        if self._bell is not None:
            self._bell.close()
        self._reset()

    def _drop(self, claim_id: str, *, pass_on: bool) -> None:
        if not self._keys and not self._askers:
            return
        with self._mutex:
            self._leave(claim_id)
            for entry in self._keys.values():
                waiting = entry.waiting.pop(claim_id, None)
                if waiting is not None:
                    if waiting.woken and pass_on:
                        entry.due = 0.0
                    break
            else:
                return
        self._ring()

    def _leave(self, claim_id: str) -> None:
        for key, asker in self._askers.items():
            if asker == claim_id:
                del self._askers[key]
                break

    # What the thread does.

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._bell = Bell()
            self._thread = threading.Thread(target=self._run, args=(self._bell,), name="distlock-watcher", daemon=True)
            self._thread.start()

    def _run(self, bell: Bell) -> None:
        try:
            while not self._closed:
                try:
                    self._step(bell)
                except Exception:
                    log.exception("waiting for locks met a bug, and goes on")
                    self._lose(*list(self._streams))
        finally:
            self._lose(*list(self._streams))
            with self._mutex:
                new, self._new = self._new, {}
            for connection in new.values():
                connection.disconnect()
            bell.close()

    def _step(self, bell: Bell) -> None:
        self._connect()
        self._subscribe()
        due = self._next_due()
        with selectors.DefaultSelector() as selector:  # not select(2), which ends at 1024 files
            selector.register(bell, selectors.EVENT_READ, -1)
            for node, stream in self._streams.items():
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if stream.is_full else 0)
                selector.register(stream, events, node)
            for ready, _ in selector.select(None if due == math.inf else max(0.0, due - now())):
                if ready.data < 0:
                    bell.quiet()
                else:
                    self._listen(ready.data)
        self._wake_due()

    def _connect(self) -> None:
        with self._mutex:
            new, self._new = self._new, {}
            wanted = any(entry.waiting for entry in self._keys.values())
        for node, connection in new.items():
            if node in self._streams:  # one more was asked for just as the first one came
                connection.disconnect()
            else:
                self._streams[node] = Stream(connection)
        if wanted:
            failing = 0
            for node, dialer in enumerate(self._dialers):
                if node not in self._streams:
                    dialer.start(patient=True)
                    failing += dialer.error is not None
            if failing > len(self._servers) - self._needed:
                self._wake_all()  # they ask, and learn of the outage

    def _subscribe(self) -> None:
        """To what is waited for now, on each node; and no more to the rest."""
        with self._mutex:
            for name, key in [*self._names.items()]:
                entry = self._keys[key]
                for node, stream in [*self._streams.items()]:
                    if entry.waiting and node not in entry.subscribed:
                        entry.subscribed.add(node)
                        self._say(node, stream, b"SUBSCRIBE", name)
                    elif not entry.waiting and node in entry.subscribed:
                        self._say(node, stream, b"UNSUBSCRIBE", name)
                if not entry.waiting:
                    del self._names[name], self._keys[key]

    def _say(self, node: int, stream: Stream, word: bytes, name: bytes) -> None:
        try:
            stream.write(command(word, name))
        except OSError as error:
            log.info("a connection that brings wake-ups broke: %s", error)
            self._lose_locked(node)

    def _listen(self, node: int) -> None:
        stream = self._streams[node]
        try:
            stream.flush()
            values = stream.read()
        except (OSError, ValueError) as error:
            log.info("a connection that brings wake-ups broke: %s", error)
            self._lose(node)
            return
        with self._mutex:
            for value in values:
                if isinstance(value, list) and len(value) == 3 and (key := self._names.get(value[1])):
                    self._heard(node, self._keys[key], value[0], value[2])

    def _heard(self, node: int, entry: _Key, kind: bytes, word: object) -> None:
        if kind == b"subscribe" and node in entry.subscribed:
            entry.confirmed.add(node)
            if len(entry.confirmed) == self._needed:
                entry.due = 0.0  # what was released before, nobody has heard of
        elif kind == b"message" and isinstance(word, bytes):
            claim = word.partition(b",")[0].decode(errors="replace")
            told = entry.told.setdefault(claim, set())
            told.add(node)
            if len(told) == self._needed:
                entry.due = min(entry.due, now() + _jitter())
            elif len(told) == 1:
                entry.due = min(entry.due, now() + STRAGGLERS + _jitter())
            if len(told) == len(self._servers) or len(entry.told) > 16:
                entry.told.pop(next(iter(entry.told)))

    def _next_due(self) -> float:
        with self._mutex:
            return min((entry.due for entry in self._keys.values() if entry.waiting), default=math.inf)

    def _wake_due(self) -> None:
        t, wakes = now(), []
        with self._mutex:
            for entry in self._keys.values():
                if entry.waiting and entry.due <= t:
                    # The one that looked longest ago: should it not look now, another will.
                    claim_id, waiting = next(iter(entry.waiting.items()))
                    entry.waiting.move_to_end(claim_id)
                    waiting.woken = True
                    entry.due = t + min(one.claim.ttl for one in entry.waiting.values()) / 3
                    wakes.append(waiting.wake)
        for wake in wakes:
            wake()

    def _wake_all(self) -> None:
        with self._mutex:
            wakes = [waiting.wake for entry in self._keys.values() for waiting in entry.waiting.values()]
        for wake in wakes:
            wake()

    def _lose(self, *nodes: int) -> None:
        with self._mutex:
            for node in nodes:
                self._lose_locked(node)

    def _lose_locked(self, node: int) -> None:
        self._streams.pop(node).close()
        for entry in self._keys.values():
            entry.subscribed.discard(node)
            entry.confirmed.discard(node)

    # From the threads that connect.

    def _is_wanted(self) -> bool:
        return not self._closed and any(entry.waiting for entry in list(self._keys.values()))

    def _dialled(self, node: int, connection: Connection | None) -> None:
        if connection is not None:
            with self._mutex:
                wanted = not self._closed and self._thread is not None and node not in self._new
                if wanted:
                    self._new[node] = connection
            if not wanted:
                connection.disconnect()
        self._ring()

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.ring()


class _Watch:
    __slots__ = ("_claim_id", "_watcher")

    def __init__(self, watcher: Watcher, claim_id: str) -> None:
        self._watcher = watcher
        self._claim_id = claim_id

    def close(self) -> None:
        self._watcher.forget(self._claim_id)


def _jitter() -> float:
    return DICE.uniform(0, JITTER)  # two that heard the same are not to meet
