"""The middleware for WSGI, spoken to in the protocol itself."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

import distlock
from distlock.contrib.wsgi import IdempotencyMiddleware, IdempotencyOptions

Start = Callable[..., Any]


@pytest.fixture
def locks() -> Iterator[distlock.Manager]:
    with distlock.connect(f"memory://{uuid.uuid4()}") as locks:
        yield locks


class Call:
    """One request and what the server gets for it."""

    def __init__(self, app: Any, body: bytes = b"", **environ: Any) -> None:
        self.environ = {"REQUEST_METHOD": "POST", "HTTP_IDEMPOTENCY_KEY": '"k"', "wsgi.input": io.BytesIO(body)}
        self.environ |= {"CONTENT_LENGTH": str(len(body)), **environ}
        setup_testing_defaults(self.environ)
        self.written: list[bytes] = []
        self.status, self.headers = "", dict[str, str]()
        self.chunks = app(self.environ, self._start)

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        self.status, self.headers = status, dict(headers)
        return self.written.append

    def read(self) -> bytes:
        try:
            return b"".join(self.chunks)
        finally:
            close = getattr(self.chunks, "close", None)
            if close is not None:
                close()


class Chunks:
    """A response that knows whether it was closed."""

    def __init__(self, *chunks: Any) -> None:
        self._chunks = iter(chunks)
        self.closed = 0
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.taken += 1
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def close(self) -> None:
        self.closed += 1


def serving(chunks: Iterable[bytes], status: str = "200 Fine", *headers: tuple[str, str]) -> Any:
    def app(environ: Any, start: Start) -> Iterable[bytes]:
        start(status, [*headers])
        return chunks

    return app


@pytest.mark.parametrize("status", ["200 Fine", "500 Broken"])
def test_the_server_closes_what_the_app_gave(locks: distlock.Manager, status: str) -> None:
    chunks = Chunks(b"a", b"b")
    call = Call(IdempotencyMiddleware(serving(chunks, status, ("Content-Length", "2")), locks))
    assert (call.status, chunks.closed) == (status, 0)
    assert (call.read(), chunks.closed) == (b"ab", 1)


def test_what_raises_in_its_midst_is_closed_and_done_again(locks: distlock.Manager) -> None:
    chunks = Chunks(b"a", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        Call(IdempotencyMiddleware(serving(chunks), locks))
    assert chunks.closed == 1
    assert locks.results.list() == ()


def test_a_stream_is_passed_on_as_it_comes(locks: distlock.Manager) -> None:
    """Two pieces tell a stream from a response that does not say its length; of events none is waited for."""
    for headers, before in (((), 2), ([("Content-Type", "text/event-stream")], 0)):
        key = f'"{before}"'
        chunks = Chunks(b"a", b"b", b"c")
        call = Call(IdempotencyMiddleware(serving(chunks, "200 Fine", *headers), locks), HTTP_IDEMPOTENCY_KEY=key)
        assert chunks.taken == before
        assert call.read() == b"abc"
        assert Call(IdempotencyMiddleware(serving([]), locks), HTTP_IDEMPOTENCY_KEY=key).status == "410 Gone"


def test_one_piece_without_a_length_is_kept_and_so_is_a_list(locks: distlock.Manager) -> None:
    for chunks in (Chunks(b"ab"), [b"a", b"b"], (b"ab",)):
        app = IdempotencyMiddleware(serving(chunks), locks)
        assert Call(app).read() == Call(app).read() == b"ab"
        locks.results.forget(locks.results.list()[0].key)


def test_start_response_as_it_may_be_used(locks: distlock.Manager) -> None:
    """Late, again with an error, and with ``write``."""

    def app(environ: Any, start: Start) -> Iterator[bytes]:
        start("200 Fine", [("X-First", "1")])
        try:
            raise ZeroDivisionError
        except ZeroDivisionError as error:
            write = start("409 Sorry", [("Content-Length", "2")], (type(error), error, None))
        write(b"a")
        yield b"b"

    protected = IdempotencyMiddleware(app, locks, IdempotencyOptions(statuses={409}))
    first, again = Call(protected), Call(protected)
    assert (first.status, first.headers, first.read()) == ("409 Sorry", {"Content-Length": "2"}, b"ab")
    assert (again.status, again.read()) == ("409 Conflict", b"ab")


def test_start_response_in_the_midst_of_a_stream_is_the_server_s(locks: distlock.Manager) -> None:
    def app(environ: Any, start: Start) -> Iterator[bytes]:
        start("500 Broken", [])
        yield b"a"
        start("501 Worse", [], (None, None, None))(b"written")
        yield b"b"

    call = Call(IdempotencyMiddleware(app, locks))
    assert call.status == "500 Broken"
    assert (call.read(), call.status, call.written) == (b"ab", "501 Worse", [b"written"])


def test_the_app_gets_the_body(locks: distlock.Manager) -> None:
    def app(environ: Any, start: Start) -> Iterable[bytes]:
        start("200 Fine", [])
        return [environ["wsgi.input"].read() + environ["CONTENT_LENGTH"].encode()]

    protected = IdempotencyMiddleware(app, locks)
    assert Call(protected, b"abc").read() == b"abc3"
    chunked = {"CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    assert Call(protected, b"abcd", HTTP_IDEMPOTENCY_KEY='"2"', **chunked).read() == b"abcd4"
    assert Call(protected, HTTP_IDEMPOTENCY_KEY='"3"', CONTENT_LENGTH="").read() == b"0"


def test_a_request_in_chunks_is_refused_where_the_server_does_not_say_where_they_end(locks: distlock.Manager) -> None:
    """Rather than carried out without its body. What needs no key is not looked at."""
    protected = IdempotencyMiddleware(serving([b"done"]), locks)
    chunked = {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}
    call = Call(protected, b"abcd", **chunked)
    assert call.status == "411 Length Required"
    assert json.loads(call.read())["type"].endswith("#no-length")
    assert locks.results.list() == ()
    call = Call(protected, b"abcd", REQUEST_METHOD="PUT", **chunked)
    assert call.read() == b"done"


def test_a_request_in_chunks_that_is_too_large_is_refused(locks: distlock.Manager) -> None:
    app = IdempotencyMiddleware(serving([]), locks, IdempotencyOptions(body_limit=10))
    call = Call(app, b"x" * 11, **{"CONTENT_LENGTH": "", "wsgi.input_terminated": True})
    assert call.status.startswith("413 ")


def test_a_request_that_breaks_off_is_refused(locks: distlock.Manager) -> None:
    call = Call(IdempotencyMiddleware(serving([]), locks), b"abc", CONTENT_LENGTH="4")
    assert call.status == "400 Bad Request"
    assert locks.results.list() == ()


def test_it_keeps_to_the_protocol(locks: distlock.Manager) -> None:
    def app(environ: Any, start: Start) -> Iterable[bytes]:
        start("200 Fine", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return [b""]

    protected = validator(IdempotencyMiddleware(app, locks, IdempotencyOptions(required=True)))
    for key in ('"k"', '"k"', "bad"):
        Call(protected, HTTP_IDEMPOTENCY_KEY=key, QUERY_STRING="").read()


def test_an_app_that_stays_silent_is_told_so(locks: distlock.Manager) -> None:
    with pytest.raises(RuntimeError, match="start_response"):
        Call(IdempotencyMiddleware(lambda environ, start: [b"x"], locks))
    assert locks.results.list() == ()
