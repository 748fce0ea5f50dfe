"""Those who take the money, the parcels and the letters: another company, with a database of its own.

Each deed is asked for under an id, and done once for each id. How it goes is said by the card (``slow``, ``declined``,
``lost-reply``, ``refund-fails``) and the address (``nowhere``).
"""

from __future__ import annotations

import time

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, String, Table, update

from .settings import Settings
from .tables import engine_of, insert_new

__all__ = ("create_app", "database_of", "deeds")

metadata = MetaData()
deeds = Table(
    "deeds",
    metadata,
    Column("id", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("order", String, nullable=False),
    Column("cents", Integer, nullable=False),
    Column("state", String, nullable=False),  # done, undone
    Column("asked", Integer, nullable=False),  # how often
)


class Order(BaseModel):
    """What is to be paid, shipped or told of."""

    order: str
    cents: int
    card: str
    address: str


def database_of(settings: Settings) -> str:
    """Its URL. No business of the shop's, but the audit looks into it."""
    return f"sqlite:///{settings.folder}/services.db"


def create_app(settings: Settings | None = None) -> FastAPI:
    """For ``uvicorn --factory``."""
    settings = settings or Settings.of()
    engine = engine_of(database_of(settings))
    metadata.create_all(engine)
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "well"

    @app.put("/{kind}/{deed}")
    def do(kind: str, deed: str, order: Order) -> dict[str, str]:
        if kind == "charges" and order.card == "declined":
            raise HTTPException(402, "the card was declined")
        if kind == "parcels" and order.address == "nowhere":
            raise HTTPException(422, "no such address")
        if kind == "charges" and order.card == "slow":
            time.sleep(settings.slow)
        asked, state = _enter(kind, deed, order.order, order.cents, "done")
        if state == "undone":
            raise HTTPException(409, "it was undone before it was done")
        if kind == "charges" and order.card == "lost-reply" and asked == 1:
            raise HTTPException(503, "the answer got lost")
        return {"state": state}

    @app.delete("/{kind}/{deed}")
    def undo(kind: str, deed: str, order: str, card: str) -> dict[str, str]:
        if kind == "charges" and card == "refund-fails" and 0 < _ask_again(deed) <= settings.outages + 1:
            raise HTTPException(503, "refunds are down")
        _enter(kind, deed, order, 0, "undone")  # of what was never asked for too: it may still be on its way
        with engine.begin() as connection:
            connection.execute(update(deeds).where(deeds.c.id == deed).values(state="undone"))
        return {"state": "undone"}

    def _enter(kind: str, deed: str, order: str, cents: int, state: str) -> tuple[int, str]:
        """How often it was asked for, and what it has come to. The first one decides."""
        values = {"kind": kind, "order": order, "cents": cents, "state": state, "asked": 0}
        with engine.begin() as connection:
            insert_new(connection, deeds, id=deed, **values)
            this = update(deeds).where(deeds.c.id == deed).values(asked=deeds.c.asked + 1)
            found = connection.execute(this.returning(deeds.c.asked, deeds.c.state)).one()
        return found.asked, found.state

    def _ask_again(deed: str) -> int:
        with engine.begin() as connection:
            this = update(deeds).where(deeds.c.id == deed).values(asked=deeds.c.asked + 1)
            return connection.scalars(this.returning(deeds.c.asked)).one_or_none() or 0

    return app
