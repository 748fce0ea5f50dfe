"""Celery: tasks of which one runs at a time, and tasks that are done once. ``pip install 'pydistlock[celery]'``.

Both decorators stand below ``@app.task``, next to the function::

    @app.task
    @single_instance("report:{day}", when_busy="retry", countdown=60)
    def report(day): ...

    @app.task(acks_late=True)
    @idempotent_task(ttl=86400)
    def charge(order_id): ...

For pools of processes and threads (prefork, threads, solo).
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from celery import current_task
from celery.exceptions import Ignore, TaskPredicate

import distlock
from distlock import AcquireTimeout, ConfigurationError, Manager, ResultUnavailable, idempotency
from distlock.idempotency import JSON, Serializer

__all__ = ("WhenBusy", "idempotent_task", "single_instance")

WhenBusy = Literal["skip", "retry", "wait"]
"""What becomes of a task that is running elsewhere: it is not done (`celery.exceptions.Ignore`), it is sent once more
after ``countdown`` seconds, or its worker waits."""

F = TypeVar("F", bound=Callable[..., Any])
_About = Mapping[str, str]
_log = logging.getLogger("distlock.idempotency")


class _Signal(BaseException):
    """Carries what a task tells Celery (`Retry`, `Ignore`, `Reject`) past ``store_errors``: it is no outcome."""


def single_instance(
    key: str | None = None,
    *,
    when_busy: WhenBusy = "skip",
    countdown: float | None = None,
    timeout: float | None = None,
    ttl: float = 30.0,
    locks: Manager | None = None,
) -> Callable[[F], F]:
    """A task of which one runs at a time, over all workers.

    ``key``: filled in with the arguments, as in ``"report:{day}"``; if not given, the function's name, so that one runs
    whatever the arguments are. ``when_busy``: ``"skip"`` leaves no result, so nobody should wait for one; ``"retry"``
    counts as a retry of the task, after ``countdown`` seconds (default: the task's own delay), and when there were too
    many it fails with `AcquireTimeout`; ``"wait"`` occupies the worker, for ``timeout`` seconds at most, and then fails
    with the same. ``ttl``: of the lock, in seconds; it is renewed while the task runs. ``locks``: the store; the one of
    `distlock.configure` or ``DISTLOCK_URL`` if not given.

    If the lock is lost while the task runs, the task fails with `LockLost` at its end. Raises `ConfigurationError` for
    a key that names no parameter of the function. Called directly, not by a worker, a busy task raises
    `AcquireTimeout`.
    """
    locked = distlock.locked if locks is None else locks.locked
    patience = _patience(when_busy, timeout)

    def decorate(function: F) -> F:
        template = _literally(_name(function)) if key is None else key

        def guard(body: F, about: _About) -> F:
            return locked(template, ttl=ttl, timeout=patience, metadata=about)(body)

        guard(function, {})  # what cannot work is said now
        return _task(function, guard, when_busy, countdown)

    return decorate


def idempotent_task(
    key: str | None = None,
    *,
    ttl: float,
    when_busy: WhenBusy = "wait",
    countdown: float | None = None,
    timeout: float | None = None,
    lease: float = 30.0,
    serializer: Serializer = JSON,
    store_errors: type[Exception] | tuple[type[Exception], ...] = (),
    locks: Manager | None = None,
) -> Callable[[F], F]:
    """A task that is done once; whoever comes later gets the same result, and nothing is done.

    ``key``: filled in with the arguments, as in ``"charge:{order_id}"``. If not given it is the task's id, so that a
    message that is delivered twice (``acks_late``, a visibility timeout) is done once; a retry is another try of the
    same task, and is done. ``ttl``: seconds for which the result is kept: longer than the task, and than the broker
    may take to deliver its message again. ``when_busy``, ``countdown`` and ``timeout``: as for `single_instance`, but
    the error is `InProgress`, and ``"skip"`` gives up a message whose first delivery may yet come to nothing.
    ``lease``, ``serializer`` and ``store_errors``: as for `distlock.idempotency.once`; Celery's own signals (`Retry`,
    `Ignore`, `Reject`) are never kept.

    If the result cannot be kept, the task succeeds with it all the same, and a warning is logged; who comes later gets
    `ResultUnavailable`. Called directly, not by a worker, there is no id, and the function is just called; so it is
    within another task.
    """
    idempotent = idempotency.idempotent if locks is None else locks.idempotent
    patience = _patience(when_busy, timeout)

    def decorate(function: F) -> F:
        def guard(body: F, about: _About) -> F:
            if key is None and not about:
                return body
            template = _literally("{task}:{task_id}".format(**about)) if key is None else key
            return idempotent(
                template,
                ttl=ttl,
                timeout=patience,
                lease=lease,
                serializer=serializer,
                store_errors=store_errors,
                metadata=about,
            )(body)

        guard(function, {"task": "", "task_id": ""})  # what cannot work is said now
        return _task(function, guard, when_busy, countdown)

    return decorate


def _task(function: F, guard: Callable[[Any, _About], Any], when_busy: WhenBusy, countdown: float | None) -> F:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        begun = False
        done: list[Any] = []

        @functools.wraps(function)
        def body(*args: Any, **kwargs: Any) -> Any:
            nonlocal begun
            begun = True
            try:
                done.append(function(*args, **kwargs))
            except TaskPredicate as signal:
                raise _Signal(signal) from None
            return done[0]

        task: Any = current_task
        by_worker = _runs(task, function)
        about = {"task": task.name, "task_id": task.request.id} if by_worker else {}
        try:
            return guard(body, about)(*args, **kwargs)
        except _Signal as carrier:
            signal = carrier.args[0]
            raise signal from signal.__cause__
        except ResultUnavailable as error:
            if not done:  # it is about what was done before
                raise
            _log.warning("a task has succeeded whose result cannot be had again: %s", error)
            return done[0]
        except AcquireTimeout as error:
            if begun or not by_worker or when_busy == "wait":  # begun: it is about another lock, that the task wants
                raise
            if when_busy == "skip":
                raise Ignore(str(error)) from error
            raise task.retry(exc=error, countdown=countdown) from error

    return call  # type: ignore[return-value]


def _runs(task: Any, function: Any) -> bool:
    """Whether a worker called ``function`` as this very task, and not another task that has it called."""
    if not task or task.request.called_directly:
        return False
    return inspect.unwrap(task.run) is inspect.unwrap(function)


def _patience(when_busy: str, timeout: float | None) -> float | None:
    if when_busy not in ("skip", "retry", "wait"):
        raise ConfigurationError(f'when_busy is "skip", "retry" or "wait", not {when_busy!r}')
    if when_busy != "wait" and timeout is not None:
        raise ConfigurationError(f'timeout is for when_busy="wait", and {when_busy!r} does not wait')
    return timeout if when_busy == "wait" else 0.0


def _name(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _literally(key: str) -> str:
    """A template that gives ``key``."""
    return key.replace("{", "{{").replace("}", "}}")
