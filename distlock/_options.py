"""Checks of what users pass in, before any I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from ._errors import ConfigurationError, InvalidKey

__all__ = ("Options", "WhenLost", "check_at_least", "check_key", "check_timeout", "check_ttl")

WhenLost = Literal["raise", "cancel", "warn"]

SHORTEST_TTL = 0.1
LONGEST_TTL = 366 * 24 * 3600.0
LONGEST_KEY = 512
LARGEST_METADATA = 4096


@dataclass(frozen=True, slots=True)
class Options:
    """How a lock is to be held."""

    ttl: float = 30.0
    timeout: float | None = None
    renew: bool = True
    max_hold: float | None = None
    reentrant: bool = False
    owner: str | None = None
    when_lost: WhenLost | None = None
    metadata: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ttl", check_ttl(self.ttl, 0.0))
        object.__setattr__(self, "timeout", check_timeout(self.timeout))
        if self.max_hold is not None and not (_number("max_hold", self.max_hold) > 0 and math.isfinite(self.max_hold)):
            raise ValueError(f"max_hold must be a finite number of seconds above 0, or None; not {self.max_hold!r}")
        for name in ("renew", "reentrant"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.when_lost is not None and self.when_lost not in get_args(WhenLost):
            raise ValueError(f'when_lost must be "raise", "cancel" or "warn", not {self.when_lost!r}')
        if self.owner is not None:
            _check_text("owner", self.owner)
        if self.metadata is not None:
            object.__setattr__(self, "metadata", _check_metadata(self.metadata))


def check_key(key: object, backend: str | None = None) -> str:
    """``key``, if it is a lock name: a non-empty str of at most 512 bytes of UTF-8."""
    if not isinstance(key, str) or not key:
        raise InvalidKey(f"a lock name is a non-empty str, not {key!r}", backend=backend)
    try:
        size = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKey(f"a lock name must be encodable as UTF-8: {error}", key=key, backend=backend) from None
    if size > LONGEST_KEY:
        raise InvalidKey(
            f"a lock name has at most {LONGEST_KEY} bytes of UTF-8; {key[:40]!r}… has {size}: name a hash of it",
            key=key,
            backend=backend,
        )
    return key


def check_ttl(ttl: object, default: float, name: str = "ttl") -> float:
    """Seconds of a lease."""
    if ttl is None and default:
        return default
    value = _number(name, ttl)
    if not SHORTEST_TTL <= value <= LONGEST_TTL:
        raise ValueError(f"{name} must be between {SHORTEST_TTL} and {LONGEST_TTL:.0f} seconds, not {ttl!r}")
    return value


def check_timeout(timeout: object) -> float | None:
    """Seconds to wait; None: for ever; 0: try once."""
    if timeout is None:
        return None
    value = _number("timeout", timeout)
    if not 0 <= value < math.inf:
        raise ValueError(f"timeout must be a finite number of seconds, 0 or more, or None; not {timeout!r}")
    return value


def check_at_least(seconds: object) -> None:
    """Seconds of proven time."""
    if not _number("at_least", seconds) >= 0:
        raise ValueError(f"at_least must be a number of seconds, 0 or more; not {seconds!r}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number of seconds, not {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number of seconds, not {value!r}") from None


def _check_text(name: str, value: object) -> None:
    try:
        fits = isinstance(value, str) and 0 < len(value.encode()) <= LONGEST_KEY
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise ConfigurationError(
            f"{name} must be a non-empty str of at most {LONGEST_KEY} bytes of UTF-8, not {value!r}"
        )


def _check_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    if not isinstance(metadata, Mapping):
        raise ConfigurationError(f"metadata maps str to str, it is not {metadata!r}")
    copy = dict(metadata)
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in copy.items()):
        raise ConfigurationError("metadata maps str to str")
    try:
        size = sum(len(k.encode()) + len(v.encode()) for k, v in copy.items())
    except UnicodeEncodeError:
        raise ConfigurationError("metadata must be encodable as UTF-8") from None
    if size > LARGEST_METADATA:
        raise ConfigurationError(f"metadata has at most {LARGEST_METADATA} bytes: every grant and waiter stores it")
    return copy
