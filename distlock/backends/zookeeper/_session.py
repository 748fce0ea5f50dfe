"""The sessions under which nodes stand, and what is asked by way of them.

A session has a length, which is agreed on when it is made, and a connection of its own. So there are few: one for all
ttls from ``session_timeout`` on, and one for each of a handful of shorter lengths, each no longer than the ttl.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from kazoo.exceptions import AuthFailedError, NoNodeError, SessionExpiredError
from kazoo.protocol.states import KazooState

from .._clerk import Clerk
from ..base import BackendError, BackendUnavailable, Unsupported, now, seconds_left
from ._client import Handle, Link, Watcher, batches, check
from ._errors import is_answer, mapped
from ._life import TOLD, Life
from ._url import Place

__all__ = ("Errand", "Session", "Sessions", "Watched")

T = TypeVar("T")
Errand = Generator[Sequence[Any], list[Any], T]
"""What is asked step by step: yields requests, and gets their answers, or a `BackendError`."""

LENGTHS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0)
"""Seconds, of the sessions for shorter ttls. None is below a second, which is counted as one."""


def mute_after(timeout: float) -> float:
    """Seconds without an answer through the leader after which another member is looked for."""
    return min(max(timeout / 6, 0.5), 2.0)


class Watched(Protocol):
    """The nodes for which others wait. Thread-safe, and never blocks."""

    def paths(self, session: Session) -> list[str]:
        """By those of that session."""
        raise NotImplementedError

    def gone(self, session: Session, path: str) -> None:
        """One of them is not there any more."""


class Session:
    """One client, whose session is replaced when the server has ended it. Thread-safe."""

    def __init__(
        self,
        place: Place,
        length: float,
        clerk: Clerk,
        on_change: Callable[[Session, bool], None],
        watched: Watched,
    ) -> None:
        self.length = length
        self.address = place.address
        self.life: Life | None = None
        self.waiters: set[str] = set()
        """The claims that wait under it: while there are any it is proven here, else by the core's watchdog."""
        self._hosts = len(place.hosts)
        self._clerk = clerk
        self._on_change = on_change
        self._watched = watched
        self._looked_at = 0.0
        """When it was last looked, and answered, for what is waited for."""
        self._mutex = threading.RLock()  # see `Clerk`
        self._changed = threading.Condition(self._mutex)
        self._up = False
        self._down_since = 0.0
        self._begun = self._started = False
        self._tended = False
        self._failures = 0
        self._error = ""
        self._refused = False
        self._place = place
        self._link = Link(place, length, self)

    # What kazoo tells, in the thread of the connection.

    def connected(self, session_id: int, timeout: float, since: float) -> None:
        with self._mutex:
            before, life = self.life, self.life
            if life is None or life.id != session_id or life.ended:
                life = self.life = Life(session_id, timeout)
            life.connected(since)
            self._up, self._failures, self._error = True, 0, ""
            self._changed.notify_all()
        if before is not None:
            self._clerk.soon(partial(self._on_change, self, life is not before))

    def sent(self, at: float) -> None:
        life = self.life
        if life is not None and self._up:
            life.sent(at)

    def failed(self, error: BaseException) -> None:
        if isinstance(error, SessionExpiredError):  # a server has said so, and the next session is about to be made
            return
        with self._mutex:
            self._failures += 1
            self._error = str(error) or type(error).__name__  # not itself, whose traceback holds on to a socket
            self._refused = isinstance(error, AuthFailedError)
            self._changed.notify_all()

    def lost(self, state: str) -> None:
        life = self.life
        with self._mutex:
            if self._up:
                self._up, self._down_since = False, now()
            if state == KazooState.LOST and life is not None:
                life.ended = True
        if state == KazooState.LOST:
            self._clerk.soon(partial(self._on_change, self, True))
        elif life is not None:
            self._clerk.at(now() + life.timeout, self._tell_outage)

    @property
    def is_over(self) -> bool:
        life = self.life
        return not (self._up or life is None or life.ended) and now() - self._down_since > 2 * life.timeout

    def _tell_outage(self) -> None:
        """Who waits is to learn of it, by asking in vain."""
        if not self._up:
            self._on_change(self, True)

    # What it is asked.

    def alive(self, deadline: float, key: str | None) -> Life:
        """The session, connected; it is made if need be."""
        life = self.life
        if self._up and life is not None and not life.ended:
            return life
        with self._mutex:
            if not self._started:
                self._begun = True
                self._link.start()
                self._started = True  # else, after Ctrl-C, once more
            elif self._link.stopped:
                self._begin_anew()
            # All members are tried, once each, after what may have been under way.
            enough = self._failures + self._hosts + (1 if self._failures else 0)
            while not (self._up and self.life is not None and not self.life.ended):
                self._check_failed(enough, key)
                left = seconds_left(deadline)
                if not left:
                    raise self._unreachable("no server has answered in time", key)
                self._changed.wait(left)
            return self.life

    def _begin_anew(self) -> None:
        """kazoo's thread has ended: by a login that failed, which a member that died may look like, or by a bug."""
        threading.Thread(target=self._link.close, name="distlock-zookeeper-close", daemon=True).start()
        self._refused, self._error = False, ""
        self._link = Link(self._place, self.length, self)
        self._link.start()

    def _check_failed(self, enough: int, key: str | None) -> None:
        if self._refused:  # kazoo does not go on after it
            raise mapped(AuthFailedError(), self.address, key=key)
        if self._failures >= enough and not self._up:
            why = "no server can be reached; is it running, and is the address right?"
            raise self._unreachable(f"{why} ({self._error})", key)

    def _unreachable(self, why: str, key: str | None) -> BackendUnavailable:
        return BackendUnavailable(f"{why} [{self.address}]", key=key, backend=self.address)

    def call(self, life: Life, requests: Sequence[Any], deadline: float, key: str | None = None) -> list[Any]:
        """The answers, of which the server's errors are exceptions; `BackendUnavailable` if one is missing."""
        return self.answers(life, self._link.send(requests, life.id), deadline, key)

    def ask(self, life: Life, request: Any) -> Handle:
        """Sends it, from any thread; what comes of it is for `answers`."""
        return self._link.send([request], life.id)[0]

    def unwatch(self, life: Life, path: str, watcher: Watcher) -> None:
        """See `Link.unwatch`."""
        self._link.unwatch(path, watcher, life.id)

    def carry_out(self, life: Life, errand: Errand[T], deadline: float, key: str | None = None) -> T:
        """To its end."""
        step: Callable[[], Sequence[Any]] = partial(next, errand)
        while True:
            try:
                requests = step()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            try:
                step = partial(errand.send, self.call(life, requests, deadline, key))
            except BaseException as error:  # noqa: BLE001 - the errand raises it
                step = partial(errand.throw, error)

    def start(self, life: Life, errand: Errand[None]) -> None:
        """Has it carried out without a thread that waits for the answers: it may not block. An error ends it."""
        self._go_on(life, errand, lambda: next(errand))

    def _go_on(self, life: Life, errand: Errand[None], step: Callable[[], Sequence[Any]]) -> None:
        try:
            handles = self._link.send(step(), life.id)
        except (StopIteration, BackendError):
            return

        def answered(_: object) -> None:
            outcomes = [self._outcome(life, handle) for handle in handles]
            failed = next((outcome for outcome in outcomes if not is_answer(outcome)), None)
            if failed is None:
                self._go_on(life, errand, lambda: errand.send(outcomes))
            else:
                self._go_on(life, errand, lambda: errand.throw(mapped(failed, self.address)))

        self._see_to(life, handles[0])
        handles[-1].result.rawlink(answered)  # in their order: then all are there

    def answers(self, life: Life, handles: Sequence[Handle], deadline: float, key: str | None = None) -> list[Any]:
        """What has come of requests, as by `call`."""
        for handle in handles:
            if not handle.result.wait(seconds_left(deadline)):
                self._unanswered(life, handle)
                why = "the server did not answer in time"
                raise BackendUnavailable(f"{why} [{self.address}]", key=key, backend=self.address, sent=True)
        outcomes = [self._outcome(life, handle) for handle in handles]
        for outcome in outcomes:
            if not is_answer(outcome):
                raise mapped(outcome, self.address, key=key) from outcome
        return outcomes

    def _outcome(self, life: Life, handle: Handle) -> Any:
        result = handle.result
        outcome = result.value if result.successful() else result.exception
        if handle.by_majority and is_answer(outcome):
            life.answered(handle.at)
        return outcome

    def _unanswered(self, life: Life, handle: Handle) -> None:
        """A member that cannot reach the leader answers pings all the same: kazoo would stay with it."""
        if handle.by_leader and now() - handle.at >= mute_after(life.timeout):
            self._link.drop()

    def prove(self, life: Life, deadline: float, key: str | None = None) -> None:
        """Asks the leader, and a majority with it."""
        self.call(life, [check(["/"])], deadline, key)

    def tend(self) -> None:
        """Has it proven for as long as someone waits under it, by a look at what is waited for."""
        with self._mutex:
            if self._tended or self.life is None:
                return
            self._tended = True
        self._clerk.at(now() + self.life.timeout / 3, self._tend)

    def _tend(self) -> None:
        with self._mutex:
            life = self.life
            if not self.waiters or life is None:
                self._tended = False
                return
        if self._up and now() - self._looked_at >= TOLD * life.timeout:
            for paths in [*batches(self._watched.paths(self))] or [["/"]]:
                self.start(life, self._look(paths))
        self._clerk.at(max(self._looked_at, now() - life.timeout / 6) + life.timeout / 3, self._tend)

    def _look(self, paths: list[str]) -> Errand[None]:
        """A push may get lost: what was not told is found here, within a third of the session."""
        asked_at = now()
        while paths:
            (outcomes,) = yield [check(paths)]
            if isinstance(outcomes, Exception):
                raise mapped(outcomes, self.address)
            self._looked_at = max(self._looked_at, asked_at)
            told = (number for number, outcome in enumerate(outcomes) if isinstance(outcome, NoNodeError))
            missing = next(told, None)
            if missing is None:
                return
            self._watched.gone(self, paths[missing])
            paths = paths[missing + 1 :]  # of those nothing was told

    def _see_to(self, life: Life, handle: Handle) -> None:
        """That it is answered, if it goes to the leader."""
        if handle.by_leader:
            self._clerk.at(now() + mute_after(life.timeout) + 0.01, partial(self._drop_mute, life, handle))

    def _drop_mute(self, life: Life, handle: Handle) -> None:
        if not handle.result.ready() and self._up:
            self._unanswered(life, handle)

    # The end.

    def close(self, deadline: float) -> None:
        """Ends the session, by the deadline or in the background."""
        if not self._begun:
            return
        closing = threading.Thread(target=self._link.close, name="distlock-zookeeper-close", daemon=True)
        closing.start()
        closing.join(seconds_left(deadline))

    def abandon(self) -> None:
        self._link.abandon()


