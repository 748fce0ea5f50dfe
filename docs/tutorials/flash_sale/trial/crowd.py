"""Five hundred people who want the last lamp, at the same time."""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx

from ..running.processes import CannotStart
from .audit import Purchase

__all__ = ("Crowd", "Customer", "ask", "crowd_of", "new_key")

CARDS = ("ok", "slow", "ok", "lost-reply", "ok", "declined", "ok", "refund-fails")
PAUSE = 0.3
"""Seconds between two tries."""
PATIENCE = 120.0
"""Seconds for which somebody tries again who gets no answer."""
TRIES = 4
"""How often somebody asks who was told that all is sold: reservations expire."""


@dataclass
class Customer:
    """What one of them does."""

    name: str
    arrives: float
    """Seconds after the beginning."""
    card: str = "ok"
    address: str = "home"
    quantity: int = 1
    clicks: int = 1
    """How often each button is clicked, at the same time."""
    baskets: int = 1
    """How many purchases, at the same time."""
    pays: bool = True
    """Does not just reserve, and go away."""


def crowd_of(clients: int, rush: float, limit: int) -> list[Customer]:
    """The same ones each time. They arrive within ``rush`` seconds."""
    dice = random.Random(1)
    customers = []
    for number in range(clients):
        who = Customer(f"customer {number}", dice.uniform(0, rush), CARDS[number % len(CARDS)])
        if who.card == "refund-fails" or number % 20 == 10:
            who.address = "nowhere"
        who.clicks = 1 + number % 2
        who.pays = number % 11 != 5
        if number % 5 == 4:
            who.quantity, who.baskets = limit, 2
        customers.append(who)
    return customers


@dataclass
class Crowd:
    """Drives the customers against a shop."""

    url: str
    customers: Sequence[Customer]
    purchases: list[Purchase] = field(default_factory=list)

    async def buy(self) -> None:
        """Returns when the last one has gone."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False, limits=limits) as client,
            anyio.create_task_group() as tasks,
        ):
            for customer in self.customers:
                tasks.start_soon(self._come, client, customer)

    @property
    def bought(self) -> int:
        """Purchases so far that have an order."""
        return sum(bool(purchase.answers) for purchase in self.purchases)

    async def _come(self, client: httpx.AsyncClient, customer: Customer) -> None:
        await anyio.sleep(customer.arrives)
        async with anyio.create_task_group() as tasks:
            for _ in range(customer.baskets):
                purchase, reservation = Purchase(new_key()), new_key()
                self.purchases.append(purchase)
                for _ in range(customer.clicks):
                    tasks.start_soon(self._click, client, customer, purchase, reservation)

    async def _click(self, client: httpx.AsyncClient, customer: Customer, purchase: Purchase, key: str) -> None:
        """Both buttons, one after the other. The keys are drawn once for each purchase."""
        wish = {"customer": customer.name, "quantity": customer.quantity}
        for attempt in range(TRIES):
            await anyio.sleep(PAUSE * attempt)
            reserved = await ask(client, "/reservations", wish, key)
            if reserved.status_code == 201:
                break
        else:
            return
        if customer.pays:
            payment = {"card": customer.card, "address": customer.address}
            payment["reservation"] = reserved.json()["reservation"]
            ordered = await ask(client, "/checkout", payment, purchase.key)
            if ordered.status_code == 202:
                purchase.answers.append(ordered.json()["order"])


async def ask(client: httpx.AsyncClient, path: str, body: Mapping[str, Any], key: str) -> httpx.Response:
    """An answer, however often it takes to get one; `CannotStart` if there is none. The same key each time: it is the
    same request."""
    deadline = anyio.current_time() + PATIENCE
    while True:
        try:
            answer = await client.post(path, json=body, headers={"Idempotency-Key": key})
            if answer.status_code < 500 and "retry-after" not in answer.headers:
                return answer
            said = f"{answer.status_code} {answer.text}"
        except httpx.TransportError as error:
            said = repr(error)
        if anyio.current_time() > deadline:
            raise CannotStart(f"{path} gave no answer in {PATIENCE} s, but {said}")
        await anyio.sleep(PAUSE)


def new_key() -> str:
    return f'"{uuid.uuid4()}"'
