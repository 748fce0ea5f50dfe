"""What customers ask. Any number of processes; they share the database and Redis, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import IntegrityError

import distlock
from distlock.contrib.asgi import IdempotencyMiddleware, IdempotencyOptions

from . import stock
from .live import PERIOD, Live
from .saga import place
from .settings import Settings
from .tables import engine_of, orders, reading, reservations

__all__ = ("create_app",)

PAGE = Path(__file__).parent / "page.html"


Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
"""What a row takes, on PostgreSQL too, and the URL by which a step is undone: what these refuse, hangs for ever."""


class Wish(BaseModel):
    """To have so many, for a while."""

    customer: Text = Field(min_length=1, max_length=64)
    quantity: int = Field(ge=1, le=1000)


class Payment(BaseModel):
    """To buy what was reserved."""

    reservation: Text
    card: Text
    address: Text


def create_app(settings: Settings | None = None) -> FastAPI:
    """For ``uvicorn --factory``."""
    settings = settings or Settings.of()
    engine = engine_of(settings.database)
    locks = distlock.connect(settings.redis, namespace="flash")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with locks:
            yield
        engine.dispose()

    app = FastAPI(title="Flash sale", lifespan=lifespan)
    protect(app, locks, settings)
    picture = Live(engine, locks, settings)

    @app.post("/reservations", status_code=201)
    def reserve(wish: Wish) -> dict[str, object]:
        try:
            reservation = stock.reserve(engine, settings, wish.customer, wish.quantity)
        except stock.SoldOut:
            raise HTTPException(409, "sold out") from None
        except stock.LimitReached:
            raise HTTPException(409, "limit") from None
        return {"reservation": reservation, "expires_in": settings.reservation}

    @app.post("/checkout", status_code=202)
    def check_out(payment: Payment, idempotency_key: Annotated[str, Header(max_length=600)]) -> dict[str, str]:
        order = checkout(engine, payment, settings.price, idempotency_key)
        if order is None:
            raise HTTPException(410, "the reservation has expired, or is ordered already")
        return {"order": order}

    @app.get("/health")
    def health() -> str:
        return "well"

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.get("/live")
    def live() -> StreamingResponse:
        return StreamingResponse(_events(picture), media_type="text/event-stream")

    return app


def protect(app: FastAPI, locks: distlock.Manager, settings: Settings) -> None:
    """Requests with the same ``Idempotency-Key`` are carried out once, and all get that answer."""
    options = IdempotencyOptions(required=True, wait=10, lease=settings.lease)
    app.add_middleware(IdempotencyMiddleware, locks=locks, options=options)


def checkout(engine: Engine, payment: Payment, price: int, purchase: str) -> str | None:
    """The order of a purchase: a new one or, if it has one already, that. None: the reservation has expired, or is
    ordered by another purchase."""
    with suppress(IntegrityError), engine.begin() as connection:  # raised if the purchase has an order: see `orders`
        if stock.order(connection, payment.reservation):
            which = select(reservations.c.customer, reservations.c.quantity)
            customer, quantity = connection.execute(which.where(reservations.c.id == payment.reservation)).one()
            order = {
                "id": str(uuid.uuid4()),
                "reservation": payment.reservation,
                "purchase": purchase,
                "customer": customer,
                "quantity": quantity,
                "cents": quantity * price,
                "card": payment.card,
                "address": payment.address,
            }
            place(connection, order)
            return str(order["id"])
    with reading(engine) as connection:
        return order_of(connection, payment.reservation, purchase)


def order_of(connection: Connection, reservation: str, purchase: str) -> str | None:
    """What this very purchase of this customer ordered before, perhaps of another reservation: after Redis has
    forgotten the key of the first. Another purchase of the same reservation may have another card: no."""
    customer = select(reservations.c.customer).where(reservations.c.id == reservation).scalar_subquery()
    same = orders.c.customer == customer, orders.c.purchase == purchase
    return connection.scalars(select(orders.c.id).where(*same)).first()


async def _events(picture: Live) -> AsyncIterator[str]:
    """Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), until the browser goes."""
    while True:
        yield f"data: {await anyio.to_thread.run_sync(picture.text)}\n\n"
        await anyio.sleep(PERIOD)
