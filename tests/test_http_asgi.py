"""The middleware for ASGI, spoken to in the protocol itself."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

import distlock
from distlock.contrib.asgi import App, IdempotencyMiddleware, IdempotencyOptions, LockMiddleware, Message
from distlock.testing import lose

pytestmark = pytest.mark.anyio

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
END: Message = {"type": "http.response.body", "body": b"done"}
PIECE: Message = {"type": "http.response.body", "body": b"piece", "more_body": True}
LENGTH: Message = {**START, "headers": [(b"content-length", b"5")]}
LONG: Message = {**START, "headers": [(b"content-length", b"1000000")]}
EVENTS: Message = {**START, "headers": [(b"content-type", b"text/event-stream")]}
HINT: Message = {"type": "http.response.early_hint", "links": []}
TRAILERS: Message = {"type": "http.response.trailers", "headers": []}
GONE: Message = {"type": "http.disconnect"}


@pytest.fixture
def locks() -> Iterator[distlock.Manager]:
    with distlock.connect(f"memory://{uuid.uuid4()}") as locks:
        yield locks


class Talk:
    """One request, message by message."""

    def __init__(self, *heard: Message, **scope: Any) -> None:
        headers = [(b"idempotency-key", b'"k"'), *scope.pop("headers", ())]
        self.scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers, **scope}
        self._heard = [*(heard or ({"type": "http.request"},))]
        self.said: list[Message] = []

    async def receive(self) -> Message:
        await anyio.lowlevel.checkpoint()
        return self._heard.pop(0) if self._heard else GONE

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        self.said.append(message)

    async def with_(self, app: App) -> Talk:
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return int(self.said[0]["status"])


class Till:
    """An app that says what it is told to, and counts how often."""

    def __init__(self, *says: Message, then: Any = None) -> None:
        self._says = says or (START, END)
        self._then = then
        self.runs = 0
        self.heard: list[Message] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        self.heard = [await receive(), await receive()]
        for message in self._says:
            await send(message)
        if self._then is not None:
            await self._then()


async def test_the_app_gets_the_body_whole_and_then_what_else_comes(locks: distlock.Manager) -> None:
    till = Till()
    parts = [{"type": "http.request", "body": part, "more_body": part != b"c"} for part in (b"a", b"b", b"c")]
    await Talk(*parts).with_(IdempotencyMiddleware(till, locks))
    assert till.heard == [{"type": "http.request", "body": b"abc", "more_body": False}, GONE]


async def test_a_request_that_is_too_large_is_refused_before_its_end(locks: distlock.Manager) -> None:
    till = Till()
    app = IdempotencyMiddleware(till, locks, IdempotencyOptions(body_limit=10))
    part: Message = {"type": "http.request", "body": b"x" * 6, "more_body": True}
    talk = await Talk(part, part, part).with_(app)
    assert (talk.status, till.runs) == (413, 0)
    assert await talk.receive() is part, "the rest was not read"


async def test_a_client_that_goes_before_the_end_of_its_request_has_asked_for_nothing(locks: distlock.Manager) -> None:
    till = Till()
    app = IdempotencyMiddleware(till, locks)
    talk = await Talk({"type": "http.request", "body": b"a", "more_body": True}).with_(app)
    assert (talk.said, till.runs) == ([], 0)
    assert locks.results.list() == ()


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_no_http_is_passed_on(kind: str, locks: distlock.Manager) -> None:
    till = Till()
    for app in (IdempotencyMiddleware(till, locks), LockMiddleware(till, lambda scope: "k", locks)):
        async with locks.lock("k"):
            talk = await Talk(GONE, GONE, type=kind).with_(app)
            assert talk.said == [START, END]


async def test_nothing_is_said_before_it_is_kept(locks: distlock.Manager) -> None:
    talk = Talk()
    states: list[tuple[str, int]] = []

    async def send(message: Message) -> None:
        (operation,) = locks.results.list()
        states.append((operation.state, len(talk.said)))
        await talk.send(message)

    await IdempotencyMiddleware(Till(LENGTH, PIECE, {**END, "body": b""}), locks)(talk.scope, talk.receive, send)
    assert [state for state, _ in states] == ["completed"] * 3
    assert [*map(dict, talk.said)] == [LENGTH, PIECE, {**END, "body": b""}]


@pytest.mark.parametrize(
    "says",
    [
        (START, PIECE),
        (EVENTS,),
        (LONG, PIECE),
        ({**START, "trailers": True}, END),
        (START, {"type": "http.response.pathsend", "path": "/x"}),
    ],
    ids=["pieces", "events", "more than is kept", "trailers", "a path"],
)
async def test_a_stream_is_passed_on_as_it_comes(locks: distlock.Manager, says: tuple[Message, ...]) -> None:
    talk = Talk()
    seen: list[Message] = []

    async def then() -> None:
        seen.extend(talk.said)

    till = Till(*says, then=then)
    app = IdempotencyMiddleware(till, locks)
    await talk.with_(app)
    assert seen == [*says]
    assert (await Talk().with_(app)).status == 410
    assert till.runs == 1


async def test_what_is_said_before_the_response_is_passed_on(locks: distlock.Manager) -> None:
    app = IdempotencyMiddleware(Till(HINT, START, END), locks)
    assert (await Talk().with_(app)).said == [HINT, START, END]
    assert (await Talk().with_(app)).status == 200


async def test_what_is_done_behind_the_response_neither_delays_nor_undoes_it(locks: distlock.Manager) -> None:
    talk = Talk()

    async def then() -> None:
        assert talk.said == [START, END]
        raise ZeroDivisionError

    till = Till(then=then)
    app = IdempotencyMiddleware(till, locks)
    with pytest.raises(ZeroDivisionError):
        await talk.with_(app)
    assert (await Talk().with_(app)).status == 200
    assert till.runs == 1


async def test_work_whose_response_was_not_finished_was_done(locks: distlock.Manager) -> None:
    """A framework stops to send when the client has gone."""
    till = Till(LENGTH, {**PIECE, "body": b"a"})
    app = IdempotencyMiddleware(till, locks)
    assert len((await Talk().with_(app)).said) == 2
    assert (await Talk().with_(app)).status == 410
    assert till.runs == 1


async def test_a_client_that_has_gone_does_not_undo_the_work(locks: distlock.Manager) -> None:
    till = Till()
    app = IdempotencyMiddleware(till, locks)
    talk = Talk()

    async def send(message: Message) -> None:
        raise OSError("the client has gone")

    with pytest.raises(OSError, match="gone"):
        await app(talk.scope, talk.receive, send)
    assert (await Talk().with_(app)).status == 200
    assert till.runs == 1


@pytest.mark.parametrize("says", [(START,), ({**START, "status": 500}, END)], ids=["begun", "failed"])
async def test_a_request_that_is_cancelled_is_not_stuck(locks: distlock.Manager, says: tuple[Message, ...]) -> None:
    with anyio.CancelScope() as scope:

        async def then() -> None:
            scope.cancel()
            await anyio.sleep_forever()

        await Talk().with_(IdempotencyMiddleware(Till(*says, then=then), locks))
    assert scope.cancelled_caught
    assert locks.results.list() == ()
    assert (await Talk().with_(IdempotencyMiddleware(Till(), locks))).said == [START, END]


async def lose_claim() -> None:
    """As if its renewal had failed; but for that, the app would go on for ever."""
    lose(distlock.current())
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("says", "status"),
    [((START,), 503), ((START, END), 200), (({**START, "status": 500}, END), 500)],
    ids=["begun", "answered", "failed"],
)
async def test_an_app_whose_claim_is_lost_is_cancelled(
    locks: distlock.Manager, says: tuple[Message, ...], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def then() -> None:
        if status != 200:  # else it is done
            await lose_claim()

    with caplog.at_level(logging.WARNING, "distlock.idempotency"):
        talk = await Talk().with_(IdempotencyMiddleware(Till(*says, then=then), locks))
    assert talk.status == status
    assert ("cut off" in caplog.text) is (status == 503)
    assert (dict(talk.said[0]["headers"]).get(b"retry-after") is not None) is (status == 503)


FAILED: Message = {**START, "status": 500}


@pytest.mark.parametrize(
    "says",
    [
        (FAILED, PIECE),
        (FAILED, PIECE, HINT),
        ({**FAILED, "trailers": True}, END),
        ({**FAILED, "trailers": True}, END, {**TRAILERS, "more_trailers": True}),
    ],
    ids=["in pieces", "a hint", "no trailers", "not all trailers"],
)
async def test_a_response_that_breaks_off_is_broken_for_the_server_too(
    locks: distlock.Manager, says: tuple[Message, ...]
) -> None:
    with pytest.raises(distlock.LockLost):
        await Talk().with_(IdempotencyMiddleware(Till(*says, then=lose_claim), locks))


@pytest.mark.parametrize(
    "says",
    [
        (FAILED, PIECE, END, HINT),
        (FAILED, {"type": "http.response.pathsend", "path": "/x"}),
        ({**FAILED, "trailers": True}, END, TRAILERS),
    ],
    ids=["a body", "a path", "trailers"],
)
async def test_a_response_that_is_whole_stays_so(locks: distlock.Manager, says: tuple[Message, ...]) -> None:
    talk = await Talk().with_(IdempotencyMiddleware(Till(*says, then=lose_claim), locks))
    assert talk.said == [*says]


async def test_a_hint_is_no_response(locks: distlock.Manager) -> None:
    talk = await Talk().with_(IdempotencyMiddleware(Till(HINT, then=lose_claim), locks))
    assert talk.said[0] == HINT
    assert talk.said[1]["status"] == 503


@pytest.mark.parametrize("says", [(START, END), (EVENTS, PIECE, END)], ids=["whole", "a stream"])
async def test_the_response_of_who_lost_the_claim_is_sent_though_the_block_is_cancelled(
    locks: distlock.Manager, says: tuple[Message, ...]
) -> None:
    """The loss is found by completing: what is sent from then on inside the block does not get through."""
    backend: Any = locks.results_manager()._backend

    async def app(scope: Any, receive: Any, send: Any) -> None:
        backend._locks.clear()
        for message in says:
            await send(message)
        await anyio.sleep_forever()

    assert (await Talk().with_(IdempotencyMiddleware(app, locks))).said == [*says]
