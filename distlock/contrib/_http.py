"""``Idempotency-Key`` (draft-ietf-httpapi-idempotency-key-header): what ASGI and WSGI have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from .. import (
    AcquireTimeout,
    BackendError,
    ConfigurationError,
    DistLockError,
    IdempotencyMismatch,
    InProgress,
    LockLost,
    Manager,
    ResultUnavailable,
)
from ..idempotency import LARGEST, Once, fingerprint_of, once
from ._reply import Headers, Packing, Problem, Reply, log, problem_reply
from ._request import LONGEST, fingerprint, parse_key

__all__ = (
    "DEFAULTS",
    "HEADERS",
    "PAGE",
    "IdempotencyOptions",
    "Refused",
    "Rules",
    "Scope",
    "is_outcome",
    "refusal",
    "unkept",
)

Scope = Mapping[str, Any]
"""Of ASGI, or the environ of WSGI."""

PAGE = "https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/"
"""Where clients read what the problems mean, unless you have a page of your own."""

HEADERS = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "etag",
    "expires",
    "last-modified",
    "link",
    "location",
    "vary",
)
"""Of a response, those that are kept."""
_CREDENTIALS = ("authentication-info", "authorization", "cookie", "set-cookie", "set-cookie2", "www-authenticate")
_OF_ONE_RESPONSE = (
    "connection",
    "content-length",
    "date",
    "idempotency-replayed",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
)
"""How it is framed, and what holds for one connection (RFC 9110, section 7.6.1): the server says it anew."""

_PASSING = (401, 403, 407, 408, 409, 421, 423, 424, 425, 429)
"""Statuses of 4xx after which a retry may fare better."""

MISSING = Problem(
    "missing",
    400,
    "Idempotency-Key is missing",
    "This operation is done once for each Idempotency-Key. Draw a new one for each operation, such as a UUID, and send"
    " it again with each retry.",
)
MALFORMED = Problem(
    "malformed",
    400,
    "Idempotency-Key is malformed",
    f'It is a string in double quotes, of 1 to {LONGEST} characters, as in Idempotency-Key: "8e03978e-40d5-43e8".',
)
INCOMPLETE = Problem("incomplete", 400, "The request is incomplete", "It ended before its Content-Length. Retry it.")
NO_LENGTH = Problem(
    "no-length",
    411,
    "The request does not say how long it is",
    "Requests that come in chunks are not read here. Send it with a Content-Length.",
)
TOO_LARGE = Problem(
    "too-large",
    413,
    "The request is too large",
    "Requests with an Idempotency-Key are compared with each other, and those of this size are not.",
)
MISMATCH = Problem(
    "mismatch",
    422,
    "Idempotency-Key is already used",
    "It was sent with another request. Each operation needs a key of its own.",
)
IN_PROGRESS = Problem(
    "in-progress",
    409,
    "A request with this Idempotency-Key is in progress",
    "Retry with the same key for its response.",
)
NOT_KEPT = Problem(
    "not-kept",
    410,
    "The response was not kept",
    "The request with this Idempotency-Key was carried out, and is not carried out again. Do not retry it: look at what"
    " it was to change.",
)
UNAVAILABLE = Problem(
    "unavailable",
    503,
    "Nothing was done",
    "Whether this was done before cannot be known at the moment. Retry with the same key.",
)
LOST = Problem(
    "lost",
    503,
    "The request was cut off",
    "It was cut off, and it is not known how far it got. Retry it.",
)
BUSY = Problem("busy", 423, "", "Somebody else is at it: one request at a time is carried out here. Retry.")
DOWN = Problem("unavailable", 503, "", "Nothing was done: whether somebody else is at it cannot be known. Retry.")
"""Those of locks have no page, and so the title of their status."""

DOWN_FOR = 5
"""Seconds after which to look whether a store is back."""


def is_outcome(status: int) -> bool:
    """Whether a retry would bring the same again: what was done, and what is wrong with the request itself.

    Not that someone is not allowed to yet, comes too early or too often, finds a lock held, or that the server failed.
    """
    return 200 <= status < 500 and status not in _PASSING


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyOptions:
    """What is done once, and what of it is kept. `ConfigurationError` or `ValueError` for what cannot work.

    Callables that get a scope get that of ASGI or the environ of WSGI; they are not to block.
    """

    ttl: float = 86400.0
    """Seconds for which a response is kept: longer than the longest run and the longest retry."""
    lease: float = 30.0
    """Seconds after which a request of a process that died may be carried out by a retry, and never before."""
    wait: float = 0.0
    """Seconds for which a retry waits for the first request, before it is told to come again (409)."""
    methods: Collection[str] = ("POST", "PATCH")
    paths: Callable[[Scope], bool] | None = None
    """Whether a request is to be looked at; default: all are."""
    required: bool | Callable[[Scope], bool] = False
    """Whether a request without a key is refused (400) or passed on."""
    client: Callable[[Scope], str | None] | None = None
    """Who asks, once that is proven. Without it, who knows the key and the request of another gets the response."""
    unquoted: bool = False
    """Keys may come without the quotes, as many clients send them."""
    body_limit: int = 1024 * 1024
    """Bytes of a request with a key, which is read before it is passed on; a larger one is refused (413).

    Requests are compared by what their JSON says up to 32 KiB, and byte for byte above.
    """
    response_limit: int = LARGEST
    """Bytes of what is kept of a response. A larger one is passed on, and a retry told that it was not (410)."""
    statuses: Collection[int] | Callable[[int], bool] = is_outcome
    """Those that are kept. After others the request is carried out again."""
    headers: Collection[str] = HEADERS
    """Of a response, those that are kept. Cookies, credentials and those of the connection never are."""
    redact: Callable[[int, Headers, bytes], bytes] | None = None
    """Makes the body that is kept, and replayed, of status, headers and the body as the first client gets them.

    With it, responses that are compressed are not kept: compress further out.
    """
    encrypt: Callable[[bytes], bytes] | None = None
    """Of what is kept, such as `encrypt` and `decrypt` of `cryptography.fernet.Fernet`."""
    decrypt: Callable[[bytes], bytes] | None = None
    fail_open: bool = False
    """While the store is down: pass requests on without protection, instead of refusing them (503)."""
    page: str = PAGE
    """The address of a page about the problems (RFC 9457): their types are fragments of it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", frozenset(method.upper() for method in self.methods))
        object.__setattr__(self, "headers", frozenset(name.lower() for name in self.headers))
        never = {*_CREDENTIALS, *_OF_ONE_RESPONSE}
        wrong = [name for name in sorted(self.headers) if name in never or name.startswith("proxy-")]
        if wrong:
            raise ConfigurationError(
                f"these headers are never kept, for they are credentials or hold for one response: {', '.join(wrong)}"
            )
        if (self.encrypt is None) != (self.decrypt is None):
            raise ConfigurationError("encrypt and decrypt go together: what is kept is read again")
        for name in ("body_limit", "response_limit"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a number of bytes, 0 or more; not {value!r}")


DEFAULTS = IdempotencyOptions()


class Refused(Exception):
    """Carries what is answered in the place of the app."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self.reply = reply


class Rules:
    """`IdempotencyOptions` applied, for any kind of server. Thread-safe."""

    def __init__(self, locks: Manager | None, options: IdempotencyOptions) -> None:
        """Raises `Unsupported` for a store that keeps no results."""
        if locks is not None:
            locks.results  # noqa: B018 - says now if there is none
        self.options = options
        self._make = once if locks is None else locks.once
        self._packing = Packing(options.headers, options.redact, options.encrypt, options.decrypt)
        statuses = options.statuses
        self.keeps: Callable[[int], bool] = statuses if callable(statuses) else frozenset(statuses).__contains__
        self.once("checked", "", "", b"")  # the terms

    def key(self, scope: Scope, method: str, path: str, values: Sequence[str]) -> str | None:
        """Under which name a request is done once; None: it is passed on as it is. ``values``: of the header."""
        options = self.options
        if method not in options.methods or not (options.paths is None or options.paths(scope)):
            return None
        if not values:
            required = options.required
            if required(scope) if callable(required) else required:
                self.refuse(MISSING)
            return None
        try:
            key = parse_key(", ".join(values), unquoted=options.unquoted)
        except ValueError:
            self.refuse(MALFORMED)
        client = None if options.client is None else options.client(scope)
        return f"http:{fingerprint_of([method, path, client, key])}"

    def once(self, key: str, query: str, content_type: str, body: bytes) -> Once:
        """The recipe for a request."""
        options = self.options
        return self._make(
            key,
            ttl=options.ttl,
            timeout=options.wait,
            lease=options.lease,
            fingerprint=fingerprint(query, content_type, body),
            serializer=self._packing,
            limit=options.response_limit,
        )

    def check_size(self, length: int) -> None:
        """Of a request's body."""
        if length > self.options.body_limit:
            self.refuse(TOO_LARGE)

    def refuse(self, problem: Problem, retry_after: int | None = None) -> NoReturn:
        """Raises `Refused`."""
        raise Refused(problem_reply(problem, self.options.page, retry_after))

    def instead(self, error: DistLockError) -> Reply | None:
        """What is answered if a request could not begin; None: it is carried out without protection."""
        page = self.options.page
        if isinstance(error, InProgress):
            return problem_reply(IN_PROGRESS, page, max(1, math.ceil(error.retry_after or 1)))
        if isinstance(error, IdempotencyMismatch):
            return problem_reply(MISMATCH, page)
        if isinstance(error, ResultUnavailable):
            log.warning("a retry gets no response: %s", error)
            return problem_reply(NOT_KEPT, page)
        if not isinstance(error, BackendError):
            raise error
        if self.options.fail_open:
            log.warning("a request is carried out without protection: %s", error)
            return None
        log.warning("a request was refused: %s", error)
        return problem_reply(UNAVAILABLE, page, DOWN_FOR)

    def cut_off(self, error: LockLost) -> Reply:
        """What is answered if the claim was lost before there was a response."""
        log.warning("a request was cut off: %s", error)
        return problem_reply(LOST, self.options.page, DOWN_FOR)


def unkept(headers: Headers, options: IdempotencyOptions, *, pieces: bool) -> str:
    """Why a response is passed on as it comes; empty if it is to be kept. ``pieces``: it comes in more than one."""
    known = {name.lower(): value for name, value in headers}
    if known.get("content-type", "").lower().startswith("text/event-stream"):
        return "it is a stream of events"
    if options.redact is not None and known.get("content-encoding", "identity").strip().lower() != "identity":
        return "it is compressed, and what is to be redacted cannot be found"
    length = known.get("content-length", "")
    if length.isdecimal() and int(length) > options.response_limit:
        return f"it has {length} bytes, more than the limit of {options.response_limit}"
    return "it comes in pieces, and does not say how long it is" if pieces and not length else ""


def refusal(error: DistLockError, status: int) -> Reply:
    """What is answered to who did not get a lock. ``status``: if somebody else has it."""
    if isinstance(error, AcquireTimeout):
        return problem_reply(BUSY._replace(status=status), retry_after=1)
    log.warning("a request was refused: %s", error)
    return problem_reply(LOST if isinstance(error, LockLost) else DOWN, retry_after=DOWN_FOR)
