"""One app, served in process as ASGI on asyncio, as ASGI on trio and as WSGI."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import httpx

import distlock
from distlock.contrib import asgi, wsgi

__all__ = ("KINDS", "Asked", "Given", "Handler", "Shop", "problem_of")

KINDS = ("asgi on asyncio", "asgi on trio", "wsgi")


class Asked(NamedTuple):
    """What the app sees of a request."""

    method: str
    path: str
    body: bytes


class Given(NamedTuple):
    """What it answers. More than one chunk has no length, unless one is among the headers."""

    status: int = 201
    headers: Mapping[str, str] = {}
    chunks: Iterable[bytes] = (b"done",)


Handler = Callable[[Asked], Given]


class Shop:
    """An app in front of which a middleware stands. Each request runs in a thread, with an event loop if it needs one.

    A context manager.
    """

    def __init__(self, kind: str, locks: distlock.Manager | None = None) -> None:
        self._loop = kind.rpartition(" ")[2] if kind.startswith("asgi") else ""
        self._exit = ExitStack()
        self._pool = self._exit.enter_context(ThreadPoolExecutor(20))
        self.locks = locks or self._exit.enter_context(distlock.connect(f"memory://{uuid.uuid4()}"))
        self.asked: list[Asked] = []
        self.handler: Handler = lambda asked: Given()
        self.module: Any = asgi if self._loop else wsgi
        self._bare: Any = self._asgi if self._loop else self._wsgi
        self._app: Any = self._bare
        self.protect()

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    # What is served

    def protect(self, *, over: bool = False, **options: Any) -> None:
        """By an `IdempotencyMiddleware` with these options. ``over``: in front of what already stands there."""
        inner = self._app if over else self._bare
        self._app = self.module.IdempotencyMiddleware(inner, self.locks, asgi.IdempotencyOptions(**options))

    def lock(self, key: Callable[[Any], str | None], **options: Any) -> None:
        """By a `LockMiddleware`."""
        self._app = self.module.LockMiddleware(self._bare, key, self.locks, **options)

    # Requests

    def ask(self, body: bytes = b"{}", key: str | None = '"k"', path: str = "/pay", **request: Any) -> httpx.Response:
        """One request, answered."""
        headers = {"content-type": "application/json", **request.pop("headers", {})}
        if key is not None:
            headers["idempotency-key"] = key
        call = partial(self._ask, request.pop("method", "POST"), path, content=body, headers=headers, **request)
        return anyio.run(call, backend=self._loop) if self._loop else self._ask_wsgi(*call.args, **call.keywords)

    def start(self, *args: Any, **request: Any) -> Future[httpx.Response]:
        """One request, in a thread of its own."""
        return self._pool.submit(partial(self.ask, *args, **request))

    async def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.test") as client:
            return await client.request(method, path, **request)

    def _ask_wsgi(self, method: str, path: str, **request: Any) -> httpx.Response:
        with httpx.Client(transport=httpx.WSGITransport(self._app), base_url="http://shop.test") as client:
            return client.request(method, path, **request)

    # The app

    async def _asgi(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        given = await anyio.to_thread.run_sync(self._handle, Asked(scope["method"], scope["path"], body))
        headers = [(name.encode(), value.encode()) for name, value in given.headers.items()]
        await send({"type": "http.response.start", "status": given.status, "headers": headers})
        chunks = [*given.chunks] or [b""]
        for chunk in chunks[:-1]:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": chunks[-1]})

    def _wsgi(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        given = self._handle(Asked(environ["REQUEST_METHOD"], environ["PATH_INFO"], body))
        start_response(f"{given.status} Whatever", [*given.headers.items()])
        return (chunk for chunk in given.chunks)

    def _handle(self, asked: Asked) -> Given:
        self.asked.append(asked)
        return self.handler(asked)


def problem_of(response: httpx.Response) -> tuple[int, str]:
    """The status, and which problem it is."""
    assert response.headers["content-type"] == "application/problem+json"
    said = response.json()
    assert said["status"] == response.status_code
    assert said["title"]
    assert said["detail"]
    return response.status_code, said["type"].rpartition("#")[2]
