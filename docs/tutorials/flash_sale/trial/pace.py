"""How fast the shop is, beside the same shop without distlock."""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
import httpx
from sqlalchemy import Engine, func, select

from ..running.console import run
from ..running.system import System
from ..settings import Settings
from ..tables import orders, reading
from .audit import reader
from .crowd import ask, new_key
from .databases import new_database

__all__ = ("Pace", "measure")

WARM = 2.0
"""Seconds that do not count."""
STUCK = 10.0
"""Seconds without progress, after which what is open stays so."""
GLANCE = 0.1


@dataclass
class Pace:
    """A number for each round, per second."""

    checkouts: list[float] = field(default_factory=list)
    completed: list[float] = field(default_factory=list)
    """Until the last order is."""

    median = staticmethod(statistics.median)


def measure(seconds: float, clients: int, rounds: int, server: str, tell: Callable[[str], None]) -> Sequence[Pace]:
    """Without distlock, and with it."""
    paces = Pace(), Pace()
    for turn in range(rounds):
        for pace, without in zip(paces, ("library", ""), strict=True):
            tell(f"round {turn + 1} of {rounds}, {'without distlock' if without else 'with it'}")
            with new_database(server) as database:
                checkouts, completed = _measure(seconds, clients, without, database)
            pace.checkouts.append(checkouts)
            pace.completed.append(completed)
    return paces


def _measure(seconds: float, clients: int, without: str, database: str) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="flash-sale-") as folder:
        settings = Settings(
            database=database, redis="", services="", folder=folder, stock=10**6, limit=10**6, without=without
        )
        with System(settings, publishers=1) as system:
            return run(_race, system, seconds, clients)


async def _race(system: System, seconds: float, clients: int) -> tuple[float, float]:
    done = 0
    begun = time.monotonic()

    async def buy(client: httpx.AsyncClient) -> None:
        nonlocal done
        while time.monotonic() < begun + WARM + seconds:
            wish = {"customer": str(uuid.uuid4()), "quantity": 1}
            reserved = await ask(client, "/reservations", wish, new_key())
            payment = {"reservation": reserved.raise_for_status().json()["reservation"], "card": "ok"}
            ordered = await ask(client, "/checkout", {**payment, "address": "home"}, new_key())
            ordered.raise_for_status()
            done += begun + WARM < time.monotonic() < begun + WARM + seconds

    # A connection for each request: those that are kept would make one process of the shop do most of the work.
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(base_url=system.url, timeout=60, trust_env=False, limits=limits) as client,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(clients):
            tasks.start_soon(buy, client)
    completed, ended = await _until_completed(system)
    return done / seconds, completed / (ended - begun)


async def _until_completed(system: System) -> tuple[int, float]:
    """How many orders were, and when the last of them was. Without a lock some never are."""
    before, since = 0, time.monotonic()
    with reader(system.settings.database) as engine:
        while time.monotonic() < since + STUCK:
            completed, waiting = await anyio.to_thread.run_sync(_count, engine)
            if completed != before:
                before, since = completed, time.monotonic()
            if not waiting:
                break
            await anyio.sleep(GLANCE)
    return before, since


def _count(engine: Engine) -> tuple[int, int]:
    """Orders that are completed, and those that are not yet."""
    with reading(engine) as connection:
        states = select(orders.c.state, func.count().label("number")).group_by(orders.c.state)
        counted = {each.state: each.number for each in connection.execute(states)}
    return counted.get("completed", 0), counted.get("placed", 0) + counted.get("compensating", 0)
