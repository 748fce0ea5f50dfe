"""Everything distlock raises of its own.

::

    DistLockError
    ├── AcquireTimeout       (also TimeoutError)     not acquired within `timeout`; names the holder
    ├── LockLost                                     held once, not provably any more
    ├── NotHeld                                      there is no lease to act on
    ├── Deadlock             (also RuntimeError)     this thread or task would wait for itself for ever
    ├── Unsupported                                  the backend cannot do what was asked
    ├── ConfigurationError   (also ValueError)       a URL, an option or a missing package
    ├── InvalidKey           (also ValueError)       not a usable lock name
    ├── IdempotencyError                             of work that is to be done once
    │   ├── InProgress       (also AcquireTimeout)   someone else is at it, and was not done within `timeout`
    │   ├── IdempotencyMismatch (also ValueError)    the key was used for another request
    │   ├── ReplayedError                            it was done, and failed; the error was kept
    │   └── ResultUnavailable                        it was done, but there is no result to give
    └── BackendError                                 the store answered with an error
        ├── BackendUnavailable (also ConnectionError)  the store did not answer
        └── TooLarge                                 the store takes nothing of that size

Each has ``key`` and ``backend`` (a name and an address without secrets), ``None`` where there is none.
Values of the wrong kind (a ttl of 0, a negative timeout) are a plain ``ValueError``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._types import Holder

__all__ = (
    "AcquireTimeout",
    "BackendError",
    "BackendUnavailable",
    "ConfigurationError",
    "Deadlock",
    "DistLockError",
    "IdempotencyError",
    "IdempotencyMismatch",
    "InProgress",
    "InvalidKey",
    "LockLost",
    "NotHeld",
    "ReplayedError",
    "ResultUnavailable",
    "TooLarge",
    "Unsupported",
    "add_note",
)


class DistLockError(Exception):
    """The root of the tree."""

    def __init__(self, message: str, *, key: str | None = None, backend: str | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.backend = backend

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only attributes survive pickling, so that errors cross process pools.
        return (_rebuild, (type(self), self.args, self.__dict__))


class AcquireTimeout(DistLockError, TimeoutError):
    """The lock was not acquired in time. ``holder`` says who has it, where the backend knows."""

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        backend: str | None = None,
        holder: Holder | None = None,
    ) -> None:
        super().__init__(message, key=key, backend=backend)
        self.holder = holder


class LockLost(DistLockError):
    """The lease was held, and holding it cannot be proven any more: stop writing."""


class NotHeld(DistLockError):
    """There is no lease here: it was released, or none is open in this thread or task."""


class Deadlock(DistLockError, RuntimeError):
    """This thread or task holds the lock in an open block and would wait for itself for ever."""


class Unsupported(DistLockError):
    """The backend cannot do what was asked, and does not do less in silence."""


class ConfigurationError(DistLockError, ValueError):
    """A URL, an option or an installation that cannot work, and how to mend it."""


class InvalidKey(DistLockError, ValueError):
    """Not a lock name: any non-empty ``str`` of at most 512 bytes of UTF-8 is one."""


class IdempotencyError(DistLockError):
    """Of work that is to be done once (`distlock.idempotency`)."""


class InProgress(IdempotencyError, AcquireTimeout):
    """Someone else is at the work, and was not done with it in time. ``holder`` says who, where the backend knows."""

    retry_after: float | None = None
    """Seconds after which the store would let someone else try, if that one died; None: not known."""


class IdempotencyMismatch(IdempotencyError, ValueError):
    """The key was used for a request with another fingerprint: each request needs a key of its own."""


class ReplayedError(IdempotencyError):
    """The work was done before and failed, with an error that was to be kept. Nothing was done now."""

    type: str = ""
    """The name of the error's class, with its module."""
    message: str = ""
    """What it said."""


class ResultUnavailable(IdempotencyError):
    """The work was done, and is not done again; but its result could not be stored, or not yet, or not be read."""

    result: object = None
    """What the work gave, if it was this very call that did it."""


class BackendError(DistLockError):
    """The store answered, and the answer is an error.

    ``sent`` is True when a request may have been carried out all the same.
    """

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        backend: str | None = None,
        sent: bool = False,
    ) -> None:
        super().__init__(message, key=key, backend=backend)
        self.sent = sent


class BackendUnavailable(BackendError, ConnectionError):
    """The store could not be reached, or did not answer in time."""


class TooLarge(BackendError):
    """The store takes nothing of that size, however often it is asked. Nothing was stored."""


def _rebuild(kind: type[DistLockError], args: tuple[object, ...], state: dict[str, object]) -> DistLockError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def add_note(error: BaseException, note: str) -> None:
    """``error.add_note(note)``, on Python 3.10 too (PEP 678 names the attribute)."""
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:
        notes = getattr(error, "__notes__", [])
        error.__notes__ = [*notes, note]  # type: ignore[attr-defined]
