"""What ``Idempotency-Key`` costs an app: called in process, over a store that costs next to nothing."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import distlock
from distlock.contrib import asgi, wsgi

from ._machine import CLIENT, awake, description, pin
from ._measure import Contender, Pace, Report, Target, compare

__all__ = ("in_process",)

ROUNDS = 200
BODY = json.dumps({"order": 4711, "items": [{"sku": f"sku-{number}", "count": 2} for number in range(10)]}).encode()
REPLY = json.dumps({"id": 7, "state": "paid"}).encode()
HEADERS = [("content-type", "application/json"), ("content-length", str(len(REPLY)))]
TARGET = (Target(150),)
"""µs of a first request or a retry, all in all: the bare app is a few of them."""


def in_process(pace: Pace) -> Report:
    """A request with a body of some hundred bytes of JSON."""
    loop = asyncio.new_event_loop()
    with awake(), distlock.connect("memory://") as locks:
        pin(0, CLIENT)
        # Kept for a second: what a run leaves behind does not weigh on the next.
        options = asgi.IdempotencyOptions(ttl=1)
        replayed = asgi.IdempotencyOptions(ttl=3600)
        contenders = (
            Contender("bare ASGI", _asgi(loop, asgi_app)),
            Contender("bare WSGI", _wsgi(wsgi_app)),
            Contender(
                "ASGI first", _asgi(loop, asgi.IdempotencyMiddleware(asgi_app, locks, options), new=True), TARGET
            ),
            Contender("WSGI first", _wsgi(wsgi.IdempotencyMiddleware(wsgi_app, locks, options), new=True), TARGET),
            Contender("ASGI retry", _asgi(loop, asgi.IdempotencyMiddleware(asgi_app, locks, replayed)), TARGET),
            Contender("WSGI retry", _wsgi(wsgi.IdempotencyMiddleware(wsgi_app, locks, replayed)), TARGET),
            Contender("ASGI lock", _asgi(loop, asgi.LockMiddleware(asgi_app, lambda scope: "k", locks))),
            Contender("WSGI lock", _wsgi(wsgi.LockMiddleware(wsgi_app, lambda environ: "k", locks))),
        )
        rows = compare(contenders, ROUNDS, pace)
    loop.close()
    return Report("http", "one request", rows, description())


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """Reads, and answers."""
    await receive()
    await send({"type": "http.response.start", "status": 201, "headers": _ENCODED})
    await send({"type": "http.response.body", "body": REPLY})


_ENCODED = [(name.encode(), value.encode()) for name, value in HEADERS]


def wsgi_app(environ: Any, start_response: Any) -> Iterable[bytes]:
    """The same."""
    environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("201 Created", HEADERS)
    return [REPLY]


def _asgi(loop: asyncio.AbstractEventLoop, app: Any, *, new: bool = False) -> Callable[[int], None]:
    """``new``: each request has a key of its own."""
    keys = count()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    scope = {"type": "http", "method": "POST", "path": "/orders", "query_string": b""}

    async def receive() -> Any:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def requests(times: int) -> None:
        for _ in range(times):
            key = b'"%d"' % next(keys) if new else b'"same"'
            await app({**scope, "headers": [*headers, (b"idempotency-key", key)]}, receive, send)

    return lambda times: loop.run_until_complete(requests(times))


def _wsgi(app: Any, *, new: bool = False) -> Callable[[int], None]:
    keys = count()
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/orders", "CONTENT_TYPE": "application/json"}

    def run(times: int) -> None:
        for _ in range(times):
            key = f'"{next(keys)}"' if new else '"same"'
            more = {"HTTP_IDEMPOTENCY_KEY": key, "CONTENT_LENGTH": str(len(BODY)), "wsgi.input": io.BytesIO(BODY)}
            chunks = app({**environ, **more}, _start_response)
            b"".join(chunks)
            getattr(chunks, "close", _nothing)()

    return run


def _start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
    return _nothing


def _nothing(data: bytes = b"") -> None:
    pass
