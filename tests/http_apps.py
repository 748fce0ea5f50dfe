"""The same shop in four frameworks, for real servers: each paid order is a line of ``LEDGER``, and needs ``GATE``.

``LEASE``: seconds after which a retry takes over.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import anyio

import distlock
from distlock.contrib import asgi, wsgi

__all__ = ("django", "fastapi", "flask", "starlette")

urlpatterns: list[Any] = []


def options() -> asgi.IdempotencyOptions:
    return asgi.IdempotencyOptions(required=True, wait=60, lease=float(os.environ["LEASE"]), body_limit=1000)


def locks() -> distlock.Manager:
    return distlock.connect(os.environ["DISTLOCK_URL"], namespace="shop")


def begin(order: str) -> str:
    """Writes it down, and says who did."""
    with open(os.environ["LEDGER"], "a", encoding="utf-8") as ledger:
        ledger.write(f"{os.getpid()} {order}\n")
    return f"{order} paid by {os.getpid()}"


def is_open() -> bool:
    return Path(os.environ["GATE"]).exists()


def pay(order: str) -> str:
    """Stands still until the gate is open."""
    said = begin(order)
    while not is_open():
        time.sleep(0.01)
    return said


async def pay_async(order: str) -> str:
    """`pay` for event loops."""
    said = begin(order)
    while not is_open():  # noqa: ASYNC110 - another process opens it
        await anyio.sleep(0.01)
    return said


def fastapi() -> Any:
    from fastapi import Body, FastAPI
    from fastapi.responses import PlainTextResponse

    app = FastAPI()
    app.add_middleware(asgi.IdempotencyMiddleware, locks=locks(), options=options())

    @app.get("/")
    async def ready() -> str:
        return "ready"

    @app.post("/pay", status_code=201, response_class=PlainTextResponse)
    async def pay_one(order: str = Body()) -> str:
        return await pay_async(order)

    return app


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def ready(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ready")

    async def pay_one(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await pay_async((await request.body()).decode()), 201)

    app = Starlette(routes=[Route("/", ready), Route("/pay", pay_one, methods=["POST"])])
    return asgi.IdempotencyMiddleware(app, locks(), options())


def flask() -> Any:
    from flask import Flask, request

    app = Flask(__name__)

    @app.get("/")
    def ready() -> str:
        return "ready"

    @app.post("/pay")
    def pay_one() -> tuple[str, int]:
        return pay(request.get_data(as_text=True)), 201

    app.wsgi_app = wsgi.IdempotencyMiddleware(app.wsgi_app, locks(), options())  # type: ignore[method-assign]
    return app


def django() -> Any:
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    def ready(request: HttpRequest) -> HttpResponse:
        return HttpResponse("ready")

    def pay_one(request: HttpRequest) -> HttpResponse:
        return HttpResponse(pay(request.body.decode()), status=201)

    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="for-tests")
    urlpatterns[:] = [path("", ready), path("pay", pay_one)]
    return wsgi.IdempotencyMiddleware(get_wsgi_application(), locks(), options())
