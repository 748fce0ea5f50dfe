"""Keys and fingerprints: the same for the same values, in every process and every version of Python."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import functools
import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Set
from typing import Any

__all__ = ("call_key", "canonical", "fingerprint_of")

DIGEST = 16
"""Bytes: nobody finds two requests of one fingerprint by accident, nor by trying."""


_encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


def call_key(function: object, arguments: Mapping[str, Any]) -> str:
    """The key of one call: the function by its module and qualified name, and a digest of its arguments.

    Raises `TypeError` for an argument that has no canonical form (see `canonical`).
    """
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    digest = fingerprint_of(dict(arguments))
    # As long a name as fits beside the digest; one that was cut has a digest of its own, else two could be the same.
    if len(name.encode()) > 400:
        name = hashlib.blake2b(name.encode(), digest_size=DIGEST).hexdigest()
    return f"{name}:{digest}"


def fingerprint_of(value: object) -> str:
    """A digest of the canonical form of ``value``."""
    return hashlib.blake2b(canonical(value).encode(), digest_size=DIGEST).hexdigest()


def canonical(value: object) -> str:
    """``value`` as JSON that depends on nothing but the value: not on the order of a dict or a set, nor on white space.

    Beside what JSON has: tuples, sets, bytes, dataclasses, enums, `Decimal`, `UUID`, dates, and objects with a pydantic
    ``model_dump``. Those have their kind beside them, so that ``"1"`` and ``b"1"`` differ. Raises `TypeError` for
    others.
    """
    return _encode(_plain(value))


_ATOMS = frozenset((str, int, float, bool, type(None)))
"""Exactly these stay as they are: most of what there is, and not worth a dispatch."""


def _plain_all(values: Iterable[Any]) -> list[Any]:
    return [each if type(each) in _ATOMS else _plain(each) for each in values]


@functools.singledispatch
def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {_kind(value): _plain(fields)}
    if callable(dump := getattr(value, "model_dump", None)) and not isinstance(value, type):
        return {_kind(value): _plain(dump())}
    raise TypeError(
        f"a {type(value).__qualname__} has no canonical form: name a key by a template of its attributes, as in"
        ' "pay:{request.id}", or give a fingerprint of plain values'
    )


def _kind(value: object) -> str:
    return f"!{type(value).__module__}.{type(value).__qualname__}"


@_plain.register(str)
@_plain.register(int)
@_plain.register(float)
@_plain.register(type(None))
def _(value: Any) -> Any:
    return _member(value) if isinstance(value, enum.Enum) else value


@_plain.register(enum.Enum)
def _member(value: enum.Enum) -> Any:
    # What several flags are called together differs between Pythons.
    return {_kind(value): value.value if isinstance(value, enum.Flag) else value.name}


@_plain.register(list)
@_plain.register(tuple)
def _(value: Any) -> Any:
    return _plain_all(value)


@_plain.register(Mapping)
def _(value: Mapping[Any, Any]) -> Any:
    if {*map(type, value)} <= {str}:
        # A name that begins as a kind does gets one more, so that no dict passes for a value of that kind.
        names = [f"!{name}" if name[:1] == "!" else name for name in value]
        return dict(zip(names, _plain_all(value.values()), strict=True))
    return {"!dict": sorted([canonical(name), _plain(each)] for name, each in value.items())}


@_plain.register(Set)
def _(value: Set[Any]) -> Any:
    return {"!set": sorted(canonical(each) for each in value)}


@_plain.register(bytes)
@_plain.register(bytearray)
def _(value: bytes) -> Any:
    return {"!bytes": base64.b64encode(value).decode()}


@_plain.register(decimal.Decimal)
@_plain.register(uuid.UUID)
@_plain.register(datetime.timedelta)
def _(value: object) -> Any:
    return {f"!{type(value).__name__}": str(value)}


@_plain.register(datetime.date)
@_plain.register(datetime.time)
def _(value: Any) -> Any:
    return {f"!{type(value).__name__}": value.isoformat()}
