"""The recipe of work that is to be done once: what is done, and how. All state is in what its block gives."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from .._core.actor import current_actor
from .._core.blocks import Blocks
from .._errors import AcquireTimeout, IdempotencyMismatch, InProgress
from .._lease import AsyncLease, BaseLease, Lease
from .._options import check_key
from .._types import Busy, Done, Holder
from .records import Operation, read, shown
from .terms import Terms
from .work import AsyncWork, Work, tell

if TYPE_CHECKING:
    from .._manager import Manager

__all__ = ("Once",)

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
        found: Lease | Busy | Done | None = None
        work: Work | None = None
        try:
            found = self._attempt(manager)
            if isinstance(found, Lease):
                self._tell("claimed", manager.address, token=found.__enter__().token)
                work = Work(self.key, self._terms, manager.address, found)
            else:
                work = Work(self.key, self._terms, manager.address, self._seen(found, manager.address))
            self._open(work)
            return work
        except BaseException:  # Ctrl-C too, at any step
            _tear_down(work, found)
            raise

    def _attempt(self, manager: Manager) -> Lease | Busy | Done:
        if self._looks_first:
            found = manager.attempt(self.key, self._terms.options(wait=False))
            if not self._is_to_wait_for(found, manager.address):
                return found
        try:
            return manager.attempt(self.key, self._terms.options())
        except AcquireTimeout as error:
            self._compare_holder(error.holder, manager.address)  # another one may be at it by now
            raise self._in_progress(error.holder, manager.address) from error

    def __exit__(
        self, kind: type[BaseException] | None, body: BaseException | None, trace: TracebackType | None
    ) -> None:
        work = self._own_block()
        try:
            assert isinstance(work, Work)
            if not work.replayed:
                try:
                    work.leave(body)
                finally:
                    work.lease.__exit__(kind, body, trace)
        finally:
            _tear_down(work, work._lease)

    async def __aenter__(self) -> AsyncWork:
        manager = self._results()
        found: AsyncLease | Busy | Done | None = None
        work: AsyncWork | None = None
        try:
            found = await self._attempt_async(manager)
            if isinstance(found, AsyncLease):
                self._tell("claimed", manager.address, token=(await found.__aenter__()).token)
                work = AsyncWork(self.key, self._terms, manager.address, found)
            else:
                work = AsyncWork(self.key, self._terms, manager.address, self._seen(found, manager.address))
            self._open(work)
            return work
        except BaseException:
            _tear_down(work, found)
            raise

    async def _attempt_async(self, manager: Manager) -> AsyncLease | Busy | Done:
        if self._looks_first:
            found = await manager.attempt_async(self.key, self._terms.options(wait=False))
            if not self._is_to_wait_for(found, manager.address):
                return found
        try:
            return await manager.attempt_async(self.key, self._terms.options())
        except AcquireTimeout as error:
            self._compare_holder(error.holder, manager.address)  # another one may be at it by now
            raise self._in_progress(error.holder, manager.address) from error

    async def __aexit__(
        self, kind: type[BaseException] | None, body: BaseException | None, trace: TracebackType | None
    ) -> bool:
        work = self._own_block()
        try:
            assert isinstance(work, AsyncWork)
            if work.replayed:
                return False
            try:
                await work.leave(body)
            finally:
                swallowed = await work.lease.__aexit__(kind, body, trace)
            return swallowed
        finally:
            _tear_down(work, work._lease)

    # Which blocks are open.

    def _open(self, work: Work | AsyncWork) -> None:
        work.opened = self, current_actor()
        blocks.push(work, work.opened[1])

    def _own_block(self) -> Work | AsyncWork:
        """The block to leave. What a signal's handler raises meanwhile leaves it all the same."""
        try:
            return self._find()
        except RuntimeError:
            raise
        except BaseException:
            work = self._find()
            _tear_down(work, work._lease)
            raise

    def _find(self) -> Work | AsyncWork:
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


def _tear_down(work: Work | AsyncWork | None, found: object) -> None:
    """The block is not open any more, nor is the claim held; most often both are so already."""
    if work is not None:
        blocks.remove(work, work.opened[1])
    if isinstance(found, BaseLease):
        found._exit()
        found._rescue()
