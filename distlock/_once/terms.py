"""How work is to be done once: what users pass in, checked before any I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._errors import ConfigurationError
from .._options import Options, check_timeout, check_ttl
from .records import FINGERPRINT, JSON, Serializer

__all__ = ("LARGEST", "Terms")

LARGEST = 256 * 1024
"""Bytes of a result, unless told otherwise: stores keep it in memory, and read it whole for each replay."""


@dataclass(frozen=True, slots=True)
class Terms:
    """See `distlock.idempotency.once` for each."""

    ttl: float
    timeout: float | None = None
    lease: float = 30.0
    fingerprint: Any = None
    """Any value with a canonical form; kept as its digest."""
    serializer: Serializer = JSON
    limit: int = LARGEST
    store_errors: tuple[type[Exception], ...] = ()
    metadata: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ttl", check_ttl(self.ttl, 0.0))
        object.__setattr__(self, "lease", check_ttl(self.lease, 0.0, "lease"))
        object.__setattr__(self, "timeout", check_timeout(self.timeout))
        if self.fingerprint is not None:
            from .keys import fingerprint_of  # and all kinds of values that it knows

            object.__setattr__(self, "fingerprint", fingerprint_of(self.fingerprint))
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 0:
            raise ValueError(f"limit must be a number of bytes, 0 or more; not {self.limit!r}")
        errors = self.store_errors if isinstance(self.store_errors, tuple) else (self.store_errors,)
        if not all(isinstance(each, type) and issubclass(each, Exception) for each in errors):
            raise ConfigurationError(f"store_errors are classes of exceptions, not {self.store_errors!r}")
        object.__setattr__(self, "store_errors", errors)
        if isinstance(self.metadata, Mapping):
            object.__setattr__(self, "metadata", dict(self.metadata))
        self.options()

    def options(self, *, wait: bool = True) -> Options:
        """Of the claim, under which the work is done."""
        metadata = self.metadata or {}
        if self.fingerprint is not None and isinstance(metadata, Mapping):
            metadata = {**metadata, FINGERPRINT: self.fingerprint}
        return Options(ttl=self.lease, timeout=self.timeout if wait else 0.0, metadata=metadata or None)
