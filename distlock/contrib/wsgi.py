"""Middleware for WSGI (PEP 3333): Flask, Django, Pyramid.

::

    app.wsgi_app = IdempotencyMiddleware(app.wsgi_app, locks, IdempotencyOptions(required=True))  # Flask
    application = IdempotencyMiddleware(get_wsgi_application(), locks)  # Django, in wsgi.py
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from .. import AcquireTimeout, BackendError, DistLockError, Lease, LockLost, Manager, ResultUnavailable, lock
from ..idempotency import Work
from ._http import DEFAULTS, INCOMPLETE, NO_LENGTH, IdempotencyOptions, Refused, Rules, Scope, refusal, unkept
from ._reply import Reply, Unkept, log, phrase_of

__all__ = ("App", "Environ", "IdempotencyMiddleware", "IdempotencyOptions", "LockMiddleware", "StartResponse")

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Any, StartResponse], Iterable[bytes]]


class IdempotencyMiddleware:
    """Requests with the same ``Idempotency-Key`` are carried out once, and all get that response.

    Nothing of a response that is kept reaches the client before it is kept. A response that is too large or a stream is
    passed on as it comes, once it is kept that the work was done. If the app raises, or answers with a status that is
    not kept, the next request with that key is carried out.
    """

    def __init__(self, app: App, locks: Manager | None = None, options: IdempotencyOptions = DEFAULTS) -> None:
        """``locks``: default is the store of `distlock.configure` or ``DISTLOCK_URL``. It stays open."""
        self._app = app
        self._rules = Rules(locks, options)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI app."""
        value = environ.get("HTTP_IDEMPOTENCY_KEY")
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        try:
            key = self._rules.key(environ, environ["REQUEST_METHOD"], path, [] if value is None else [value])
            body = None if key is None else self._read(environ)
        except Refused as refused:
            return _answer(start_response, refused.reply)
        if key is None or body is None:
            return self._app(environ, start_response)
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        return self._once(key, body, environ, start_response)

    def _read(self, environ: Environ) -> bytes:
        """The whole body."""
        length = environ.get("CONTENT_LENGTH") or ""
        if length.isdecimal():
            self._rules.check_size(int(length))
            body: bytes = environ["wsgi.input"].read(int(length))
            if len(body) < int(length):
                self._rules.refuse(INCOMPLETE)
        elif environ.get("wsgi.input_terminated", False):  # it came in chunks, and the server says where they end
            body = environ["wsgi.input"].read(self._rules.options.body_limit + 1)
            self._rules.check_size(len(body))
        elif environ.get("HTTP_TRANSFER_ENCODING"):  # it may not be read: nobody says where it ends
            self._rules.refuse(NO_LENGTH)
        else:
            body = b""
        return body

    def _once(self, key: str, body: bytes, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        once = self._rules.once(key, environ.get("QUERY_STRING", ""), environ.get("CONTENT_TYPE", ""), body)
        answer: _Answer | None = None
        instead: Reply | None = None
        try:
            with once as work:
                if work.replayed:
                    instead = work.result
                else:
                    answer = _Answer(self._rules, work, start_response)
                    answer.take(self._app, environ)
        except DistLockError as error:
            if answer is None:
                instead = self._rules.instead(error)
            elif not isinstance(error, LockLost) or error.key != key:
                raise
            elif not answer.taken:
                instead = self._rules.cut_off(error)
        if instead is not None:
            return _answer(start_response, instead)
        return self._app(environ, start_response) if answer is None else answer.pass_on()


class _Answer:
    """What the app gives: held back until it is kept, or is known not to be."""

    def __init__(self, rules: Rules, work: Work, start_response: StartResponse) -> None:
        self._rules = rules
        self._work = work
        self._start_response = start_response
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._parts: list[bytes] = []
        self._chunks: Iterable[bytes] = ()
        self._rest: Iterator[bytes] = iter(())
        self._write: Callable[[bytes], object] = self._parts.append
        self.taken = False
        """It is known what the answer is."""

    def take(self, app: App, environ: Environ) -> None:
        """Calls the app, and takes as much of its response as is kept."""
        self._chunks = app(environ, self._start)
        listed = isinstance(self._chunks, (list, tuple))
        self._rest = iter(self._chunks)
        try:
            for chunk in chain((b"",), self._rest):  # a stream of events is one before there is any
                if chunk:
                    self._parts.append(chunk)
                if self._settled(pieces=len(self._parts) > 1 and not listed):
                    break
            else:
                if not self._status:
                    raise RuntimeError("the app did not call start_response")
                self._keep(Reply(int(self._status[:3]), self._headers, b"".join(self._parts)))
        except BaseException:
            _close(self._chunks)
            raise
        self.taken = True

    def pass_on(self) -> Iterable[bytes]:
        """What was held back, and all that comes."""
        self._write = self._start_response(self._status, self._headers)
        return _Passed(chain(self._parts, self._rest), partial(_close, self._chunks))

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        """In the place of the server's; with ``exc_info`` it may come twice."""
        if self.taken:
            return self._start_response(status, headers, exc_info)  # type: ignore[no-any-return]
        self._status, self._headers = status, headers
        return lambda data: self._write(data)

    def _settled(self, *, pieces: bool) -> bool:
        """Whether the rest is passed on as it comes."""
        if not self._status:
            return False
        if not self._rules.keeps(int(self._status[:3])):
            return True
        why = unkept(self._headers, self._rules.options, pieces=pieces)
        if why:
            self._keep(Unkept(why))
        return bool(why)

    def _keep(self, outcome: Reply | Unkept) -> None:
        if not self._rules.keeps(int(self._status[:3])):
            return
        try:
            self._work.complete(outcome)
        except ResultUnavailable as error:
            log.warning("a response is passed on that a retry will not get: %s", error)
        except LockLost as error:
            log.warning("a response is passed on, but a retry may be carried out again: %s", error)


class LockMiddleware:
    """One request at a time for each resource: the others are refused, or wait for up to ``timeout`` seconds.

    The lock is held until the server has done with the response: one that streams keeps it. If the lock is lost, that
    is logged.
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

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """A WSGI app."""
        key = self._key(environ)
        if key is None:
            return self._app(environ, start_response)
        try:
            lease = self._lock(key).acquire()
        except (AcquireTimeout, BackendError) as error:
            return _answer(start_response, refusal(error, self._status))
        try:
            chunks = self._app(environ, start_response)
            return _Passed(iter(chunks), partial(_close, chunks, lease))
        except BaseException:
            _release(lease)
            raise


class _Passed:
    """A response on its way. The server closes it, in whatever thread."""

    def __init__(self, chunks: Iterator[bytes], close: Callable[[], object]) -> None:
        self._chunks = chunks
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks


def _close(chunks: Iterable[bytes], lease: Lease | None = None) -> None:
    try:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    finally:
        if lease is not None:
            _release(lease)


def _release(lease: Lease) -> None:
    try:
        lease.release()
    except (LockLost, BackendError) as error:
        log.warning("a request was carried out under a lock, and: %s", error)


def _answer(start_response: StartResponse, reply: Reply) -> Iterable[bytes]:
    start_response(f"{reply.status} {phrase_of(reply.status)}", [*reply.headers])
    return [reply.body]
