"""What is answered: a response that is kept, the same as bytes, and problems (RFC 9457)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from http import HTTPStatus
from typing import NamedTuple

__all__ = ("Headers", "Packing", "Problem", "Reply", "Unkept", "log", "phrase_of", "problem_reply")

log = logging.getLogger("distlock.idempotency")

Headers = Sequence[tuple[str, str]]


class Reply(NamedTuple):
    """A whole response."""

    status: int
    headers: Headers
    body: bytes


class Unkept(NamedTuple):
    """In the place of a `Reply` that is passed on as it comes: that the work was done is kept, and this."""

    why: str


class Packing:
    """A `distlock.idempotency.Serializer` of replies, with those headers that may be kept. Thread-safe."""

    def __init__(
        self,
        headers: Collection[str],
        redact: Callable[[int, Headers, bytes], bytes] | None,
        encrypt: Callable[[bytes], bytes] | None,
        decrypt: Callable[[bytes], bytes] | None,
    ) -> None:
        """``headers``: names in lower case."""
        self._headers = headers
        self._redact = redact
        self._encrypt = encrypt
        self._decrypt = decrypt

    def dumps(self, result: Reply | Unkept) -> bytes:
        """A line of JSON and the body; `ValueError`, with what may be kept of the reason, if there is nothing to keep.

        What redacting or encrypting raised is logged, and not kept: it may say what it was to hide.
        """
        if isinstance(result, Unkept):
            raise ValueError(result.why)
        try:
            headers = [(name, value) for name, value in result.headers if name.lower() in self._headers]
            body = result.body if self._redact is None else self._redact(result.status, result.headers, result.body)
            data = json.dumps([result.status, headers], separators=(",", ":")).encode() + b"\n" + body
            return data if self._encrypt is None else self._encrypt(data)
        except Exception as error:
            log.exception("a response could not be packed, and is not kept")
            raise ValueError(f"packing it raised {type(error).__name__}") from None

    def loads(self, data: bytes) -> Reply:
        """The reply, as it is replayed."""
        head, _, body = (data if self._decrypt is None else self._decrypt(data)).partition(b"\n")
        status, headers = json.loads(head)
        replayed = [(name, value) for name, value in headers]
        if status not in (204, 304):
            replayed.append(("content-length", str(len(body))))
        return Reply(status, [*replayed, ("idempotency-replayed", "true")], body)


def phrase_of(status: int) -> str:
    """What follows the status in its line."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


class Problem(NamedTuple):
    """What is the matter, for people and programs."""

    kind: str
    status: int
    title: str
    detail: str


def problem_reply(problem: Problem, page: str = "", retry_after: int | None = None) -> Reply:
    """``page``: the address of a page about all of them; each is a fragment of it. ``retry_after``: seconds.

    Without a page it says no more than its status, and has the title of that (RFC 9457, section 4.2.1).
    """
    said = {
        "type": f"{page}#{problem.kind}" if page else "about:blank",
        "title": problem.title if page else phrase_of(problem.status),
        "status": problem.status,
        "detail": problem.detail,
    }
    body = json.dumps(said).encode()
    headers = [("content-type", "application/problem+json"), ("content-length", str(len(body)))]
    if retry_after is not None:
        headers.append(("retry-after", str(retry_after)))
    return Reply(problem.status, headers, body)
