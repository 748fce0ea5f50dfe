"""For the tests of the flash sale: its databases, the services it asks, and one sale on them."""

from __future__ import annotations

import sys
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import anyio
import httpx
import pytest
from flash_sale import outbox as events, stock
from flash_sale.clients import Services
from flash_sale.live import snapshot
from flash_sale.saga import Saga
from flash_sale.services import database_of, deeds
from flash_sale.settings import Settings
from flash_sale.shop import Payment, checkout, create_app
from flash_sale.tables import create, engine_of, feed, now, orders, outbox, reading, steps
from flash_sale.trial.audit import audit, read
from redis import Redis
from sqlalchemy import create_engine, delete, select, text, update

import distlock
from distlock import DistLockError, Lease, LockLost, NotHeld
from distlock.contrib.sqlalchemy import StaleToken

from .postgres_servers import PostgresServer
from .programs import Program

__all__ = ("DATABASES", "Databases", "Killed", "Sale", "ServicesServer", "at_once")

DATABASES = ("sqlite", "postgresql")
LEASE = 600.0
"""Seconds; a test waits for none to end."""

ResultT = TypeVar("ResultT")


class Killed(BaseException):
    """Nothing after this line happens, as with SIGKILL; but locks are given back, so that nobody has to wait."""


class Databases:
    """Databases that nobody has used. One server for all of them, which starts when it is wanted. A context manager."""

    def __init__(self) -> None:
        self._exit = ExitStack()
        self._postgres: PostgresServer | None = None

    def __enter__(self) -> Databases:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def new(self, kind: str, folder: Path) -> str:
        """Its URL."""
        if kind == "sqlite":
            return f"sqlite:///{folder}/shop.db"
        if self._postgres is None:
            self._postgres = self._exit.enter_context(PostgresServer())
        name = f"sale_{uuid.uuid4().hex}"
        maker = create_engine(self._postgres.url, isolation_level="AUTOCOMMIT")
        with maker.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
            connection.execute(text(f"ALTER DATABASE {name} SET lock_timeout = '30s'"))  # for ever, here
        maker.dispose()
        return self._postgres.url.removesuffix("postgres") + name


class ServicesServer(Program):
    """Payments, parcels and letters, as they are served."""

    start_timeout = 60.0  # it imports a framework

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def clear(self) -> None:
        """Nobody has asked for anything."""
        engine = engine_of(f"sqlite:///{self.folder}/services.db")
        with engine.begin() as connection:
            connection.execute(delete(deeds))
        engine.dispose()

    def _program(self) -> str:
        return sys.executable

    def _arguments(self) -> list[str]:
        return ["-m", "uvicorn", "--factory", "flash_sale.services:create_app", "--port", str(self.port)]

    def _environment(self) -> Mapping[str, str]:
        settings = Settings(database="", redis="", services="", folder=str(self.folder), slow=0, outages=2)
        return {**settings.environment(), "PYTHONPATH": str(Path(__file__).parent.parent / "docs" / "tutorials")}

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).text == '"well"'
        except httpx.HTTPError as error:
            raise RuntimeError from error


