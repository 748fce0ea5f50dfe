"""Distributed locks that never lie about who holds what: Redis, etcd, ZooKeeper, and this machine."""

from ._default import configure, lock, locked
from ._errors import (
    AcquireTimeout,
    BackendError,
    BackendUnavailable,
    ConfigurationError,
    Deadlock,
    DistLockError,
    IdempotencyError,
    IdempotencyMismatch,
    InProgress,
    InvalidKey,
    LockLost,
    NotHeld,
    ReplayedError,
    ResultUnavailable,
    TooLarge,
    Unsupported,
)
from ._lease import AsyncLease, Lease, current
from ._lock import Lock
from ._manager import Manager, connect
from ._types import Fault, Guarantees, Holder, Inspection, LeaseState, Waiter

__all__ = (
    "AcquireTimeout",
    "AsyncLease",
    "BackendError",
    "BackendUnavailable",
    "ConfigurationError",
    "Deadlock",
    "DistLockError",
    "Fault",
    "Guarantees",
    "Holder",
    "IdempotencyError",
    "IdempotencyMismatch",
    "InProgress",
    "Inspection",
    "InvalidKey",
    "Lease",
    "LeaseState",
    "Lock",
    "LockLost",
    "Manager",
    "NotHeld",
    "ReplayedError",
    "ResultUnavailable",
    "TooLarge",
    "Unsupported",
    "Waiter",
    "configure",
    "connect",
    "current",
    "lock",
    "locked",
)

__version__ = "0.1.0"
