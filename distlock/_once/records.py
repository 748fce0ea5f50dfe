"""What is kept of work that was done: its result or its error, whose request it was, who did it, and when."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from .._errors import ReplayedError, ResultUnavailable
from .._types import Holder, Waiter

__all__ = ("JSON", "JSONSerializer", "Operation", "Outcome", "Serializer", "pack", "read", "shown")

FINGERPRINT = "distlock.fingerprint"
"""In the metadata of who is at the work."""
VERSION = 1

W = TypeVar("W", bound=Waiter)


# Each made once, which takes longer than using it.
_encode = json.JSONEncoder(separators=(",", ":")).encode
_strict = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode


class Serializer(Protocol):
    """How results become bytes. Give one of your own for what JSON does not have; pickle runs what it reads."""

    def dumps(self, result: Any) -> bytes:
        """``result`` as bytes; any exception means that it cannot be kept."""
        ...

    def loads(self, data: bytes) -> Any:
        """The result again."""
        ...


class JSONSerializer:
    """Strict JSON: no NaN, and no names in objects but `str`, which would come back as something else."""

    def dumps(self, result: Any) -> bytes:
        """``result`` as UTF-8."""
        _check_names(result)
        return _strict(result).encode()

    def loads(self, data: bytes) -> Any:
        """The result, with lists where there were tuples."""
        return json.loads(data)


JSON = JSONSerializer()


def _check_names(value: object) -> None:
    if isinstance(value, Mapping):
        for name, each in value.items():
            if not isinstance(name, str):
                raise TypeError(f"an object's names in JSON are str, not {name!r}")
            _check_names(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _check_names(each)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the work."""

    payload: bytes | None = None
    """The result, serialized."""
    error: Mapping[str, str] | None = None
    """``type`` and ``message``."""
    problem: str = ""
    """Why there is no result."""

    @property
    def state(self) -> str:
        """``"completed"`` or ``"failed"``."""
        return "completed" if self.error is None else "failed"


@dataclass(frozen=True, slots=True)
class Operation:
    """Work that is to be done once, as the store sees it now."""

    key: str
    state: str
    """``"in progress"``, ``"completed"``, or ``"failed"`` (it raised an error that was to be kept)."""
    by: Waiter
    """Who is at it, or has done it. For one in progress a `Holder`."""
    fingerprint: str | None = None
    token: int | None = None
    """The fencing token of the claim under which it is done."""
    began_at: float | None = None
    """Unix time, by the clock of whoever did it."""
    took: float | None = None
    """Seconds from the claim to the outcome."""
    expires_in: float | None = None
    """Seconds for which the store keeps the record."""
    waiters: tuple[Waiter, ...] = ()
    """Who waits for the outcome."""
    outcome: Outcome = field(default_factory=Outcome, repr=False)

    @staticmethod
    def of_holder(key: str, holder: Holder, waiters: tuple[Waiter, ...] = ()) -> Operation:
        """One that is in progress."""
        return Operation(
            key,
            "in progress",
            shown(holder),
            fingerprint=holder.metadata.get(FINGERPRINT),
            token=holder.token,
            began_at=holder.since,
            took=holder.held_for,
            waiters=tuple(shown(waiter) for waiter in waiters),
        )

    def result(self, serializer: Serializer, backend: str) -> Any:
        """What the work gave; `ReplayedError` or `ResultUnavailable` if it gave nothing."""
        if self.outcome.error is not None:
            kind, message = self.outcome.error.get("type", "?"), self.outcome.error.get("message", "")
            failed = ReplayedError(
                f"{self.key!r} was done before by {self.by}, and failed: {kind}: {message}",
                key=self.key,
                backend=backend,
            )
            failed.type, failed.message = kind, message
            raise failed
        if self.outcome.payload is None:
            raise ResultUnavailable(
                f"{self.key!r} was done before by {self.by}, but its result was not kept: {self.outcome.problem}",
                key=self.key,
                backend=backend,
            )
        try:
            return serializer.loads(self.outcome.payload)
        except Exception as error:
            raise ResultUnavailable(
                f"{self.key!r} was done before by {self.by}, but its result cannot be read: {error}",
                key=self.key,
                backend=backend,
            ) from error


def shown(waiter: W) -> W:
    """As it described itself: the fingerprint is beside that."""
    return replace(waiter, metadata={name: value for name, value in waiter.metadata.items() if name != FINGERPRINT})


def pack(outcome: Outcome, about: str, fingerprint: str | None, token: int, took: float) -> bytes:
    """A record: a line of JSON that says all but the result, and the result."""
    head: dict[str, Any] = {"v": VERSION, "t": token, "at": time.time() - took, "took": took}
    if fingerprint is not None:
        head["f"] = fingerprint
    if outcome.error is not None:
        head["e"] = dict(outcome.error)
    if outcome.problem:
        head["p"] = outcome.problem
    line = f'{_encode(head)[:-1]},"a":{about}}}'.encode()  # which is JSON already
    return line if outcome.payload is None else line + b"\n" + outcome.payload


def read(key: str, record: bytes, expires_in: float | None) -> Operation:
    """What `pack` wrote. Of a record that is not one of ours only that is known: that there is no result to give."""
    line, separator, payload = record.partition(b"\n")
    try:
        head = json.loads(line)
        if head["v"] != VERSION:
            raise ValueError(f"its format is {head['v']!r}, and this version of distlock knows {VERSION}")
        error, problem = head.get("e"), head.get("p", "")
        if error is not None and not isinstance(error, dict):
            raise ValueError(f"its error is {error!r}")
        return Operation(
            key,
            "failed" if error is not None else "completed",
            shown(Waiter.read("?", json.dumps(head["a"]))),
            fingerprint=head.get("f"),
            token=head["t"],
            began_at=head["at"],
            took=head["took"],
            expires_in=expires_in,
            outcome=Outcome(payload if separator else None, error, problem),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        unread = Outcome(problem=f"its record cannot be read: {error}")
        return Operation(key, "completed", Waiter("?"), expires_in=expires_in, outcome=unread)
