"""What is done once is done once behind real servers, with several processes that share nothing but the store."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from .http_tools import problem_of
from .programs import Program, wait_until
from .servers import RedisServer

ROOT = Path(__file__).parent.parent
SERVERS = {
    "fastapi": ["uvicorn", "--factory", "tests.http_apps:fastapi", "--workers", "3"],
    "starlette": ["uvicorn", "--factory", "tests.http_apps:starlette", "--workers", "3"],
    "flask": ["gunicorn", "tests.http_apps:flask()", "--workers", "3", "--threads", "8"],
    "django": ["gunicorn", "tests.http_apps:django()", "--workers", "3", "--threads", "8", "--preload"],
}
STORES = {"fastapi": "redis", "starlette": "file", "flask": "file", "django": "redis"}


class WebServer(Program):
    """uvicorn or gunicorn with three processes of `tests.http_apps`."""

    start_timeout = 60.0  # each of the processes imports a framework

    def __init__(self, name: str, store: str, lease: float) -> None:
        super().__init__()
        self._lease = lease
        self._name = name
        self._store = store

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ledger(self) -> list[str]:
        """The orders that were paid, each with the process that did it."""
        path = self.folder / "ledger"
        return path.read_text().splitlines() if path.exists() else []

    def open_gate(self) -> None:
        """Whoever pays stands still until then."""
        (self.folder / "gate").touch()

    def _program(self) -> str:
        return sys.executable

    def _arguments(self) -> list[str]:
        server, *arguments = SERVERS[self._name]
        where = ["--bind", f"127.0.0.1:{self.port}"] if server == "gunicorn" else ["--port", str(self.port)]
        return ["-m", server, *arguments, *where]

    def _environment(self) -> Mapping[str, str]:
        return {
            "DISTLOCK_URL": self._store or f"file://{self.folder}/locks",
            "LEDGER": str(self.folder / "ledger"),
            "GATE": str(self.folder / "gate"),
            "LEASE": str(self._lease),
            "PYTHONPATH": str(ROOT),
        }

    def _ready(self) -> bool:
        try:
            return httpx.get(self.url, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


class Behind(NamedTuple):
    """A server, and its clients."""

    server: WebServer
    client: httpx.Client

    def pay(self, order: str = "7", key: str = '"k"', **request: object) -> httpx.Response:
        content = request.pop("content", order)
        headers = {"idempotency-key": key, "content-type": "text/plain"}
        return self.client.post("/pay", content=content, headers=headers)  # type: ignore[arg-type]


@pytest.fixture
def lease() -> float:
    """Seconds; a test that waits for the end of it says less."""
    return 30.0


@pytest.fixture(params=SERVERS)
def behind(request: pytest.FixtureRequest, lease: float) -> Iterator[Behind]:
    redis: RedisServer | None = None
    if STORES[request.param] == "redis":
        redis = request.getfixturevalue("redis_server")
    once = httpx.Limits(max_keepalive_connections=0)  # servers end what is kept, at times just when it is used again
    with (
        WebServer(request.param, redis.url if redis else "", lease) as server,
        httpx.Client(base_url=server.url, timeout=100, trust_env=False, limits=once) as client,
    ):
        yield Behind(server, client)


def test_a_hundred_duplicates_are_done_once(behind: Behind) -> None:
    server = behind.server
    with ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(behind.pay) for _ in range(100)]
        wait_until(lambda: server.ledger, "the first request")
        server.open_gate()
        answers = [each.result() for each in asked]
    assert len(server.ledger) == 1
    assert {(answer.status_code, answer.text) for answer in answers} == {
        (201, f"7 paid by {server.ledger[0].split()[0]}")
    }
    assert len({answer.headers["content-type"] for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 99
    assert problem_of(behind.pay("8")) == (422, "mismatch")
    assert problem_of(behind.pay(key="none")) == (400, "malformed")
    # As a client sends it that does not know the length before.
    assert behind.pay(content=iter([b"9", b"9"]), key='"2"').text.startswith("99 paid")
    assert problem_of(behind.pay(content=iter([b"9"] * 1001), key='"3"')) == (413, "too-large")
    assert len(server.ledger) == 2


@pytest.mark.parametrize("lease", [6.0])  # the retry holds one too, on a machine that may stall for some seconds
def test_a_process_that_is_killed_leaves_nothing_stuck(behind: Behind) -> None:
    """Nobody knows how far it got: a retry does it again, once the lease is over."""
    server = behind.server
    with ThreadPoolExecutor(1) as pool:
        cut_off = pool.submit(behind.pay)
        wait_until(lambda: server.ledger, "the first request")
        killed = int(server.ledger[0].split()[0])
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            cut_off.result()
    server.open_gate()
    again, replayed = behind.pay(), behind.pay()
    assert (again.status_code, replayed.status_code, replayed.text) == (201, 201, again.text)
    assert again.text != f"7 paid by {killed}"
    assert "idempotency-replayed" not in again.headers
    assert "idempotency-replayed" in replayed.headers
    assert len(server.ledger) == 2
