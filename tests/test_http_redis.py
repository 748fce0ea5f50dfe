"""``Idempotency-Key`` over Redis: what is sent there, how often, and what happens while nobody answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import distlock
from distlock.contrib.asgi import IdempotencyMiddleware
from distlock.testing.proxy import FaultProxy

from .http_tools import KINDS, Given, Shop, problem_of
from .servers import RedisServer
from .test_http_asgi import Talk, Till

SECRETS = (b"cookie-secret", b"token-secret", b"client-secret", b"basic-secret", b"body-secret", b"key-secret")


@contextmanager
def overheard(server: RedisServer) -> Iterator[Any]:
    """Gives a function for all that was asked of ``server`` since."""
    with socket.create_connection(server.address, 30) as line, line.makefile("rwb") as talk:
        talk.write(b"MONITOR\r\n")
        talk.flush()
        assert talk.readline() == b"+OK\r\n"

        def all_of_it() -> bytes:
            server.command("ECHO", "the end")
            heard = b""
            while b"the end" not in heard:
                heard += talk.readline()
            return heard

        yield all_of_it


@pytest.mark.may_block
@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_reaches_the_store(kind: str, redis_server: RedisServer) -> None:
    """Neither of requests nor of responses, but for bodies of responses, which are what is kept."""
    given = {
        "set-cookie": "session=cookie-secret",
        "authorization": "Bearer token-secret",
        "www-authenticate": "Basic basic-secret",
        "proxy-authenticate": "Basic basic-secret",
        "location": "/kept",
    }
    sent = {"authorization": "Bearer token-secret", "cookie": "session=cookie-secret"}
    with (
        overheard(redis_server) as all_of_it,
        distlock.connect(redis_server.url) as locks,
        Shop(kind, locks) as shop,
    ):
        shop.protect(client=lambda scope: "client-secret")
        shop.handler = lambda asked: Given(headers=given)
        for key in ('"key-secret"', '"key-secret"', '"key-secret-2"'):
            assert shop.ask(b'"body-secret"', key=key, headers=sent).status_code == 201
        heard = all_of_it()
    assert b"/kept" in heard
    assert [secret for secret in SECRETS if secret in heard] == []


@pytest.mark.may_block
@pytest.mark.parametrize("kind", KINDS)
def test_while_the_store_is_down_nothing_is_done_unless_told(kind: str, redis_server: RedisServer) -> None:
    with (
        distlock.connect(redis_server.url) as locks,
        distlock.connect(redis_server.url, op_timeout=1) as impatient,
        Shop(kind, locks) as shop,
    ):
        assert shop.ask().status_code == 201
        redis_server.stop()
        shop.locks = impatient
        shop.protect()
        refused = shop.ask()
        assert problem_of(refused) == (503, "unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert len(shop.asked) == 1
        shop.lock(lambda scope: "k")
        assert problem_of(shop.ask())[0] == 503
        assert len(shop.asked) == 1
        shop.protect(fail_open=True)
        assert [shop.ask(b"body").status_code for _ in range(2)] == [201, 201]
        assert [asked.body for asked in shop.asked] == [b"{}", b"body", b"body"]


@pytest.mark.may_block
@pytest.mark.parametrize("kind", KINDS)
def test_a_response_that_cannot_be_kept_for_now_is_passed_on(kind: str, redis_server: RedisServer) -> None:
    """And kept later: nobody does it again meanwhile."""
    with (
        distlock.connect(redis_server.url, op_timeout=5) as locks,
        distlock.connect(redis_server.url, op_timeout=1) as impatient,
        Shop(kind, locks) as shop,
    ):

        def handler(asked: Any) -> Given:
            redis_server.pause()
            return Given()

        shop.handler = handler
        try:
            assert shop.ask().status_code == 201
            shop.locks = impatient
            shop.protect()
            assert shop.ask().status_code == 503
        finally:
            redis_server.resume()
        shop.locks = locks
        shop.protect(wait=60)
        again = shop.ask()
        assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
        assert len(shop.asked) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_request_is_two_round_trips_and_a_retry_one(redis_proxy: FaultProxy) -> None:
    host, port = redis_proxy.address
    async with distlock.connect(f"redis://{host}:{port}/0") as locks:
        app = IdempotencyMiddleware(Till(), locks)
        await Talk(headers=[(b"idempotency-key", b"?")]).with_(app)
        await Talk(path="/warm").with_(app)
        for commands in (2, 1, 1):
            before = redis_proxy.traffic.commands
            assert (await Talk().with_(app)).status == 200
            assert redis_proxy.traffic.commands - before == commands
