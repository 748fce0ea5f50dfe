"""Customers of the flash sale, who buy without its page."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx

__all__ = ("Customer", "buy")


class Customer(NamedTuple):
    """One who buys one piece."""

    name: str
    card: str | None = "ok"
    """None: the piece is reserved, and no more."""
    address: str = "home"


def buy(url: str, *customers: Customer) -> None:
    """All of them at once; on return each has an order."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client, ThreadPoolExecutor(8) as pool:

        def ask(path: str, wish: dict[str, object]) -> dict[str, object]:
            reply = client.post(path, json=wish, headers={"Idempotency-Key": f'"{uuid.uuid4()}"'})
            answer: dict[str, object] = reply.raise_for_status().json()
            return answer

        def order(customer: Customer) -> None:
            reserved = ask("/reservations", {"customer": customer.name, "quantity": 1})
            if customer.card is None:
                return
            how = {"card": customer.card, "address": customer.address}
            ask("/checkout", {"reservation": reserved["reservation"], **how})

        list(pool.map(order, customers))
