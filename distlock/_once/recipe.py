"""The recipe of work that is to be done once: what is done, and how. All state is in what its block gives."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from .._core.actor import current_actor
from .._core.blocks import Blocks
from .._errors import AcquireTimeout, IdempotencyMismatch, InProgress
from .._lease import AsyncLease, Lease
from .._options import check_key
from .._types import Busy, Done, Holder
from .records import Operation, read, shown
from .terms import Terms
from .work import AsyncWork, Work, tell

if TYPE_CHECKING:
    from .._manager import Manager

__all__ = ("Once",)

L = TypeVar("L", Lease, AsyncLease)
W = TypeVar("W", Work, AsyncWork)

blocks: Blocks[Work | AsyncWork] = Blocks()


class Once:
    """An immutable recipe, to be shared by any number of threads and tasks.

    Made by `once` or `Manager.once`. A context manager for ``with`` and ``async with``.
    """

    __slots__ = ("_results", "_terms", "key")

    def __init__(self, results: Callable[[], Manager], key: str, terms: Terms) -> None:
        """``results``: gives the manager of the store of results."""
        self._results = results
        self._terms = terms
        self.key: str = check_key(key)

    def __enter__(self) -> Work:
        manager = self._results()
        lease: Lease | None = None
        try:
            found = manager.attempt(self.key, self._terms.options(wait=False)) if self._looks_first else None
            if found is None or self._is_to_wait_for(found, manager.address):
                found = manager.attempt(self.key, self._terms.options())
            if not isinstance(found, Lease):
                return self._open(Work(self.key, self._terms, manager.address, self._seen(found, manager.address)))
            lease = found
            lease.__enter__()
            self._tell("claimed", manager.address, token=lease.token)
            return self._open(Work(self.key, self._terms, manager.address, lease))
        except BaseException as error:
            if lease is not None:
                lease._rescue()
            self._refuse(error, manager.address)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, body: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            work = self._own_block()
        except RuntimeError:
            raise
        except BaseException:  # what a signal's handler raised: the block is left all the same
            self._own_block().abandon()
            raise
        assert isinstance(work, Work)
        try:
            work.leave(body)
        finally:
            blocks.remove(work, work.opened[1])
            if not work.replayed:
                work.lease.__exit__(kind, body, trace)

    async def __aenter__(self) -> AsyncWork:
        manager = self._results()
        lease: AsyncLease | None = None
        try:
            found = None
            if self._looks_first:
                found = await manager.attempt_async(self.key, self._terms.options(wait=False))
            if found is None or self._is_to_wait_for(found, manager.address):
                found = await manager.attempt_async(self.key, self._terms.options())
            if not isinstance(found, AsyncLease):
                return self._open(AsyncWork(self.key, self._terms, manager.address, self._seen(found, manager.address)))
            lease = found
            await lease.__aenter__()
            self._tell("claimed", manager.address, token=lease.token)
            return self._open(AsyncWork(self.key, self._terms, manager.address, lease))
        except BaseException as error:
            if lease is not None:
                lease._rescue()
            self._refuse(error, manager.address)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, body: BaseException | None, trace: TracebackType | None
    ) -> bool:
        work = self._own_block()
        assert isinstance(work, AsyncWork)
        swallowed = False
        try:
            await work.leave(body)
        finally:
            blocks.remove(work, work.opened[1])
            if not work.replayed:
                swallowed = await work.lease.__aexit__(kind, body, trace)
        return swallowed

    # Which blocks are open.

    def _open(self, work: W) -> W:
        work.opened = self, current_actor()
        blocks.push(work, work.opened[1])
        return work

    def _own_block(self) -> Work | AsyncWork:
        return blocks.find(lambda work: work.opened[0] is self)

    # What was found.

    @property
    def _looks_first(self) -> bool:
        """Who has another request under the key in progress is no one to wait for."""
        return self._terms.fingerprint is not None and self._terms.timeout != 0

    def _is_to_wait_for(self, found: object, backend: str) -> bool:
        if isinstance(found, Busy):
            self._compare_holder(found.holder, backend)
            return True
        return False

    def _seen(self, found: Busy | Done, backend: str) -> Operation:
        if isinstance(found, Busy):
            holder = found.holder
            self._compare_holder(holder, backend)
            raise self._in_progress(holder, backend)
        operation = read(self.key, found.record, found.expires_in)
        self._compare(operation, backend)
        self._tell("replayed", backend, state=operation.state, by=operation.by)
        return operation

    def _compare_holder(self, holder: Holder | None, backend: str) -> None:
        if holder is not None:
            self._compare(Operation.of_holder(self.key, holder), backend)

    def _compare(self, other: Operation, backend: str) -> None:
        mine = self._terms.fingerprint
        if mine is None or other.fingerprint is None or other.fingerprint == mine:
            return
        self._tell("mismatch", backend, state=other.state, by=other.by)
        raise IdempotencyMismatch(
            f"{self.key!r} was used for another request, by {other.by}: each needs a key of its own [{backend}]",
            key=self.key,
            backend=backend,
        )

    def _refuse(self, error: BaseException, backend: str) -> None:
        """It was waited for in vain."""
        if isinstance(error, AcquireTimeout) and not isinstance(error, InProgress):
            raise self._in_progress(error.holder, backend) from error

    def _in_progress(self, holder: Holder | None, backend: str) -> InProgress:
        who = "someone else is" if holder is None else f"{holder} is"
        timeout = self._terms.timeout
        waited = f", and was not done in {timeout:g} s" if timeout else ""
        self._tell("in progress", backend, by=holder)
        error = InProgress(
            f"{self.key!r} is in progress: {who} at it{waited} [{backend}]",
            key=self.key,
            backend=backend,
            holder=None if holder is None else shown(holder),
        )
        error.retry_after = None if holder is None else holder.ttl
        return error

    def _tell(self, decision: str, backend: str, **details: object) -> None:
        tell(decision, self.key, backend, self._terms, **details)

    def __repr__(self) -> str:
        return f"<Once {self.key!r} ttl={self._terms.ttl:g}>"

    def __reduce__(self) -> str:
        raise TypeError("a Once does not travel between processes: make it anew there from its key")
