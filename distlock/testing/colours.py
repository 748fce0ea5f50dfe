"""One test body for sync code, asyncio and trio."""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext
from types import TracebackType
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.to_thread import run_sync

from .. import AsyncLease, Lease, Lock, Manager
from .._core.drive import drive
from ..idempotency import AsyncWork, Once, Work
from .faults import Store, Tap

__all__ = ("COLOURS", "PATIENCE", "Colour", "Task", "World", "async_case", "case")

COLOURS = ("sync", "asyncio", "trio")

PATIENCE = 60.0
"""Seconds after which something is taken not to happen any more. A bound, never a measure."""

_AnyLease = Lease | AsyncLease


def case(test: Callable[[Any, World], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A method of the suite, an async function, as one pytest test a colour."""
    return _in_colours(test, COLOURS)


def async_case(test: Callable[[Any, World], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The same for what only event loops have, such as cancellation."""
    return _in_colours(test, COLOURS[1:])


def _in_colours(
    test: Callable[[Any, World], Coroutine[Any, Any, None]], colours: tuple[str, ...]
) -> Callable[..., None]:
    def run(self: Any, store: Store, colour: str) -> None:
        with World(store, colour) as world:
            world.run(lambda: test(self, world))

    functools.update_wrapper(run, test)
    del run.__dict__["__wrapped__"]
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", "store", "colour")
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    painted: Callable[..., None] = pytest.mark.parametrize("colour", colours)(run)
    return painted


class Task:
    """A call that goes on beside the test, in a thread or a task of its own."""

    def __init__(self, colour: Colour) -> None:
        self._colour = colour
        self._done = threading.Event()
        self._scope = anyio.CancelScope() if colour.is_async else None
        self._value: Any = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """It has ended, one way or the other."""
        return self._done.is_set()

    async def result(self) -> Any:
        """What it returned, or raised."""
        await self._colour.until(self._done.is_set)
        if self._error is not None:
            raise self._error
        return self._value

    async def cancel(self) -> None:
        """Cancels it and waits for its end. Threads cannot be cancelled."""
        assert self._scope is not None
        self._scope.cancel()
        await self._colour.until(self._done.is_set)

    async def run(self, call: Callable[[], Awaitable[Any]]) -> None:
        """What the thread or the task does."""
        try:
            with self._scope or nullcontext():
                self._value = await call()
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asks for the result
            self._error = error
        finally:
            self._done.set()


class Colour:
    """What a test body, an async function, does differently in sync code, asyncio and trio.

    In sync code its awaits block in place.
    """

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.is_async: bool = name != "sync"
        self._tasks: anyio.abc.TaskGroup | None = None

    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """The test, to its end."""
        if not self.is_async:
            drive(body())
            return

        async def main() -> None:
            async with anyio.create_task_group() as self._tasks:
                await body()
                self._tasks.cancel_scope.cancel()

        try:
            anyio.run(main, backend=self.name)
        except BaseException as error:
            inner: Sequence[BaseException] = getattr(error, "exceptions", ())
            if len(inner) == 1:  # what the test raised, not the group that it came in
                raise inner[0] from None
            raise

    def start(self, call: Callable[[], Awaitable[Any]]) -> Task:
        """Runs ``call`` beside the test."""
        task = Task(self)
        if self._tasks is not None:
            self._tasks.start_soon(task.run, call)
        else:
            threading.Thread(target=lambda: drive(task.run(call)), daemon=True).start()
        return task

    async def until(self, condition: Callable[[], object], timeout: float = PATIENCE) -> None:
        """Until it holds. The condition may ask a server: it runs where it blocks nobody."""
        deadline = time.monotonic() + timeout
        while not (await self.aside(condition)):
            assert time.monotonic() < deadline, "it did not happen"
            await self.sleep(0.003)

    async def sleep(self, seconds: float) -> None:
        """For a ttl to pass, where nothing else tells."""
        if self.is_async:
            await anyio.sleep(seconds)
        else:
            time.sleep(seconds)  # noqa: ASYNC251 - no event loop in this colour

    async def aside(self, call: Callable[[], Any]) -> Any:
        """A blocking call, off the event loop."""
        return await run_sync(call) if self.is_async else call()

    # Locks, in this colour.

    async def acquire(self, lock: Lock, **timeout: Any) -> Any:
        return await lock.acquire_async(**timeout) if self.is_async else lock.acquire(**timeout)

    async def try_acquire(self, lock: Lock) -> Any:
        return await lock.try_acquire_async() if self.is_async else lock.try_acquire()

    async def release(self, lease: _AnyLease) -> None:
        await self._either(lease.release())

    async def extend(self, lease: _AnyLease, ttl: float | None = None) -> None:
        await self._either(lease.extend(ttl))

    @asynccontextmanager
    async def block(self, lock: Lock | _AnyLease | Once) -> AsyncIterator[Any]:
        """``with`` or ``async with``."""
        if self.is_async:
            async with lock as lease:  # type: ignore[union-attr]
                yield lease
        else:
            with lock as lease:  # type: ignore[union-attr]
                yield lease

    async def complete(self, work: Work | AsyncWork, result: Any = None, *, ttl: float | None = None) -> Any:
        """What those get who come later."""
        done = work.complete(result, ttl=ttl)
        return await done if isinstance(work, AsyncWork) else done

    @staticmethod
    async def _either(result: Awaitable[None] | None) -> None:
        if result is not None:
            await result


class World(Colour):
    """Locks of one store as one colour sees them."""

    def __init__(self, store: Store, colour: str) -> None:
        super().__init__(colour)
        self.store: Store = store
        self._exits = ExitStack()
        self.locks: Manager = self.connect()
        self.other: Manager = self.connect()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def connect(self, **options: Any) -> Manager:
        """One more client of the store, closed after the test."""
        manager = self.store.connect(**options)
        self._exits.callback(manager.close)
        return manager

    @property
    def backend(self) -> Any:
        """What `locks` asks, in this colour."""
        return self.locks._async_line().backend if self.is_async else self.locks._line.backend

    async def warm_up(self) -> None:
        """Connects `locks`: a short ttl counts from before the first request, which is a long one on a slow machine."""
        await self.release(await self.acquire(self.locks.lock("warm up")))

    async def tap(self) -> tuple[Manager, Tap]:
        """One more client, with a tap in its line to the store."""
        tap = Tap((await self.aside(self.connect))._backend)
        manager = Manager(tap)
        self._exits.callback(manager.close)
        return manager, tap

    async def tap_results(self) -> tuple[Manager, Tap]:
        """One more client, with a tap in its line to the store of results."""
        manager, _ = await self.tap()
        tap = (await self.aside(manager.results_manager))._backend
        assert isinstance(tap, Tap)
        self._exits.callback(tap.backend.close)
        return manager, tap

    async def inspect(self, key: str, manager: Manager | None = None) -> Any:
        manager = manager or self.locks
        return await manager.inspect_async(key) if self.is_async else manager.inspect(key)

    async def force_release(self, manager: Manager, key: str, token: int) -> bool:
        if self.is_async:
            return await manager.force_release_async(key, token=token)
        return manager.force_release(key, token=token)

    async def list(self, prefix: str = "", manager: Manager | None = None) -> Any:
        manager = manager or self.locks
        return await manager.list_async(prefix) if self.is_async else manager.list(prefix)

    async def queued(self, key: str, count: int, manager: Manager | None = None) -> None:
        """Until ``count`` wait for ``key``. A backend that is not fair sees those of the same client only."""
        manager = manager or self.locks
        await self.until(lambda: len(manager.inspect(key).waiters) == count)
