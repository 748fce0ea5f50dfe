"""What acquiring a lock gives: the proof of holding it, and the way to give it up."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._core import release as _release
from ._core.acquire import Line
from ._core.actor import current_actor, poster
from ._core.blocks import Blocks
from ._core.drive import drive
from ._core.hold import Hold
from ._errors import BackendUnavailable, ConfigurationError, LockLost, NotHeld, add_note
from ._options import WhenLost, check_at_least, check_ttl
from ._types import LeaseState

if TYPE_CHECKING:
    from anyio import CancelScope

    from ._manager import Manager

__all__ = ("AsyncLease", "Lease", "current")

log = logging.getLogger("distlock")

blocks: Blocks[BaseLease] = Blocks()


def current() -> Lease | AsyncLease:
    """The lease of the innermost open block of this thread or task; `NotHeld` if there is none."""
    lease = blocks.innermost()
    if lease is None:
        raise NotHeld("no lock block is open in this thread or task")
    return lease  # type: ignore[return-value]


class BaseLease:
    """What the two colours share. All of it is thread-safe and none of it asks a server.

    A lock that was handed over may be entered before its confirmation is answered: then `remaining`, and an
    `ensure_held` that wants more than what is proven without it, wait for that answer as long as that is proven, which
    is a second at most.
    """

    __slots__ = ("__weakref__", "_done", "_hold", "_keeper", "_line", "_open", "_when_lost", "entered_by")

    def __init__(self, hold: Hold, line: Line, when_lost: WhenLost, keeper: Manager) -> None:
        self._done = False
        self._open: object = None
        """The thread or task in which its block is open."""
        self._hold = hold
        self._line = line
        self._when_lost = when_lost
        self.entered_by: object = None
        """The recipe whose block this is: acquired here and now, to be entered."""
        self._keeper = keeper  # which is not closed by the garbage collector while a lease lives

    @property
    def key(self) -> str:
        """The lock's name."""
        return self._hold.grant.claim.key

    @property
    def owner(self) -> str:
        """The ``owner`` given to the lock, else a name for this one grant."""
        claim = self._hold.grant.claim
        return claim.owner or claim.id

    @property
    def token(self) -> int:
        """The fencing token: above that of every earlier grant of this key."""
        return self._hold.grant.token

    @property
    def backend(self) -> str:
        """Scheme and place of the store, without secrets."""
        return self._line.address

    @property
    def acquired_at(self) -> float:
        """When, on the monotonic clock of this process (seconds)."""
        return self._hold.acquired_at

    @property
    def state(self) -> LeaseState:
        """What is known right now; LOST by the clock even if no thread had time to say so."""
        return LeaseState.RELEASED if self._done else self._hold.state

    def remaining(self) -> float:
        """Seconds for which holding is proven, by the local monotonic clock."""
        return 0.0 if self._done else self._hold.remaining()

    def ensure_held(self, at_least: float = 0.0) -> int:
        """The token, if more than ``at_least`` seconds are proven.

        Raises `LockLost` otherwise and `NotHeld` after release. Asks no server (but see above), so it is cheap
        enough to stand before every write.
        """
        check_at_least(at_least)
        if self._done:
            raise NotHeld(f"the lease of {self.key!r} was released", key=self.key, backend=self.backend)
        return _release.ensure_held(self._hold, at_least, self._line.address)

    @property
    def descriptors(self) -> Sequence[int]:
        """Open files that keep the lock for as long as any process has them open: file locks have one, others none.

        For ``pass_fds`` of `subprocess`, so that a child that works under the lock keeps others out even if this
        process dies. `release` ends that, too.
        """
        return self._keeper._backend.descriptors(self._hold.grant)

    def guard(self) -> Any:
        """What a transaction of your own in the same store compares, to be carried out only while the lock is held.

        On etcd key and create revision (`distlock.backends.etcd.Guard`), on ZooKeeper path and version
        (`distlock.backends.zookeeper.Guard`). Raises `Unsupported` on stores that have no
        such transactions, where `token` is for what you write to; and else what `ensure_held` raises.
        """
        self.ensure_held()
        return self._keeper._backend.guard(self._hold.grant)

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Calls ``callback`` once, in a thread of its own, as soon as loss is certain: before the store lets
        anyone else in. At once if that was so already; never after a release."""

        def run() -> None:
            threading.Thread(target=callback, name="distlock-on-lost", daemon=True).start()

        self._hold.on_lost(run)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r} token={self.token} {self.state.value} [{self.backend}]>"

    def __del__(self) -> None:
        hold: Hold | None = getattr(self, "_hold", None)
        if hold is None or self._done or hold.ended or hold.giving_up:
            return
        if hold.leave():
            hold.let_lapse()  # no I/O belongs here: the watchdog gives it up at the end of its time
            warnings.warn(
                f"the lease of {self.key!r} was dropped without release; it is held until its ttl has passed",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )

    def _let_go(self) -> None:
        """The hold is completed, or someone else sees to that: leaving the block finds nothing to give up."""
        self._done = True

    def _last_one_out(self) -> bool:
        """Marks this lease released; True if it is the one that has to give up the hold."""
        if self._done:
            return False
        hold = self._hold
        if (hold.count > 1 and hold.state is LeaseState.LOST) or hold.leave():
            return True
        self._done = True
        return False

    def _enter(self) -> None:
        if self._done or not self._hold.remaining(0.0):
            self.ensure_held()
        if self._open is not None:
            raise RuntimeError(f"the block of this lease of {self.key!r} is open already; a lock may be re-entered")
        self._open = self._hold.actor if self.entered_by is not None else current_actor()
        blocks.push(self, self._open)

    def _exit(self) -> None:
        blocks.remove(self, self._open)
        self._open = None

    def _rescue(self) -> None:
        """The block was torn down by what a signal handler raised, before the release had begun: it begins now."""
        if not (self._done or self._hold.giving_up or self._hold.ended):
            self._exit()
            if self._last_one_out():
                self._hold.giving_up = True
                self._keeper._watchdog.forget(self._hold)
                grant = self._hold.grant
                self._keeper._watchdog.give_up(grant.claim, in_flight=grant.in_flight, done=self._hold.finish)

    def _settle(self, body: BaseException | None, problem: Exception | None) -> None:
        """Leaving a block: which error comes out of it. ``problem`` is what releasing raised."""
        if problem is None:
            return
        if body is not None:
            add_note(body, f"distlock: {problem}")
        elif isinstance(problem, BackendUnavailable):
            log.warning("left the block of %r; its release goes on in the background: %s", self.key, problem)
        elif isinstance(problem, LockLost) and self._when_lost == "warn":
            log.warning("%s", problem)
        else:
            raise problem


class Lease(BaseLease):
    """A held lock, for sync code. A context manager that releases at its end. Thread-safe: the lease owns,
    not the thread."""

    __slots__ = ()

    def release(self) -> None:
        """Gives the lock up.

        A second release of a released lease does nothing; of a lost one, raises `LockLost`. If the store does
        not answer, `BackendUnavailable` comes out and the release goes on in the background until the ttl has
        passed; calling it again is allowed.
        """
        if self._last_one_out():
            keeper = self._keeper
            _release.release_sync(self._line, keeper._backend, self._hold, keeper._watchdog)
            self._done = True

    def extend(self, ttl: float | None = None) -> None:
        """Sets the time that is left to ``ttl`` seconds (default: the lease's length), and the length from now on.

        Never adds, never revives an ended lease (`LockLost`), `Unsupported` where the store cannot.
        """
        drive(
            _release.extend(self._line, self._hold, check_ttl(ttl, self._hold.grant.claim.ttl), self._keeper._watchdog)
        )

    def __enter__(self) -> Lease:
        if self._when_lost == "cancel":
            raise no_cancelling(self.key)
        self._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, body: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._exit()
            self.release()
        except Exception as problem:  # noqa: BLE001 - _settle decides which error comes out
            self._settle(body, problem)
        finally:
            self._rescue()


class AsyncLease(BaseLease):
    """A held lock, for asyncio and trio. An async context manager that releases at its end."""

    __slots__ = ("_cancel", "_scope")

    def __init__(self, hold: Hold, line: Line, when_lost: WhenLost, keeper: Manager) -> None:
        super().__init__(hold, line, when_lost, keeper)
        self._scope: CancelScope | None = None
        self._cancel: Callable[[], object] = _nothing

    async def release(self) -> None:
        """Gives the lock up, even if the task is being cancelled. See `Lease.release`."""
        if self._last_one_out():
            await _release.release(self._line, self._hold, self._keeper._watchdog)
            self._done = True
        self._hold.off_lost(self._cancel)  # this lease's block has nothing to fear any more

    def _let_go(self) -> None:
        super()._let_go()
        self._hold.off_lost(self._cancel)

    async def extend(self, ttl: float | None = None) -> None:
        """Sets the time that is left. See `Lease.extend`."""
        ttl = check_ttl(ttl, self._hold.grant.claim.ttl)
        await _release.extend(self._line, self._hold, ttl, self._keeper._watchdog)

    async def __aenter__(self) -> AsyncLease:
        self._enter()
        if self._when_lost == "cancel":
            from ._core.loops import CancelScope

            self._scope = scope = CancelScope()
            scope.__enter__()
            self._cancel = _soon(poster(), scope.cancel)
            self._hold.on_lost(self._cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, body: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            self._exit()
            return await self._leave(kind, body, trace)
        finally:
            self._rescue()

    async def _leave(
        self, kind: type[BaseException] | None, body: BaseException | None, trace: TracebackType | None
    ) -> bool:
        swallowed, changed = False, None
        try:
            swallowed = self._leave_scope(kind, body, trace)
        except BaseException as error:  # noqa: BLE001 - what is left of a group without our own cancellation
            body = changed = error
        problem: Exception | None = None
        try:
            await self.release()
        except Exception as error:  # noqa: BLE001 - _settle decides which error comes out
            problem = error
        except BaseException:
            if changed is None:
                raise
        if swallowed and body is not None and problem is None:  # the body was cut short, and has to hear of it
            problem = _release.lost(self._hold, self.backend)
        self._settle(None if swallowed else body, problem)
        if changed is not None:
            raise changed
        return swallowed

    def _leave_scope(
        self, kind: type[BaseException] | None, body: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """True if the body was cancelled for the loss of this lease, and for nothing else."""
        scope, self._scope = self._scope, None
        if scope is None:
            return False
        self._hold.off_lost(self._cancel)
        return bool(scope.__exit__(kind, body, trace))


def no_cancelling(key: str) -> ConfigurationError:
    """The error for a block of sync code that asks for what only event loops can do."""
    return ConfigurationError('when_lost="cancel" needs "async with": a thread cannot be cancelled', key=key)


def _nothing() -> None:
    pass


def _soon(post: Callable[[Callable[[], object]], object], call: Callable[[], Any]) -> Callable[[], object]:
    def cancel() -> None:
        with suppress(RuntimeError):  # the loop has ended, and the body with it
            post(call)

    return cancel
