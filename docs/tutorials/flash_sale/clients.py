"""How the workers ask the services."""

from __future__ import annotations

from typing import Any

import httpx
from sqlalchemy import Row

from .settings import Settings

__all__ = ("Refused", "Services", "Unavailable")

LATER = {408, 425, 429}
"""They are no refusal: the request took too long, came too early, or was one too many."""
PATHS = {"pay": "charges", "ship": "parcels", "notify": "letters"}


class Refused(Exception):
    """The service said no, and will say so again."""


class Unavailable(Exception):
    """No answer, or "try later". Nobody knows whether it was done."""


class Services:
    """Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._client = httpx.Client(base_url=settings.services, timeout=settings.patience, trust_env=False)

    def do(self, step: Row[Any]) -> None:
        """Pays, ships or tells: once, however often it is asked for. Raises `Refused` or `Unavailable`."""
        order = {"order": step.order, "cents": step.cents, "card": step.card, "address": step.address}
        self._ask("PUT", step, json=order)

    def undo(self, step: Row[Any]) -> None:
        """The opposite; if it was not done, it will not be done any more."""
        self._ask("DELETE", step, params={"order": step.order, "card": step.card})

    def step_id(self, step: Row[Any]) -> str:
        """By which a service knows that it was asked for this before."""
        return f"{step.order}-{step.name}"

    def _ask(self, method: str, step: Row[Any], **request: Any) -> None:
        try:
            answer = self._client.request(method, f"/{PATHS[step.name]}/{self.step_id(step)}", **request)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise Unavailable(f"{step.name}: no answer ({type(error).__name__})") from error
        if answer.is_client_error and answer.status_code not in LATER:
            raise Refused(f"{step.name}: {_detail(answer)}")
        if not answer.is_success:
            raise Unavailable(f"{step.name}: {_detail(answer)}")


def _detail(answer: httpx.Response) -> str:
    """Why, in its own words, as far as a database takes them; a proxy in between, or a service that broke, has none."""
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, TypeError, KeyError, RecursionError):
        detail = f"{answer.status_code} {answer.reason_phrase}"
    return detail.replace("\0", "?").encode(errors="replace").decode()
