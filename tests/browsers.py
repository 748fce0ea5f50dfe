"""Debian's Chromium, driven by Playwright, which brings no browser of its own here."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import anyio
from playwright.sync_api import Browser, sync_playwright

from .programs import missing

__all__ = ("beside", "chromium")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, without a window. Without one the test fails in CI and is skipped elsewhere.

    While it is there an event loop runs in this thread, so no other can; see `beside`.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        missing("no chromium on PATH: run scripts/install-servers")
    with sync_playwright() as playwright:
        # Its sandbox wants rights that root in a container has not; it sees pages of this repository alone.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def beside(function: Callable[[], Awaitable[None]]) -> None:
    """``anyio.run`` in a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(anyio.run, function).result()
