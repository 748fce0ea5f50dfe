"""One store, its connections and its watchdog; and the default one behind the bare `lock`."""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from . import _who
from ._clock import now
from ._core.acquire import Line, acquire, acquire_sync, timed_out
from ._core.actor import current_actor, current_loop
from ._core.adapt import Immediate
from ._core.drive import drive
from ._core.hold import Hold
from ._core.runtime import Runtime, SyncRuntime
from ._core.watchdog import Watchdog
from ._errors import Deadlock, DistLockError, Unsupported
from ._lease import AsyncLease, BaseLease, Lease, blocks
from ._lock import F, Lock, locked_by
from ._once.decorator import idempotent_by
from ._once.recipe import Once, blocks as works
from ._once.records import JSON, Serializer
from ._once.results import Results
from ._once.terms import LARGEST, Terms
from ._open import open_backend
from ._options import Options, WhenLost, check_key
from ._types import Busy, Claim, Done, Grant, Guarantees, Inspection, LeaseState
from .backends.base import AsyncBackend, SyncBackend

__all__ = ("Manager", "connect")

log = logging.getLogger("distlock")

L = TypeVar("L", Lease, AsyncLease)

_managers: weakref.WeakSet[Manager] = weakref.WeakSet()
_inherited: list[object] = []


class Manager:
    """Locks of one store. Made by `connect`; thread-safe; shared by sync code and any number of event loops.

    ``with`` and ``async with`` close it at the end.
    """

    def __init__(self, backend: SyncBackend, *, op_timeout: float = 5.0) -> None:
        self._backend = backend
        self._op_timeout = op_timeout
        self._closed = False
        self._opening = threading.Lock()
        self._results: Manager | None = None
        self._watchdog = Watchdog(backend, op_timeout)
        backend.on_loss = self._watchdog.hurry
        self._line = self._line_over(Immediate(backend), SyncRuntime())
        self._lines: weakref.WeakKeyDictionary[object, Line] = weakref.WeakKeyDictionary()
        self._finalizer = weakref.finalize(self, _drop, self._watchdog, backend)
        self._finalizer.atexit = False  # at exit daemon threads and sockets just end
        _managers.add(self)

    @property
    def guarantees(self) -> Guarantees:
        """What this store promises, and under which faults it does not."""
        return self._backend.guarantees

    @property
    def address(self) -> str:
        """Scheme and place of the store, without secrets."""
        return self._backend.address

    def lock(
        self,
        key: str,
        *,
        ttl: float = 30.0,
        timeout: float | None = None,
        renew: bool = True,
        max_hold: float | None = None,
        reentrant: bool = False,
        owner: str | None = None,
        when_lost: WhenLost | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Lock:
        """The recipe of a lock named ``key``. See `distlock.lock` for the options."""
        options = Options(ttl, timeout, renew, max_hold, reentrant, owner, when_lost, metadata)
        self._check_supported(key, options)
        return Lock(lambda: self, key, options)

    def locked(
        self,
        template: str,
        *,
        ttl: float = 30.0,
        timeout: float | None = None,
        renew: bool = True,
        max_hold: float | None = None,
        reentrant: bool = False,
        owner: str | None = None,
        when_lost: WhenLost | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Callable[[F], F]:
        """A decorator: each call holds the lock whose key is ``template`` filled in with its arguments."""
        options = Options(ttl, timeout, renew, max_hold, reentrant, owner, when_lost, metadata)
        self._check_supported(template, options)
        return locked_by(lambda key: Lock(lambda: self, key, options), template)

    def once(
        self,
        key: str,
        *,
        ttl: float,
        timeout: float | None = None,
        lease: float = 30.0,
        fingerprint: Any = None,
        serializer: Serializer = JSON,
        limit: int = LARGEST,
        store_errors: type[Exception] | tuple[type[Exception], ...] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> Once:
        """The recipe of work that is to be done once. See `distlock.idempotency.once` for the options."""
        terms = Terms(ttl, timeout, lease, fingerprint, serializer, limit, store_errors, metadata)  # type: ignore[arg-type]
        self.results_manager()  # says now if there is none
        return Once(self.results_manager, key, terms)

    def idempotent(
        self,
        template: str | None = None,
        *,
        ttl: float,
        timeout: float | None = None,
        lease: float = 30.0,
        fingerprint: Callable[..., Any] | None = None,
        serializer: Serializer = JSON,
        limit: int = LARGEST,
        store_errors: type[Exception] | tuple[type[Exception], ...] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> Callable[[F], F]:
        """A decorator: calls with the same key are done once. See `distlock.idempotency.idempotent`."""
        terms = Terms(ttl, timeout, lease, None, serializer, limit, store_errors, metadata)  # type: ignore[arg-type]
        self.results_manager()
        return idempotent_by(lambda key, about: Once(self.results_manager, key, about), template, terms, fingerprint)

    @property
    def results(self) -> Results:
        """What is known of work that is done once: to look at, and to forget. `Unsupported` where none is kept."""
        manager = self.results_manager()
        return Results(lambda: manager._line, manager._async_line)

    def results_manager(self) -> Manager:
        """The manager of the claims on such work, which has the store beside this one to itself."""
        with self._opening:
            if self._closed:
                raise self._closed_error(None)
            if self._results is None:
                self._results = Manager(self._backend.results(), op_timeout=self._op_timeout)
            return self._results

    def inspect(self, key: str) -> Inspection:
        """Who holds ``key`` and who waits for it, in order."""
        return drive(self._line.backend.inspect(check_key(key), now() + self._op_timeout))

    async def inspect_async(self, key: str) -> Inspection:
        """`inspect` for asyncio and trio."""
        return await self._async_line().backend.inspect(check_key(key), now() + self._op_timeout)

    def list(self, prefix: str = "") -> Sequence[Inspection]:
        """The locks in use whose names start with ``prefix``, in no order."""
        return drive(self._line.backend.list(prefix, now() + self._op_timeout))

    async def list_async(self, prefix: str = "") -> Sequence[Inspection]:
        """`list` for asyncio and trio."""
        return await self._async_line().backend.list(prefix, now() + self._op_timeout)

    def force_release(self, key: str, *, token: int) -> bool:
        """Ends the lease of ``key`` that has this ``token``, whoever holds it; never a newer one. Logged.

        For people who know that its holder is out of order: until the holder learns of the loss, at its next
        renewal (a third of its ttl; if it does not renew, at the end of that), it goes on as if it held the lock.
        Only for files nobody gets in before: there the holder itself gives the lock up then.

        False: there is no such lease any more. Take the token from `inspect`, after a look at who it is.
        """
        found = drive(self._line.backend.revoke(check_key(key), _check_token(token), now() + self._op_timeout))
        return self._revoked(key, token, found)

    async def force_release_async(self, key: str, *, token: int) -> bool:
        """`force_release` for asyncio and trio."""
        backend = self._async_line().backend
        found = await backend.revoke(check_key(key), _check_token(token), now() + self._op_timeout)
        return self._revoked(key, token, found)

    def _revoked(self, key: str, token: int, found: bool) -> bool:
        what = "ended by force" if found else "to be ended by force, but is not there any more"
        log.warning("the lease of %r (token %d) was %s [%s]", key, token, what, self.address)
        return found

    # What `Lock` and `Once` call.

    def acquire(self, key: str, options: Options) -> Lease:
        """Waits as long as ``options.timeout`` says."""
        outcome = self.attempt(key, options)
        if isinstance(outcome, Lease):
            return outcome
        raise _refused(outcome, self.address)

    def try_acquire(self, key: str, options: Options) -> Lease | None:
        """One attempt."""
        outcome = self._acquire(key, options, wait=False)
        return outcome if isinstance(outcome, Lease) else None

    def attempt(self, key: str, options: Options) -> Lease | Busy | Done:
        """What came of waiting as long as ``options.timeout`` says; `AcquireTimeout` if that was for something."""
        return self._acquire(key, options, wait=options.timeout != 0)

    async def acquire_async(self, key: str, options: Options) -> AsyncLease:
        """`acquire` in an event loop."""
        outcome = await self.attempt_async(key, options)
        if isinstance(outcome, AsyncLease):
            return outcome
        raise _refused(outcome, self.address)

    async def try_acquire_async(self, key: str, options: Options) -> AsyncLease | None:
        """`try_acquire` in an event loop."""
        outcome = await self._acquire_async(key, options, wait=False)
        return outcome if isinstance(outcome, AsyncLease) else None

    async def attempt_async(self, key: str, options: Options) -> AsyncLease | Busy | Done:
        """`attempt` in an event loop."""
        return await self._acquire_async(key, options, wait=options.timeout != 0)

    def _acquire(self, key: str, options: Options, *, wait: bool) -> Lease | Busy | Done:
        actor = current_actor()
        when_lost = options.when_lost or "raise"
        hold = self._re_entered(key, options, actor, wait)
        if hold is not None:
            return Lease(hold, self._line, when_lost, self)
        claim = self._claim(key, options, actor, wait)
        try:
            outcome = acquire_sync(self._line, self._backend, claim, _deadline(options))
            if not isinstance(outcome, Grant):
                return outcome
            return Lease(self._kept(outcome, options, actor), self._line, when_lost, self)
        except (DistLockError, ValueError):
            raise
        except BaseException:  # Ctrl-C, or what another signal's handler raised: perhaps between the grant and here
            self._watchdog.give_up(claim)
            raise

    async def _acquire_async(self, key: str, options: Options, *, wait: bool) -> AsyncLease | Busy | Done:
        actor = current_actor()
        when_lost = options.when_lost or "cancel"
        line = self._async_line()
        hold = self._re_entered(key, options, actor, wait)
        if hold is not None:
            return AsyncLease(hold, line, when_lost, self)
        outcome = await acquire(line, self._claim(key, options, actor, wait), _deadline(options))
        if not isinstance(outcome, Grant):
            return outcome
        return AsyncLease(self._kept(outcome, options, actor), line, when_lost, self)

    def _claim(self, key: str, options: Options, actor: object, wait: bool) -> Claim:
        if self._closed:
            raise self._closed_error(key)
        about = _who.introduce(actor, options.metadata)
        by_owner = options.reentrant and options.owner is not None
        renewed = options.renew and options.max_hold is None
        return Claim(_who.new_claim_id(), key, options.ttl, wait, options.owner, by_owner, about, renewed)

    def _closed_error(self, key: str | None) -> DistLockError:
        return DistLockError(f"this manager was closed [{self.address}]", key=key, backend=self.address)

    def _kept(self, grant: Grant, options: Options, actor: object) -> Hold:
        hold = Hold(grant, renew=options.renew, max_hold=options.max_hold, actor=actor)
        self._watchdog.keep(hold, reentrant=options.reentrant and options.owner is None)
        if self._closed:  # while we waited: nobody is there to renew it
            hold.lose("its manager was closed")
            # An event loop may be waiting for this; and the watchdog has ended.
            threading.Thread(target=self._return, args=(grant,), name="distlock-return", daemon=True).start()
            raise self._closed_error(grant.claim.key)
        return hold

    def _return(self, grant: Grant) -> None:
        with suppress(DistLockError):
            self._backend.withdraw(grant.claim, now() + self._op_timeout, in_flight=grant.in_flight)

    def _re_entered(self, key: str, options: Options, actor: object, wait: bool) -> Hold | None:
        """The hold of the same thread or task, if the lock may be entered again."""
        if options.reentrant:
            if options.owner is not None:
                self._check_supported(key, options)
                return None
            hold = self._watchdog.reentrant(key)
            if hold is not None and hold.actor is actor and hold.enter_again():
                return hold
        if wait and options.timeout is None:
            self._check_deadlock(key, options, actor)
        return None

    def _check_deadlock(self, key: str, options: Options, actor: object) -> None:
        for lease in blocks.of(actor):
            if lease.key == key and self._held_for_ever(lease):
                raise Deadlock(
                    f"this {'thread' if isinstance(actor, threading.Thread) else 'task'} holds {key!r} in an open block"
                    " and would wait for itself for ever; use reentrant=True if entering it again is meant"
                    f" [{self.address}]",
                    key=key,
                    backend=self.address,
                )

    def _held_for_ever(self, lease: BaseLease) -> bool:
        hold = lease._hold
        renewed = hold.renew and hold.ends_at == math.inf and not hold.giving_up
        return lease._keeper is self and renewed and hold.state in (LeaseState.HELD, LeaseState.UNKNOWN)

    def _check_supported(self, key: str, options: Options) -> None:
        if options.reentrant and options.owner is not None and not self.guarantees.owner_reentrant:
            raise Unsupported(
                f"{self.guarantees.backend} cannot re-enter by owner; leave owner out to re-enter by thread or task",
                key=key,
                backend=self.address,
            )

    def _async_line(self) -> Line:
        loop = current_loop()
        line = self._lines.get(loop)
        if line is None:
            from ._core.loops import AsyncRuntime, Threaded

            backend = self._backend
            asynchronous: AsyncBackend
            if backend.never_blocks:
                asynchronous = Immediate(backend)
            else:
                asynchronous = backend.native() or Threaded(backend, self._watchdog.give_up)
            line = self._lines[loop] = self._line_over(asynchronous, AsyncRuntime(shields=not asynchronous.shields))
        return line

    def _line_over(self, backend: AsyncBackend, runtime: Runtime) -> Line:
        return Line(backend, runtime, self._op_timeout, self._backend.address, self._watchdog.give_up)

    # The end.

    def close(self) -> None:
        """Ends threads and connections. Leases that are still open are lost, and given back to the store.

        Returns within about ``op_timeout``; calling it again does nothing.
        """
        if self._closed:
            return
        with self._opening:
            self._closed = True
        self._finalizer.detach()
        if self._results is not None:
            self._results.close()
        for hold in self._watchdog.holds:
            if not hold.saving:  # there is one last try for that
                hold.lose("its manager was closed")
        self._watchdog.close()
        self._backend.close()

    async def aclose(self) -> None:
        """`close` for asyncio and trio."""
        from ._core.loops import CancelScope, run_sync

        line = self._lines.pop(current_loop(), None)
        with CancelScope(shield=True):  # as long as `close` may take: what is cancelled must let its locks go too
            if self._results is not None:
                await self._results.aclose()
            await run_sync(self.close)
            if line is not None:
                await line.backend.aclose()

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Manager:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<distlock.Manager {self.address}{' closed' if self._closed else ''}>"

    def _after_fork(self) -> None:
        self._opening = threading.Lock()
        self._watchdog.after_fork()
        self._backend.after_fork()
        # Kept: transports that are collected unregister their sockets, and an epoll instance is the parent's too.
        _inherited.append(dict(self._lines))
        self._lines = weakref.WeakKeyDictionary()


def _refused(outcome: Busy | Done, address: str) -> DistLockError:
    assert isinstance(outcome, Busy), "only a store of results says that it is done"
    return timed_out(outcome, 0.0, address)


def _check_token(token: int) -> int:
    if isinstance(token, bool) or not isinstance(token, int) or not 0 < token < 2**63:
        raise ValueError(f"a token is a positive integer, not {token!r}")
    return token


def _deadline(options: Options) -> float:
    return math.inf if options.timeout is None else now() + options.timeout


def _drop(watchdog: Watchdog, backend: SyncBackend) -> None:
    """For a manager that nobody closed."""
    watchdog.close(join=False)
    backend.close()


def connect(target: Any, *, namespace: str | None = None, op_timeout: float = 5.0) -> Manager:
    """A manager of the locks of one store.

    ``target`` is a URL (``redis://…``, ``file:///dir``, ``memory://``…), a ready client of redis-py, or a backend.
    ``namespace`` (default: ``DISTLOCK_NAMESPACE``, else ``default``) keeps the locks of different services apart.
    ``op_timeout`` bounds every single request, in seconds. Nothing is sent before the first lock is asked for.

    Raises `ConfigurationError` for what cannot work, naming the package to install if one is missing.
    """
    return Manager(open_backend(target, namespace, op_timeout), op_timeout=op_timeout)


def _after_fork_in_child() -> None:
    blocks.after_fork()
    works.after_fork()
    Hold.after_fork()
    _who.after_fork()
    for manager in list(_managers):
        manager._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
