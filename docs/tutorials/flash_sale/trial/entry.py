"""The shop and its workers, with faults, or without a protection: what a sale on trial starts in their place."""

from __future__ import annotations

import sys

from fastapi import FastAPI

from .. import shop, worker
from ..settings import Settings
from . import faults, without

__all__ = ("create_app",)


def _arrange() -> None:
    settings = Settings.of()
    without.install(settings)
    faults.install(settings.folder, settings.faults)


def create_app() -> FastAPI:
    """For ``uvicorn --factory``."""
    _arrange()
    return shop.create_app()


if __name__ == "__main__":
    _arrange()
    worker.main(sys.argv[1])
