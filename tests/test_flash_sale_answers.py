"""What the flash sale makes of what a service answers, whoever answers in its place."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from flash_sale.clients import Refused, Services, Unavailable
from flash_sale.settings import Settings

STEP: Any = SimpleNamespace(order="o", name="pay", cents=1, card="good", address="home")


class Answering(BaseHTTPRequestHandler):
    status = 200
    body = b""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(Answering.status)
        self.send_header("Content-Length", str(len(Answering.body)))
        self.end_headers()
        self.wfile.write(Answering.body)

    def log_message(self, *_: object) -> None:
        """It is quiet."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def services(url: str, tmp_path: Path) -> Iterator[Services]:
    services = Services(Settings(database="", redis="", services=url, folder=str(tmp_path)))
    yield services
    services._client.close()


@pytest.mark.parametrize(
    ("status", "body", "expected", "told"),
    [
        (402, b'{"detail": "the card was declined"}', Refused, "pay: the card was declined"),
        (404, b"<html>nothing here</html>", Refused, "pay: 404 Not Found"),
        (409, b'["a list"]', Refused, "pay: 409 Conflict"),
        (429, b"", Unavailable, "pay: 429 Too Many Requests"),
        (408, b"", Unavailable, "pay: 408 Request Timeout"),
        (500, b"Internal Server Error", Unavailable, "pay: 500 Internal Server Error"),
        (503, b'{"detail": "later"}', Unavailable, "pay: later"),
        (302, b"", Unavailable, "pay: 302 Found"),
        (402, b'{"detail": "no \\u0000 and \\ud800"}', Refused, "pay: no ? and ?"),  # PostgreSQL takes neither
        (503, b"[" * 100_000, Unavailable, "pay: 503 Service Unavailable"),
    ],
)
def test_only_what_is_surely_a_refusal_is_one(
    services: Services, status: int, body: bytes, expected: type[Exception], told: str
) -> None:
    Answering.status, Answering.body = status, body
    with pytest.raises(expected) as error:
        services.do(STEP)
    assert str(error.value) == told


def test_what_was_done_was_done(services: Services) -> None:
    Answering.status, Answering.body = 200, b"{}"
    services.do(STEP)


def test_what_cannot_be_asked_for_is_not_lost(services: Services) -> None:
    """It is tried again, and seen meanwhile."""
    long: Any = SimpleNamespace(**{**vars(STEP), "card": "x" * 70_000})
    with pytest.raises(Unavailable, match="InvalidURL"):
        services.undo(long)