class Sessions:
    """By length. ``on_change`` is told, by the clerk, that one was connected anew, and whether what stood under it
    is gone."""

    def __init__(
        self, place: Place, clerk: Clerk, on_change: Callable[[Session, bool], None], watched: Watched
    ) -> None:
        self._place = place
        self._clerk = clerk
        self._on_change = on_change
        self._watched = watched
        self._mutex = threading.RLock()
        self._sessions: dict[float, Session] = {}

    def get(self, ttl: float) -> Session:
        """That for locks of ``ttl``."""
        length = self._length(ttl)
        session = self._sessions.get(length)
        if session is None:
            with self._mutex:
                session = self._sessions.get(length)
                if session is None:
                    session = Session(self._place, length, self._clerk, self._on_change, self._watched)
                    self._sessions[length] = session
        return session

    def any(self) -> Session:
        """For what is no lock's."""
        for session in list(self._sessions.values()):
            return session
        return self.get(self._place.session_timeout)

    def _length(self, ttl: float) -> float:
        longest = self._place.session_timeout
        if ttl >= longest:
            return longest
        return max((length for length in LENGTHS if length <= ttl and length < longest), default=LENGTHS[0])

    def check(self, session: Session, life: Life, ttl: float, key: str) -> None:
        """`Unsupported` if the server insists on another length than is asked for."""
        if life.timeout > max(ttl, LENGTHS[0]) + 0.001:
            why = (
                f"a ttl of {ttl:g} s is too short: this server ends no session before {life.timeout:g} s"
                " (its minSessionTimeout, by default two of its ticks)"
            )
        elif self._place.insists and life.timeout < session.length - 0.001:
            why = (
                f"session_timeout={session.length:g} is too long: this server ends each session after"
                f" {life.timeout:g} s at the latest (its maxSessionTimeout, by default twenty of its ticks)"
            )
        else:
            return
        raise Unsupported(f"{why} [{self._place.address}]", key=key, backend=self._place.address)

    def close(self, deadline: float) -> None:
        threads = [
            threading.Thread(target=session.close, args=(deadline,), daemon=True) for session in self._sessions.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds_left(deadline))

    def after_fork(self) -> None:
        """In a forked child: the sessions are the parent's."""
        before, self._sessions = self._sessions, {}
        self._mutex = threading.RLock()
        for session in before.values():
            session.abandon()
