"""What every process of the shop is told, by environment variables ``FLASH_…``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

__all__ = ("Settings",)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All times are seconds."""

    database: str
    """A URL for SQLAlchemy: ``sqlite:////folder/shop.db`` or ``postgresql+psycopg://user@host/name``."""
    redis: str
    """Locks, what was answered to an ``Idempotency-Key``, and the stream of events."""
    services: str
    """Where payments, parcels and letters are asked for."""
    folder: str
    """For logs, and for the database of the services."""

    stock: int = 100
    limit: int = 2
    """Pieces a customer."""
    price: int = 1200
    """Cents a piece."""

    reservation: float = 20.0
    """How long a reservation waits for its checkout."""
    lease: float = 5.0
    """The ttl of every lock: how long the work of a process that died is left alone."""
    overdue: float = 3.0
    """After this time others look at a step that runs. Was its worker killed, or is it slow? The lock tells."""
    patience: float = 10.0
    """How long a payment, a parcel or a letter may take before its answer counts as lost."""
    attempts: int = 6
    """How often a step is tried before the order is given up. What is to be undone is tried for ever."""
    backoff: float = 0.1
    """Before the second attempt; twice as long before each further one, up to `longest`."""
    longest: float = 5.0
    slow: float = 4.0
    """How long a slow payment takes."""
    outages: int = 4
    """How often a refund that fails does so."""

    without: str = ""
    """A protection that is switched off, to see what it is for (`flash_sale.trial.without`)."""
    faults: str = ""
    """What is to happen at the worst moment (`flash_sale.trial.faults`), with commas between."""

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """What the variables say; those that are missing have their defaults, or are a KeyError."""
        given: dict[str, Any] = {}
        for field in fields(cls):
            kind = {"int": int, "float": float}.get(str(field.type), str)
            variable = f"FLASH_{field.name.upper()}"
            if variable in environment or field.default is MISSING:
                given[field.name] = kind(environment[variable])
        return cls(**given)

    def environment(self) -> dict[str, str]:
        """The variables, for another process."""
        return {f"FLASH_{field.name.upper()}": str(getattr(self, field.name)) for field in fields(self)}