class Sale:
    """A shop with its books, and without any process."""

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        self.settings = settings
        self._stack = stack
        self.engine = engine_of(settings.database)
        stack.callback(self.engine.dispose)
        create(self.engine, settings.stock)
        self.locks = self.manager()
        self.redis = stack.enter_context(Redis.from_url(settings.redis, decode_responses=True))

    def manager(self) -> distlock.Manager:
        """As another process has one."""
        return self._stack.enter_context(distlock.connect(self.settings.redis, namespace="flash"))

    # Customers

    def reserve(self, customer: str = "", quantity: int = 1) -> str:
        return stock.reserve(self.engine, self.settings, customer or str(uuid.uuid4()), quantity)

    def check_out(self, reservation: str, card: str = "good", address: str = "home", purchase: str = "") -> str | None:
        """``purchase``: its key; the same for each time if there is none."""
        payment = Payment(reservation=reservation, card=card, address=address)
        return checkout(self.engine, payment, self.settings.price, purchase or f"of {reservation}")

    def post(self, path: str, key: str, **body: object) -> httpx.Response:
        """What a process of the shop answers that has just been started."""

        async def ask() -> httpx.Response:
            app = create_app(self.settings)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client,
            ):
                return await client.post(path, json=body, headers={"Idempotency-Key": f'"{key}"'})

        return anyio.run(ask)

    def order(self, card: str = "good", address: str = "home", quantity: int = 1) -> str:
        placed = self.check_out(self.reserve(quantity=quantity), card, address)
        assert placed is not None
        return placed

    # Workers

    def saga(
        self, kind: type[Saga] = Saga, services: Callable[[Settings], Services] = Services, **settings: Any
    ) -> Saga:
        """A worker of its own."""
        ours = replace(self.settings, **settings)
        asking = services(ours)
        self._stack.callback(asking._client.close)
        return kind(self.engine, self.manager(), asking, ours)

    def drive(self, saga: Saga | None = None) -> None:
        """All that is due, until nothing is."""
        saga = saga or self.saga()
        while found := saga.overdue():
            for order in found:
                saga.advance(order)

    def elect(self, name: str) -> Lease:
        return self.held(self.locks.lock(name, ttl=LEASE).acquire())

    def held(self, lease: Lease | None) -> Lease:
        """It is given back after the test, if it is still there."""
        assert lease is not None
        self._stack.callback(_let_go, lease)
        return lease

    def depose(self, lease: Lease) -> None:
        """Its holder does not know: it was stopped, and its time is over by the clock of the store."""
        assert self.locks.force_release(lease.key, token=lease.token)

    def publish(self, monkeypatch: pytest.MonkeyPatch, lease: Lease | None = None) -> None:
        """What is there, by the one who was elected last."""
        lease = lease or self.elect("publisher")
        with monkeypatch.context() as patch:
            patch.setattr(events, "time", SimpleNamespace(sleep=lambda seconds: _let_go(lease)))
            with suppress(NotHeld):
                events.publish(self.engine, self.redis, lease)

    def consume(self, lease: Lease | None = None) -> None:
        """What is there."""
        lease = lease or self.elect("consumer")
        reader: Any = _Reader(self.redis, lease)
        try:
            events.consume(self.engine, reader, lease)
        except StaleToken:
            raise
        except (NotHeld, LockLost):
            return

    # Books

    def live(self) -> dict[str, Any]:
        return snapshot(self.engine, self.locks, self.settings)

    def state(self, order: str) -> str:
        with reading(self.engine) as connection:
            return str(connection.scalars(select(orders.c.state).where(orders.c.id == order)).one())

    def steps(self, order: str) -> list[str]:
        """Their states."""
        with reading(self.engine) as connection:
            these = select(steps.c.state).where(steps.c.order == order).order_by(steps.c.position)
            return [*connection.scalars(these)]

    def events(self, order: str) -> list[str]:
        """What the order's events are, by their numbers."""
        with reading(self.engine) as connection:
            these = select(outbox.c.number, outbox.c.type).where(outbox.c.key == order).order_by(outbox.c.id)
            found = connection.execute(these).all()
        assert [event.number for event in found] == [*range(1, len(found) + 1)]
        return [event.type for event in found]

    def heard(self) -> list[tuple[str, str]]:
        """What the consumer has made of the stream: orders and types, as they came."""
        with reading(self.engine) as connection:
            return [(row.key, row.type) for row in connection.execute(select(feed).order_by(feed.c.seen))]

    def deeds(self, order: str) -> dict[str, str]:
        """Which there are, and what has become of them."""
        theirs = engine_of(database_of(self.settings))
        with reading(theirs) as connection:
            found = connection.execute(select(deeds.c.kind, deeds.c.state).where(deeds.c.order == order)).all()
        theirs.dispose()
        assert max(Counter(deed.kind for deed in found).values(), default=0) <= 1
        return {deed.kind: deed.state for deed in found}

    def make_due(self, **values: Any) -> None:
        """Time goes by."""
        with self.engine.begin() as connection:
            connection.execute(update(steps).where(steps.c.due_at.is_not(None)).values(due_at=now(), **values))

    def breaches(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What the audit finds when everything has been published and consumed."""
        self.publish(monkeypatch)
        self.consume()
        findings = audit(read(self.settings, ()))
        return [f"{finding.claim}: {breach}" for finding in findings for breach in finding.breaches]


class _Reader:
    """The stream, for a consumer who goes at its end."""

    def __init__(self, redis: Redis, lease: Lease) -> None:
        self._redis = redis
        self._lease = lease

    def xread(self, streams: Any, *, count: int, block: int) -> Any:
        answer = self._redis.xread(streams, count=count)
        if not answer:
            _let_go(self._lease)
        return answer

    def xrange(self, *args: Any, **options: Any) -> Any:
        return self._redis.xrange(*args, **options)


def _let_go(lease: Lease) -> None:
    with suppress(DistLockError):
        lease.release()


def at_once(number: int, work: Callable[[int], ResultT]) -> list[ResultT]:
    """What came of it, in as many threads."""
    with ThreadPoolExecutor(number) as pool:
        return [*pool.map(work, range(number))]
