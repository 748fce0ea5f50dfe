"""What stands in the store for a claim that has a place of its own there, and what is read from it."""

from __future__ import annotations

import json
from collections.abc import Callable

from .base import Claim

__all__ = ("read", "record")

_scan_text: Callable[[str, int], tuple[str, int]] = json.JSONDecoder().raw_decode


def record(claim: Claim) -> bytes:
    """A version, who it is, and what it says of itself."""
    owner = json.dumps(claim.owner) if claim.owner else f'"{claim.id}"'
    return f"1 {owner} {claim.about}".encode()


def read(value: bytes, name: str) -> tuple[str, str]:
    """Whose it is, and what it says of itself. Others than distlock say nothing: they are known by their ``name``."""
    text = value.decode(errors="replace")
    if text.startswith('1 "'):
        try:
            owner, end = _scan_text(text, 2)
        except ValueError:
            pass
        else:
            return owner, text[end + 1 :]
    return f"unknown: {name}", ""
