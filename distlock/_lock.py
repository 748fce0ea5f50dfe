"""The recipe of a lock: what to lock and how. All state is in the lease that acquiring gives."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ._lease import AsyncLease, BaseLease, Lease, blocks, no_cancelling
from ._options import Options, check_key, check_timeout
from ._wrapping import check_decoratable, finished, is_async, key_by

if TYPE_CHECKING:
    from ._manager import Manager

__all__ = ("Lock", "locked_by")

F = TypeVar("F", bound=Callable[..., Any])


class _Same(enum.Enum):
    AS_GIVEN = "the lock's own timeout"


SAME: Final = _Same.AS_GIVEN


class Lock:
    """An immutable recipe, to be shared by any number of threads and tasks.

    Made by `lock` or `Manager.lock`. A context manager for ``with`` and ``async with``, and a decorator of
    functions and coroutine functions.
    """

    __slots__ = ("_manager_of", "_options", "key")

    def __init__(self, manager_of: Callable[[], Manager], key: str, options: Options) -> None:
        self._manager_of = manager_of
        self._options = options
        self.key: str = check_key(key)

    def acquire(self, timeout: float | _Same | None = SAME) -> Lease:
        """Waits for the lock for ``timeout`` seconds at most (None: for ever; 0: one try).

        Raises `AcquireTimeout`, `BackendUnavailable` when the store does not answer, `Deadlock` when this thread
        holds it in an open block and would wait for ever.
        """
        return self._manager_of().acquire(self.key, self._options if timeout is SAME else self._with(timeout))

    def try_acquire(self) -> Lease | None:
        """One attempt without waiting; None if someone else has it."""
        return self._manager_of().try_acquire(self.key, self._options)

    async def acquire_async(self, timeout: float | _Same | None = SAME) -> AsyncLease:
        """`acquire` for asyncio and trio. Cancelled, it leaves nothing held and nothing queued."""
        options = self._options if timeout is SAME else self._with(timeout)
        return await self._manager_of().acquire_async(self.key, options)

    async def try_acquire_async(self) -> AsyncLease | None:
        """`try_acquire` for asyncio and trio."""
        return await self._manager_of().try_acquire_async(self.key, self._options)

    def _with(self, timeout: float | None) -> Options:
        return replace(self._options, timeout=check_timeout(timeout))

    def __enter__(self) -> Lease:
        if self._options.when_lost == "cancel":
            raise no_cancelling(self.key)
        lease: Lease | None = None
        try:
            lease = self.acquire()
            lease.entered_by = self
            return lease.__enter__()
        except BaseException:
            if lease is not None:
                lease._rescue()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, body: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            lease = self._own_block()
        except RuntimeError:
            raise
        except BaseException:  # what a signal's handler raised: the block is left all the same
            self._own_block()._rescue()
            raise
        assert isinstance(lease, Lease)
        lease.__exit__(kind, body, trace)

    async def __aenter__(self) -> AsyncLease:
        lease: AsyncLease | None = None
        try:
            lease = await self.acquire_async()
            lease.entered_by = self
            return await lease.__aenter__()
        except BaseException:
            if lease is not None:
                lease._rescue()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, body: BaseException | None, trace: TracebackType | None
    ) -> bool:
        lease = self._own_block()
        assert isinstance(lease, AsyncLease)
        return await lease.__aexit__(kind, body, trace)

    def _own_block(self) -> BaseLease:
        lease = blocks.innermost()
        if lease is not None and lease.entered_by is self:
            return lease
        return blocks.find(lambda lease: lease.entered_by is self)

    def __call__(self, function: F) -> F:
        """Decorates: each call holds the lock. The key is taken as it is, braces included."""
        return _wrapped(function, lambda args, kwargs: self)

    def __repr__(self) -> str:
        return f"<Lock {self.key!r} ttl={self._options.ttl:g}>"

    def __reduce__(self) -> str:
        raise TypeError("a Lock does not travel between processes: make it anew there from its key")


def locked_by(make: Callable[[str], Lock], template: str) -> Callable[[F], F]:
    """A decorator whose key is ``template`` filled in with the arguments of each call."""

    def decorate(function: F) -> F:
        key_of = key_by(template, function)
        return _wrapped(function, lambda args, kwargs: make(key_of(args, kwargs)))

    return decorate


def _wrapped(function: F, lock_of: Callable[[tuple[Any, ...], Mapping[str, Any]], Lock]) -> F:
    check_decoratable(function)
    if is_async(function):

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            async with lock_of(args, kwargs):
                return await function(*args, **kwargs)

        return call_async  # type: ignore[return-value]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with lock_of(args, kwargs):
            return finished(function(*args, **kwargs), function)

    return call  # type: ignore[return-value]
