"""What a request says: its key, and what makes it the same request as another."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from decimal import Decimal
from typing import Any

from ..idempotency import fingerprint_of

__all__ = ("LARGEST_JSON", "LONGEST", "fingerprint", "parse_key")

LONGEST = 255
"""Characters of a key."""

LARGEST_JSON = 32 * 1024
"""Bytes of what is compared as JSON: it is read on the event loop, and a MiB of it takes half a second."""

# An Item whose value is a String (RFC 9651, sections 3.3 and 3.3.3), with parameters, which mean nothing here.
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_WORD = r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*"
_NUMBER = r"-?[0-9]{1,12}\.[0-9]{1,3}|@?-?[0-9]{1,15}"
_OTHERS = r':[A-Za-z0-9+/=]*:|\?[01]|%"(?:[ !#$&-~]|%[0-9a-f]{2})*"'
_PARAMETER = rf";\ *[a-z*][a-z0-9_.*-]*(?:=(?:{_STRING}|{_WORD}|{_NUMBER}|{_OTHERS}))?"
_ITEM = re.compile(rf"({_STRING})(?:{_PARAMETER})*")
_UNQUOTED = re.compile(r"[!#-+\--:<-\[\]-~]+")
"""What is visible, but for quotes, commas, semicolons and backslashes."""
_BOUNDARY = re.compile(r';\s*boundary="?([^";,]+)', re.IGNORECASE)


def parse_key(value: str, *, unquoted: bool) -> str:
    """The key in a header ``Idempotency-Key``; `ValueError` if it is not one, several, empty or too long."""
    value = value.strip(" ")
    if item := _ITEM.fullmatch(value):
        key = re.sub(r"\\(.)", r"\1", item[1][1:-1])
    elif unquoted and _UNQUOTED.fullmatch(value):
        key = value
    else:
        raise ValueError("not a quoted string")
    if not 0 < len(key) <= LONGEST:
        raise ValueError(f"not of 1 to {LONGEST} characters")
    return key


def fingerprint(query: str, content_type: str, body: bytes) -> list[str]:
    """The same for the same request, however its JSON is laid out (up to `LARGEST_JSON`) and its parts are parted."""
    kind, digest = content_type.partition(";")[0].strip().lower(), ""
    if (kind == "application/json" or kind.endswith("+json")) and len(body) <= LARGEST_JSON:
        with suppress(ValueError, ArithmeticError, RecursionError):  # then it is bytes like any other
            digest = fingerprint_of(_exactly(body))
    elif kind.startswith("multipart/") and (boundary := _BOUNDARY.search(content_type)):
        # Clients draw another boundary for each try.
        content_type, body = kind, body.replace(b"--" + boundary[1].encode("latin-1"), b"--")
    return [query, content_type, digest or hashlib.blake2b(body, digest_size=16).hexdigest()]


def _exactly(body: bytes) -> Any:
    """JSON without what Python would make equal: long fractions, and a name that comes twice."""
    return json.loads(body, parse_float=Decimal, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name comes twice")
    return names
