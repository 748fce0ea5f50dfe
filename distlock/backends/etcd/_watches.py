"""How a process waits: one stream with a watch on the key before each of its waiters.

etcd looks only every 0.1 s after watches that start in the past, as nearly all would that begin with the revision at
which the key was seen, where others write. So a watch starts when it is made, and its first reply tells whether
anything was written since the key was seen. Then the next in line asks; all others of this process that are in such a
doubt are looked after by one request. What a watch says is a hint, too; whoever hears it asks.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from .._clerk import Clerk
from ..base import BackendError, Subscription, Wake, now
from ._client import Client
from ._rpc import WATCH, pb
from ._stream import Stream

__all__ = ("Aim", "Watches")

log = logging.getLogger("distlock")

LONGEST_PAUSE = 1.0
BEHIND = 0.2
"""Seconds that a member which is behind has to catch up."""


class _Target:
    """What one waiter waits for."""

    __slots__ = ("is_next", "key", "revision", "wake", "watch_id")

    def __init__(self, wake: Wake, key: bytes, revision: int, is_next: bool) -> None:
        self.wake = wake
        self.key = key
        self.revision = revision
        """The first of which it does not know what became of the key."""
        self.is_next = is_next
        """The key is the holder's."""
        self.watch_id = 0
        """0: nobody watches it now."""


class Aim(NamedTuple):
    """What one waiter waited for at some moment."""

    claim_id: str
    target: _Target
    key: bytes
    revision: int


