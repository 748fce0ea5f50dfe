"""The same request twice is done once: payments, orders, webhooks, messages, jobs.

A lock says "not at the same time"; this says "not twice". The first who asks claims the work, under a lease that is
renewed while it is done; what comes of it is kept, and whoever asks later gets that. Thread-safe, and for sync code,
asyncio and trio alike::

    from distlock.idempotency import idempotent, once

    @idempotent("pay:{request.id}", ttl=86400)
    def pay(request): ...

    with once("pay:42", ttl=86400, fingerprint=payload) as work:
        if work.replayed:
            return work.result
        return work.complete(charge(payload))

What this cannot do: if a process dies after the charge and before `Work.complete`, nobody knows that it was charged,
and the work is done again once the lease has ended. Hand the key on to whoever charges, or write it in the same
transaction.
"""

from __future__ import annotations

from ._default import idempotent, once
from ._errors import IdempotencyError, IdempotencyMismatch, InProgress, ReplayedError, ResultUnavailable
from ._once.keys import canonical, fingerprint_of
from ._once.recipe import Once
from ._once.records import JSON, JSONSerializer, Operation, Outcome, Serializer
from ._once.results import Results
from ._once.terms import LARGEST
from ._once.work import AsyncWork, Work

__all__ = (
    "JSON",
    "LARGEST",
    "AsyncWork",
    "IdempotencyError",
    "IdempotencyMismatch",
    "InProgress",
    "JSONSerializer",
    "Once",
    "Operation",
    "Outcome",
    "ReplayedError",
    "ResultUnavailable",
    "Results",
    "Serializer",
    "Work",
    "canonical",
    "fingerprint_of",
    "idempotent",
    "once",
)
