"""Redlock: one lock on a majority of several Redis servers."""

from ._backend import RedlockBackend, open_url

__all__ = ("RedlockBackend", "open_url")