class Watches:
    """Thread-safe. ``on_gone`` is told of a claim for which the key before it may be deleted, before it is woken;
    ``on_doubt`` that there are `doubtful` ones."""

    def __init__(
        self, client: Client, clerk: Clerk, on_gone: Callable[[str], None], on_doubt: Callable[[], None]
    ) -> None:
        self._client = client
        self._clerk = clerk
        self._on_gone = on_gone
        self._on_doubt = on_doubt
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: nobody waits in it."""
        self._mutex = threading.RLock()
        self._targets: dict[str, _Target] = {}
        self._claims: dict[int, str] = {}
        self._doubtful: list[str] = []
        self._ids = itertools.count(1)
        self._stream: Stream[pb.WatchRequest] | None = None
        self._turn = object()
        self._pause = 0.0
        self._reopening = False
        self._closed = False

    def watch(self, claim_id: str, key: bytes, revision: int, is_next: bool, wake: Wake) -> Subscription:
        """Wakes when ``key`` is deleted, at ``revision`` or later; or when nobody can say any more."""
        with self._mutex:
            self._targets[claim_id] = target = _Target(wake, key, revision, is_next)
            if self._stream is not None or self._open():
                self._watch_all()
        if self._closed:
            wake()
        return _Watch(self, claim_id, target)

    def aim(self, claim_id: str, key: bytes, revision: int, is_next: bool) -> None:
        """The waiter has another key before it, or wants to go on with the same; nothing, if it does not watch."""
        target = self._targets.get(claim_id)
        if target is None:
            return
        with self._mutex:
            if target.watch_id and target.key == key and target.revision <= revision:
                return
            self._cancel(target)
            target.key, target.revision, target.is_next = key, revision, is_next
            if self._stream is not None or (not self._reopening and self._open()):
                self._watch_all()

    def forget(self, claim_id: str) -> None:
        """Does not wait any more."""
        target = self._targets.get(claim_id)
        if target is not None:
            self.end(claim_id, target)

    def end(self, claim_id: str, target: _Target) -> None:
        """The same, unless it waits for something else by now."""
        with self._mutex:
            if self._targets.get(claim_id) is target:
                del self._targets[claim_id]
            self._cancel(target)

    def wake(self, claim_ids: Sequence[str]) -> None:
        """They are to ask again."""
        for claim_id in claim_ids:
            if (target := self._targets.get(claim_id)) is not None:
                target.wake()

    def doubtful(self) -> list[str]:
        """Claims for which the key before them was not watched for a moment, since this was asked last."""
        with self._mutex:
            claim_ids, self._doubtful = self._doubtful, []
        return claim_ids

    def aims(self, claim_ids: Iterable[str]) -> list[Aim]:
        """What those of them that watch something wait for."""
        found = ((claim_id, self._targets.get(claim_id)) for claim_id in claim_ids)
        return [Aim(claim_id, target, target.key, target.revision) for claim_id, target in found if target is not None]

    def missed(self, aim: Aim) -> None:
        """Its key is gone, which was found out by asking: the push was lost, or is on its way."""
        with self._mutex:
            target = self._targets.get(aim.claim_id)
            if target is not aim.target or aim.target.key != aim.key:
                return
        self._on_gone(aim.claim_id)
        aim.target.wake()

    def restart(self, turn: object = None, error: BackendError | None = None) -> None:
        """The member at the other end seems not to answer any more; or says so. A stream of an earlier turn is gone."""
        with self._mutex:
            stream = self._stream if turn in (None, self._turn) else None
            turn = self._turn
        if stream is not None:
            self._broke(turn, error)
            stream.fail(error)

    def close(self) -> None:
        """Wakes all, to find that out."""
        self._closed = True
        with self._mutex:
            stream, self._stream, self._turn = self._stream, None, object()
        if stream is not None:
            stream.close()
        self.wake(list(self._targets))

    # With the mutex.

    def _open(self) -> bool:
        if self._closed:
            return False
        self._turn = turn = object()
        try:
            self._stream = self._client.stream(WATCH, partial(self._heard, turn), partial(self._broke, turn))
        except BackendError as error:
            self._broke(turn, error)
            return False
        return True

    def _watch_all(self) -> None:
        """Whoever has opened the stream watches for all that lost theirs with the one before."""
        try:
            for claim_id, target in self._targets.items():
                if not target.watch_id:
                    self._create(claim_id, target)
        except BaseException:  # Ctrl-C: some may be taken for watched, which they are not
            self.restart()
            raise

    def _create(self, claim_id: str, target: _Target) -> None:
        assert self._stream is not None
        target.watch_id = next(self._ids)
        self._claims[target.watch_id] = claim_id
        request = pb.WatchCreateRequest(
            key=target.key,
            filters=[pb.WatchCreateRequest.NOPUT],
            watch_id=target.watch_id,
        )
        self._stream.send(pb.WatchRequest(create_request=request))

    def _cancel(self, target: _Target) -> None:
        watch_id, target.watch_id = target.watch_id, 0
        if self._claims.pop(watch_id, None) is not None and self._stream is not None:
            request = pb.WatchCancelRequest(watch_id=watch_id)
            self._stream.send(pb.WatchRequest(cancel_request=request))

    def _reopen(self) -> None:
        with self._mutex:
            self._reopening = False
            if self._targets and (self._stream is not None or self._open()):
                self._watch_all()

    def _put_off(self) -> None:
        if not self._reopening and not self._closed:
            self._reopening = True
            self._clerk.at(now() + self._pause, self._reopen)
        self._pause = min(max(0.05, 2 * self._pause), LONGEST_PAUSE)

    # What the driver calls, in a thread of its own.

    def _heard(self, turn: object, reply: pb.WatchResponse) -> None:
        if reply.canceled and reply.watch_id < 0:  # it was never made, and which one it was is not said
            self.restart(turn, BackendError(f"etcd refuses a watch: {reply.cancel_reason}"))
            return
        with self._mutex:
            claim_id = self._claims.get(reply.watch_id) if turn is self._turn else None
            target = self._targets.get(claim_id) if claim_id is not None else None
            if claim_id is None or target is None:  # of one that has been cancelled
                return
            if reply.canceled:
                self._refused(reply, target)
            elif reply.created:
                self._pause = 0.0
                if _began_anew(reply, target):
                    self._clerk.at(now() + BEHIND, partial(self._call, claim_id))
                    return
                if reply.header.revision < target.revision:  # nothing was written since
                    return
                if not target.is_next:
                    self._doubtful.append(claim_id)
                    if len(self._doubtful) == 1:
                        self._on_doubt()
                    return
            elif not any(event.type == pb.Event.DELETE for event in reply.events):
                return
        if reply.canceled:
            self.wake([claim_id])
        else:
            self._call(claim_id)

    def _call(self, claim_id: str) -> None:
        self._on_gone(claim_id)
        self.wake([claim_id])

    def _refused(self, reply: pb.WatchResponse, target: _Target) -> None:
        """Compacted: asking again finds a newer revision. Else it may be refused again, which is not to be hurried."""
        del self._claims[reply.watch_id]
        target.watch_id = 0
        if reply.compact_revision:
            return
        log.info("etcd does not go on with a watch: %s", reply.cancel_reason)
        stream, self._stream, self._turn = self._stream, None, object()
        self._lost()
        if stream is not None:
            stream.close()

    def _lost(self) -> None:
        self._claims.clear()
        for target in self._targets.values():
            target.watch_id = 0
        self._put_off()

    def _broke(self, turn: object, error: BackendError | None) -> None:
        with self._mutex:
            if turn is not self._turn:
                return
            log.debug("the stream of watches ended: %s", error)
            self._stream, self._turn = None, object()
            waiting = list(self._targets)
            self._lost()
        self.wake(waiting)


def _began_anew(reply: pb.WatchResponse, target: _Target) -> bool:
    """The store came back empty and counts from one: what was seen is of no use any more. Or this member is behind, and
    asking again does no harm, if it is not hurried."""
    return reply.header.revision < target.revision - 1


class _Watch:
    __slots__ = ("_claim_id", "_target", "_watches")

    def __init__(self, watches: Watches, claim_id: str, target: _Target) -> None:
        self._watches = watches
        self._claim_id = claim_id
        self._target = target

    def close(self) -> None:
        """Ends it."""
        self._watches.end(self._claim_id, self._target)
