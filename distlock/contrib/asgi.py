"""Middleware for ASGI 3: Starlette, FastAPI, Litestar, Quart, Django under ASGI, on asyncio and trio.

::

    app = IdempotencyMiddleware(app, locks, IdempotencyOptions(required=True))
    app.add_middleware(IdempotencyMiddleware, locks=locks)  # Starlette, FastAPI
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

from .. import AcquireTimeout, BackendError, DistLockError, LockLost, Manager, ResultUnavailable, lock
from ..idempotency import AsyncWork
from ._http import DEFAULTS, IdempotencyOptions, Refused, Rules, Scope, refusal, unkept
from ._reply import Reply, Unkept, log

__all__ = ("App", "IdempotencyMiddleware", "IdempotencyOptions", "LockMiddleware", "Message", "Receive", "Send")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

_START, _BODY, _TRAILERS = "http.response.start", "http.response.body", "http.response.trailers"
_BODIES = (_BODY, "http.response.pathsend", "http.response.zerocopysend")


class IdempotencyMiddleware:
    """Requests with the same ``Idempotency-Key`` are carried out once, and all get that response.

    Nothing of a response that is kept reaches the client before it is kept. A response that is too large or a stream is
    passed on as it comes, once it is kept that the work was done. If the app raises, is cancelled, or answers with a
    status that is not kept, the next request with that key is carried out.
    """

    def __init__(self, app: App, locks: Manager | None = None, options: IdempotencyOptions = DEFAULTS) -> None:
        """``locks``: default is the store of `distlock.configure` or ``DISTLOCK_URL``. It stays open."""
        self._app = app
        self._rules = Rules(locks, options)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """An ASGI app. What is no HTTP is passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            values = _values(scope, b"idempotency-key")
            key = self._rules.key(scope, scope["method"], scope["path"], values)
            body = None if key is None else await self._read(scope, receive)
        except Refused as refused:
            await _answer(send, refused.reply)
            return
        if key is None:
            await self._app(scope, receive, send)
        elif body is not None:
            await self._once(key, body, scope, receive, send)

    async def _read(self, scope: Any, receive: Receive) -> bytes | None:
        """The whole body; None: the client has gone before the end of it."""
        length = "".join(_values(scope, b"content-length"))
        self._rules.check_size(int(length) if length.isdecimal() else 0)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._rules.check_size(size)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _once(self, key: str, body: bytes, scope: Any, receive: Receive, send: Send) -> None:
        query = scope.get("query_string", b"").decode("latin-1")
        once = self._rules.once(key, query, ",".join(_values(scope, b"content-type")), body)
        answer: _Answer | None = None
        instead: Reply | None = None
        try:
            async with once as work:
                if work.replayed:
                    instead = work.result
                else:
                    answer = _Answer(self._rules, work, send)
                    await self._app(scope, _again(body, receive), answer.send)
                    await answer.end()
        except DistLockError as error:
            if answer is None:
                instead = self._rules.instead(error)
            elif not isinstance(error, LockLost) or error.key != key or answer.broken:
                raise
            elif not answer.whole:
                instead = self._rules.cut_off(error)
        if instead is not None:
            await _answer(send, instead)
        elif answer is not None:
            await answer.flush()
        else:
            await self._app(scope, _again(body, receive), send)


class _Answer:
    """What the app sends: held back until it is kept, or is known not to be."""

    def __init__(self, rules: Rules, work: AsyncWork, send: Send) -> None:
        self._rules = rules
        self._work = work
        self._send = send
        self._held: list[Message] = []
        self._passing = False
        self._lost = False
        self._trailers = False
        self.whole = False
        """The app has sent all of it."""

    @property
    def broken(self) -> bool:
        """The client has a part of it, and does not get the rest."""
        return self._passing and not self.whole

    async def send(self, message: Message) -> None:
        """In the place of the server's."""
        if message["type"] == _START:
            self._trailers = message.get("trailers", False)
        self.whole = self.whole or self._ends(message)
        if self._passing or not (self._held or message["type"] == _START):
            await self._send(message)
            return
        self._held.append(message)
        if self._rules.keeps(self._held[0]["status"]):
            outcome = None if self._lost else self._outcome(message)
            if outcome is None or not await self._keep(outcome):
                return
        await self.flush()

    async def end(self) -> None:
        """The app has returned. What it has begun to answer was done, even if the client was gone before its end."""
        if self._held and not self._lost:
            await self._keep(Unkept("it was not finished"))

    async def flush(self) -> None:
        """Passes on what was held back, and all that comes."""
        self._passing = True
        held, self._held = self._held, []
        for message in held:
            await self._send(message)

    def _ends(self, message: Message) -> bool:
        """Whether nothing of the response comes after it. Hints, pushes and the like are beside the response."""
        if self._trailers:
            return message["type"] == _TRAILERS and not message.get("more_trailers", False)
        return message["type"] in _BODIES and not message.get("more_body", False)

    def _outcome(self, message: Message) -> Reply | Unkept | None:
        """What is to be kept; None: more is to come first."""
        start = self._held[0]
        if message["type"] not in (_START, _BODY) or self._trailers:
            return Unkept("it is more than a body")
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start.get("headers", ())]
        why = unkept(headers, self._rules.options, pieces=message.get("more_body", False))
        if why:
            return Unkept(why)
        if not self.whole:
            return None
        return Reply(start["status"], headers, b"".join(each.get("body", b"") for each in self._held))

    async def _keep(self, outcome: Reply | Unkept) -> bool:
        """False: the claim was lost. The response has to wait until the block is left, which may be cancelled."""
        try:
            await self._work.complete(outcome)
        except ResultUnavailable as error:
            log.warning("a response is passed on that a retry will not get: %s", error)
        except LockLost as error:
            log.warning("a response is passed on, but a retry may be carried out again: %s", error)
            self._lost = True
        return not self._lost


class LockMiddleware:
    """One request at a time for each resource: the others are refused, or wait for up to ``timeout`` seconds.

    The lock is held until the app returns: a response that streams keeps it, and so do background tasks. If the lock is
    lost the app is cancelled.
    """

    def __init__(
        self,
        app: App,
        key: Callable[[Scope], str | None],
        locks: Manager | None = None,
        *,
        ttl: float = 30.0,
        timeout: float = 0.0,
        status: int = 423,
    ) -> None:
        """``key``: the lock's name for a request; None: it needs none. ``status``: of those that are refused."""
        self._app = app
        self._key = key
        self._lock = partial(lock if locks is None else locks.lock, ttl=ttl, timeout=timeout)
        self._lock("checked")  # the options
        self._status = status

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """An ASGI app. What is no HTTP is passed on."""
        key = self._key(scope) if scope["type"] == "http" else None
        if key is None:
            await self._app(scope, receive, send)
            return
        begun = started = False

        async def passed_on(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with self._lock(key):
                begun = True
                await self._app(scope, receive, passed_on)
        except (AcquireTimeout, BackendError, LockLost) as error:
            lost = isinstance(error, LockLost) and error.key == key
            if started or (begun and not lost):
                raise
            await _answer(send, refusal(error, self._status))


def _values(scope: Any, name: bytes) -> list[str]:
    """Of a header, which may come several times."""
    return [value.decode("latin-1") for each, value in scope["headers"] if each == name]


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and then what else comes."""
    read: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return read.pop() if read else await receive()

    return receive_again


async def _answer(send: Send, reply: Reply) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
    await send({"type": _START, "status": reply.status, "headers": headers})
    await send({"type": _BODY, "body": reply.body})
