"""Work in an open block: to be done and completed, or done before and replayed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .._clock import now
from .._core import release as _release
from .._core.acquire import Line
from .._core.drive import drive
from .._core.hold import Hold
from .._core.watchdog import Watchdog
from .._errors import BackendError, LockLost, NotHeld, ResultUnavailable, TooLarge, add_note
from .._lease import AsyncLease, BaseLease, Lease
from .._options import check_ttl
from .._types import Waiter
from .records import Operation, Outcome, pack, shown
from .terms import Terms

__all__ = ("AsyncWork", "BaseWork", "Work", "tell")

log = logging.getLogger("distlock.idempotency")


def tell(decision: str, key: str, backend: str, terms: Terms, **details: object) -> None:
    """One log record for each decision. Its attribute ``distlock`` has all of it in parts, the metadata too."""
    if not log.isEnabledFor(logging.INFO):
        return
    known = {name: value for name, value in details.items() if value is not None}
    said = "".join(f" {name}={value}" for name, value in known.items())
    parts = {"decision": decision, "key": key, "backend": backend, **known, "metadata": dict(terms.metadata or {})}
    log.info("%s %r%s [%s]", decision, key, said, backend, extra={"distlock": parts})


L = TypeVar("L", bound=BaseLease)


class BaseWork(Generic[L]):
    """What the two colours share. Of one block, and as thread-safe as that is: its outcome is given once."""

    __slots__ = ("_ending", "_lease", "_operation", "_terms", "backend", "key", "opened")

    def __init__(self, key: str, terms: Terms, backend: str, found: L | Operation) -> None:
        self.key: str = key
        self.backend: str = backend
        """Scheme and place of the store, without secrets."""
        self._terms = terms
        self._ending = False
        """Its outcome was given, whether the store knows it or not."""
        self._lease: L | None = None if isinstance(found, Operation) else found
        self._operation: Operation | None = found if isinstance(found, Operation) else None
        self.opened: tuple[object, object] = (None, None)
        """The recipe whose block this is, and the thread or task it opened in."""

    @property
    def replayed(self) -> bool:
        """The work was done before: take `result`, and leave."""
        return self._lease is None

    @property
    def operation(self) -> Operation | None:
        """Who has done it, and when; None as long as it is not done."""
        return self._operation

    @property
    def result(self) -> Any:
        """What the work has given, once it is done, here or before.

        Raises `ReplayedError` if it failed with an error that was kept, `ResultUnavailable` if its result was not kept,
        and `NotHeld` if it is still to be done.
        """
        if self._operation is None:
            raise NotHeld(f"{self.key!r} is not done yet: do it, and complete() it [{self.backend}]", key=self.key)
        return self._operation.result(self._terms.serializer, self.backend)

    @property
    def lease(self) -> L:
        """The claim under which the work is done, with ``token`` and ``ensure_held``; `NotHeld` if there is none."""
        if self._lease is None:
            raise NotHeld(f"{self.key!r} was done before, and is not claimed [{self.backend}]", key=self.key)
        return self._lease

    # Completing.

    def _serialized(self, result: Any) -> Outcome:
        """What to keep of ``result``: why it is not kept, at the least."""
        try:
            payload = bytes(memoryview(self._terms.serializer.dumps(result)))
        except Exception as error:  # noqa: BLE001 - it is the user's code
            return Outcome(problem=f"a {type(result).__qualname__} was not serialized: {error}")
        if len(payload) > self._terms.limit:
            return Outcome(problem=f"it has {len(payload)} bytes, more than the limit of {self._terms.limit}")
        return Outcome(payload)

    def _begin(self, outcome: Outcome) -> bytes:
        """From here on the outcome is given. The record."""
        if self._ending:
            raise NotHeld(f"{self.key!r} was completed already [{self.backend}]", key=self.key, backend=self.backend)
        self._ending = True
        return self._packed(outcome)

    def _packed(self, outcome: Outcome) -> bytes:
        lease = self.lease
        return pack(outcome, self._about, self._terms.fingerprint, lease.token, now() - lease.acquired_at)

    def _refused(self, error: TooLarge) -> bytes:
        """What to keep instead of what the store did not take: that it was done, and why there is no result."""
        return self._packed(Outcome(problem=str(error)))

    @property
    def _ways(self) -> tuple[Line, Hold, Watchdog]:
        lease = self.lease
        return lease._line, lease._hold, lease._keeper._watchdog

    @property
    def _about(self) -> str:
        return self.lease._hold.grant.claim.about

    def _kept(self, outcome: Outcome, keep: float) -> None:
        lease = self.lease
        lease._let_go()
        took = now() - lease.acquired_at
        self._operation = Operation(
            self.key,
            outcome.state,
            shown(Waiter.read(lease.owner, self._about)),
            self._terms.fingerprint,
            lease.token,
            time.time() - took,
            took,
            keep,
            outcome=outcome,
        )
        self._tell(outcome.state, token=lease.token, problem=outcome.problem or None)

    def _told(self, outcome: Outcome) -> Callable[[bool], object]:
        """What became of an outcome that was not known at first. By another thread."""
        token = self.lease.token
        return lambda recorded: self._tell(outcome.state if recorded else "superseded", token=token)

    def _not_kept(self, error: BaseException, result: Any) -> None:
        """The claim is lost; or the outcome is unknown, and the watchdog goes on with it; or storing had not begun."""
        lease = self.lease
        if isinstance(error, (LockLost, NotHeld)):
            self._tell("superseded", token=lease.token)
            return
        if not lease._hold.saving:  # Ctrl-C came before: leaving the block gives the claim up
            self._ending = False
            return
        lease._let_go()
        self._tell("not stored yet", token=lease.token, error=repr(error))
        if isinstance(error, BackendError):
            raise self._unavailable(
                f"that is not stored yet, which goes on in the background: {error}", result
            ) from error

    def _outcome(self, outcome: Outcome, result: Any) -> Any:
        """For who did the work: the result as all others get it."""
        if outcome.problem:
            raise self._unavailable(f"its result is not kept: {outcome.problem}", result)
        return self.result

    def _unavailable(self, why: str, result: Any) -> ResultUnavailable:
        error = ResultUnavailable(
            f"{self.key!r} was done and is not done again, but {why} [{self.backend}]",
            key=self.key,
            backend=self.backend,
        )
        error.result = result
        return error

    def _to_keep(self, error: BaseException | None) -> Outcome | None:
        """What is kept of an error that leaves the block, if anything is."""
        if self._lease is None or self._ending:
            return None
        if isinstance(error, self._terms.store_errors):
            kind, message = type(error), str(error)[: self._terms.limit]
            return Outcome(error={"type": f"{kind.__module__}.{kind.__qualname__}", "message": message})
        self._tell("released", token=self._lease.token, error=None if error is None else repr(error))
        return None

    def _tell(self, decision: str, **details: object) -> None:
        tell(decision, self.key, self.backend, self._terms, **details)

    def __repr__(self) -> str:
        state = self._operation.state if self._operation is not None else "in progress"
        return f"<{type(self).__name__} {self.key!r} {state} [{self.backend}]>"


class Work(BaseWork[Lease]):
    """For sync code."""

    __slots__ = ()

    def complete(self, result: Any = None, *, ttl: float | None = None) -> Any:
        """Keeps ``result`` and ends the claim, in one request. Returns the result as those get it who come later.

        ``ttl``: seconds for which it is kept; those of the recipe if not given.

        Raises `LockLost` if the claim was lost: someone else may be at the work, and what they bring counts;
        `ResultUnavailable` if the result cannot be kept (then that the work was done is kept without it), or if the
        store does not answer (then the claim is kept alive, and storing goes on in the background).
        """
        keep = check_ttl(ttl, self._terms.ttl)
        outcome = self._serialized(result)
        self._keep(outcome, keep, result)
        return self._outcome(outcome, result)

    def _keep(self, outcome: Outcome, keep: float, result: Any = None) -> None:
        record = self._begin(outcome)
        try:
            drive(_release.complete(*self._ways, record, keep, self._refused, self._told(outcome)))
        except BaseException as error:
            self._not_kept(error, result)
            raise
        self._kept(outcome, keep)

    def leave(self, error: BaseException | None) -> None:
        """The block ends, with ``error``; what is to be kept of that is kept."""
        outcome = self._to_keep(error)
        if outcome is not None and error is not None:
            try:
                self._keep(outcome, self._terms.ttl)
            except Exception as problem:  # noqa: BLE001 - the body's own error comes out
                add_note(error, f"distlock: {problem}")


class AsyncWork(BaseWork[AsyncLease]):
    """For asyncio and trio."""

    __slots__ = ()

    async def complete(self, result: Any = None, *, ttl: float | None = None) -> Any:
        """See `Work.complete`. Cancelled in the middle of it, storing goes on in the background."""
        keep = check_ttl(ttl, self._terms.ttl)
        outcome = self._serialized(result)
        await self._keep(outcome, keep, result)
        return self._outcome(outcome, result)

    async def _keep(self, outcome: Outcome, keep: float, result: Any = None) -> None:
        record = self._begin(outcome)
        try:
            await _release.complete(*self._ways, record, keep, self._refused, self._told(outcome))
        except BaseException as error:
            self._not_kept(error, result)
            raise
        self._kept(outcome, keep)

    async def leave(self, error: BaseException | None) -> None:
        """See `Work.leave`."""
        outcome = self._to_keep(error)
        if outcome is not None and error is not None:
            try:
                await self._keep(outcome, self._terms.ttl)
            except Exception as problem:  # noqa: BLE001 - the body's own error comes out
                add_note(error, f"distlock: {problem}")
