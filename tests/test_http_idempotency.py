"""``Idempotency-Key``: what draft-ietf-httpapi-idempotency-key-header asks of a server, case by case."""

from __future__ import annotations

import gzip
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, strategies as st

import distlock
from distlock.contrib._http import DEFAULTS, Rules
from distlock.contrib._request import LARGEST_JSON, fingerprint, parse_key
from distlock.contrib.asgi import IdempotencyOptions

from .http_tools import KINDS, Asked, Given, Shop, problem_of
from .programs import wait_until

pytestmark = pytest.mark.may_block  # a thread of the tests has an event loop of its own for each request


@pytest.fixture(params=KINDS)
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    with Shop(request.param) as shop:
        yield shop


def stored(shop: Shop) -> bytes:
    """All that the store keeps of what was done."""
    backend: Any = shop.locks.results_manager()._backend
    return b"".join(record.text for record in backend._records.values())


def test_a_retry_gets_the_response_of_the_first(shop: Shop) -> None:
    shop.handler = lambda asked: Given(201, {"location": "/orders/7", "x-other": "1"}, [b'{"id": 7}'])
    first, again = shop.ask(b'{"a": 1}'), shop.ask(b'{"a": 1}')
    assert (first.status_code, first.content) == (again.status_code, again.content) == (201, b'{"id": 7}')
    assert (first.headers["location"], first.headers["x-other"]) == ("/orders/7", "1")
    assert "idempotency-replayed" not in first.headers
    assert dict(again.headers) == {"location": "/orders/7", "content-length": "9", "idempotency-replayed": "true"}
    assert shop.asked == [Asked("POST", "/pay", b'{"a": 1}')]


@pytest.mark.parametrize(
    ("method", "key", "done"),
    [("POST", "1", 1), ("PATCH", "1", 1), ("PUT", "1", 2), ("DELETE", "1", 2), ("GET", "1", 2), ("POST", "", 2)],
)
def test_only_what_has_a_key_and_a_method_that_is_not_idempotent_is_done_once(
    shop: Shop, method: str, key: str, done: int
) -> None:
    for _ in range(2):
        assert shop.ask(method=method, key=f'"{key}"' if key else None).status_code == 201
    assert len(shop.asked) == done


def test_each_path_method_and_client_has_keys_of_its_own(shop: Shop) -> None:
    def client(scope: Any) -> str | None:
        value = scope.get("HTTP_AUTHORIZATION") or dict(scope.get("headers", ())).get(b"authorization")
        return None if value is None else str(value)

    shop.protect(client=client)
    requests: list[dict[str, Any]] = [
        {},
        {"path": "/other"},
        {"method": "PATCH"},
        {"key": '"other"'},
        {"headers": {"authorization": "anna"}},
        {"headers": {"authorization": "bob"}},
    ]
    for request in requests * 2:
        assert shop.ask(**request).status_code == 201
    assert len(shop.asked) == len(requests)


@pytest.mark.parametrize("required", [True, lambda scope: True], ids=["always", "where told"])
def test_a_missing_key_is_refused_where_one_is_required(shop: Shop, required: Any) -> None:
    shop.protect(required=required)
    assert problem_of(shop.ask(key=None)) == (400, "missing")
    assert shop.ask(key=None, method="GET").status_code == 201
    assert [asked.method for asked in shop.asked] == ["GET"]


def test_paths_are_chosen(shop: Shop) -> None:
    shop.protect(required=True, paths=lambda scope: (scope.get("path") or scope.get("PATH_INFO")) != "/free")
    assert shop.ask(key=None, path="/free").status_code == 201
    assert shop.ask(key=None).status_code == 400


MALFORMED = ["k", '"k', 'k"', '""', "''", '"a", "b"', '"a" "b"', '"k";', '"k"; A=1', '"a\\n"', f'"{"k" * 256}"', "1"]
MALFORMED += ["?1", ":aGk=:", '("k")', '"\t"', '"k";a=', '%"k"', ""]


@pytest.mark.parametrize("key", MALFORMED)
def test_a_malformed_key_is_refused(shop: Shop, key: str) -> None:
    assert problem_of(shop.ask(key=key)) == (400, "malformed")
    assert shop.asked == []


def test_two_headers_are_no_key(shop: Shop) -> None:
    with pytest.raises(ValueError, match="not a quoted string"):
        parse_key('"a", "a"', unquoted=True)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"k"', "k"),
        ('  "k"  ', "k"),
        ('" k "', " k "),
        (r'"\"\\"', '"\\'),
        ('"k";a;b=1;*c-d.e_=?0', "k"),
        ('"k"; a="x;y\\"";b=tok/en:*;c=:aGk=:;d=-1.5;e=@1;f=%"f%c3%bc"', "k"),
        (f'"{"k" * 255}"', "k" * 255),
    ],
)
def test_a_key_is_an_item_of_structured_fields(value: str, key: str) -> None:
    """RFC 9651, sections 3.3 and 4.2.3: a string, whose parameters mean nothing here."""
    assert parse_key(value, unquoted=False) == key


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_every_string_can_be_a_key(key: str) -> None:
    assert parse_key('"' + key.replace("\\", r"\\").replace('"', r"\"") + '"', unquoted=False) == key


@given(st.text(max_size=300))
def test_nothing_else_is(value: str) -> None:
    if not value.strip(" ").startswith('"'):
        with pytest.raises(ValueError, match="not"):
            parse_key(value, unquoted=False)


def test_keys_without_quotes_are_taken_if_told(shop: Shop) -> None:
    shop.protect(unquoted=True)
    assert shop.ask(key="8e03978e-40d5-43e8").status_code == 201
    assert "idempotency-replayed" in shop.ask(key='"8e03978e-40d5-43e8"').headers
    for wrong in ("a,b", "a b", 'a"', "a;b", "a\\", "k" * 256):
        assert problem_of(shop.ask(key=wrong)) == (400, "malformed")


@pytest.mark.parametrize(
    "other",
    [
        {"body": b'{"a": 2}'},
        {"body": b'{"a": 1.0}'},
        {"body": b'{"a": 1, "a": 1}'},
        {"body": b'{"a": 1'},
        {"path": "/pay?really=1"},
        {"headers": {"content-type": "application/json; charset=utf-16"}},
        {"headers": {"content-type": "text/plain"}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_key_is_not_for_another_request(shop: Shop, other: dict[str, Any]) -> None:
    shop.ask(b'{"a": 1}')
    assert problem_of(shop.ask(**{"body": b'{"a": 1}', **other})) == (422, "mismatch")
    assert len(shop.asked) == 1


def test_the_same_json_in_another_layout_is_the_same_request(shop: Shop) -> None:
    """aws-powertools/powertools-lambda-python#639."""
    shop.ask(b'{"a": [1, {"c": 2, "b": "\xc3\xbc"}], "d": 0.1}')
    again = shop.ask(b'{"d":0.1,"a":[1,{"b":"\\u00fc","c":2}]}')
    assert (again.status_code, len(shop.asked)) == (201, 1)


JSON = "application/json"


@pytest.mark.parametrize(
    ("kind", "one", "two"),
    [
        (JSON, b"0.1", b"0.10000000000000000000001"),
        (JSON, b"1e400", b"2e400"),
        (JSON, b"[" * 100_000, b"[" * 100_001),
        (JSON, b"[" * 3_000 + b"]" * 3_000, b"[" * 3_001 + b"]" * 3_001),
        (JSON, b"9" * 5_000, b"9" * 5_001),
        (JSON, b"1e99999999999999999999", b"2e99999999999999999999"),
        (JSON, b"\xff", b"\xfe"),
        (JSON, b"", b"null"),
        (JSON, b'"\\ud800"', b'"\\ud801"'),
        ("application/merge-patch+json", b"[1]", b"[2]"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n1\r\n--x--", b"--x\r\n\r\n2\r\n--x--"),
    ],
    ids=range(11),
)
def test_bodies_that_differ_have_another_fingerprint(kind: str, one: bytes, two: bytes) -> None:
    assert fingerprint("", kind, one) == fingerprint("", kind, one) != fingerprint("", kind, two)


def test_large_json_is_compared_byte_for_byte() -> None:
    """To read it takes an event loop too long."""
    small, large = (b'["%s", 1]' % (b"x" * (size - len('["", 1]'))) for size in (LARGEST_JSON, LARGEST_JSON + 1))
    for body, same in ((small, True), (large, False)):
        assert (fingerprint("", JSON, body) == fingerprint("", JSON, body.replace(b", ", b","))) is same


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_form_may_be_parted_anew(shop: Shop, quote: str) -> None:
    for boundary in ("abc", "xyz"):
        kind = f"multipart/form-data; boundary={quote}{boundary}{quote}"
        body = b"--%s\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--%s--" % ((boundary.encode(),) * 2)
        assert shop.ask(body, headers={"content-type": kind}).status_code == 201
    assert len(shop.asked) == 1


def test_what_is_in_progress_is_not_done_twice(shop: Shop) -> None:
    begun, end = threading.Event(), threading.Event()

    def handler(asked: Asked) -> Given:
        begun.set()
        assert end.wait(30)
        return Given()

    shop.handler = handler
    shop.protect(lease=20)
    first = shop.start()
    assert begun.wait(30)
    busy = shop.ask()
    assert problem_of(busy) == (409, "in-progress")
    assert 1 <= int(busy.headers["retry-after"]) <= 20
    assert problem_of(shop.ask(b"[]")) == (422, "mismatch")
    shop.protect(wait=30)
    waiting = shop.start()
    wait_until(lambda: any(each.waiters for each in shop.locks.results.list()), "the second request")
    end.set()
    assert first.result().status_code == waiting.result().status_code == 201
    assert waiting.result().headers["idempotency-replayed"] == "true"
    assert len(shop.asked) == 1


@pytest.mark.parametrize("status", [200, 204, 301, 400, 404, 422])
def test_what_a_retry_would_bring_again_is_kept(shop: Shop, status: int) -> None:
    shop.handler = lambda asked: Given(status, {"content-type": "text/x"}, [b"" if status == 204 else b"x"])
    first, again = shop.ask(), shop.ask()
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert again.headers.get("content-length") == (None if status == 204 else "1")
    assert len(shop.asked) == 1


@pytest.mark.parametrize("status", [401, 403, 407, 408, 409, 421, 423, 424, 425, 429, 500, 503])
def test_what_it_would_not_is_done_again(shop: Shop, status: int) -> None:
    shop.handler = lambda asked: Given(status if len(shop.asked) == 1 else 201, {"x": "y"}, [b"a", b"b"])
    first = shop.ask()
    assert (first.status_code, first.content, first.headers["x"]) == (status, b"ab", "y")
    assert stored(shop) == b""
    assert shop.ask().status_code == 201
    assert len(shop.asked) == 2


@pytest.mark.parametrize("statuses", [{500}, lambda status: status == 500], ids=["a set", "a function"])
def test_statuses_are_chosen(shop: Shop, statuses: Any) -> None:
    shop.protect(statuses=statuses)
    shop.handler = lambda asked: Given(500 if len(shop.asked) == 1 else 201)
    assert shop.ask().status_code == shop.ask().status_code == 500
    for _ in range(2):
        assert shop.ask(key='"other"').status_code == 201
    assert len(shop.asked) == 3


def test_what_raised_is_done_again(shop: Shop) -> None:
    def handler(asked: Asked) -> Given:
        if len(shop.asked) == 1:
            raise ZeroDivisionError
        return Given()

    shop.handler = handler
    with pytest.raises(ZeroDivisionError):
        shop.ask()
    assert shop.ask().status_code == 201


@pytest.mark.parametrize("error", [distlock.LockLost("x", key="other"), distlock.BackendUnavailable("x", key="k")])
def test_errors_of_the_app_s_own_locks_are_the_app_s(shop: Shop, error: Exception) -> None:
    def handler(asked: Asked) -> Given:
        raise error

    shop.handler = handler
    with pytest.raises(type(error)):
        shop.ask()


def test_a_request_that_is_too_large_is_refused(shop: Shop) -> None:
    shop.protect(body_limit=10)
    assert problem_of(shop.ask(b"x" * 11)) == (413, "too-large")
    assert shop.ask(b"x" * 10).status_code == 201
    assert shop.ask(b"x" * 11, key=None).status_code == 201


STREAM = [b"piece"] * 3


@pytest.mark.parametrize(
    "given",
    [
        Given(chunks=[b"x" * 500]),
        Given(chunks=STREAM * 100),
        Given(chunks=STREAM * 100, headers={"content-length": "1500"}),
        Given(chunks=STREAM),
        Given(chunks=[b"data: 1\n\n"], headers={"content-type": "text/event-stream; charset=utf-8"}),
    ],
    ids=["one", "many", "with its length", "in pieces", "events"],
)
def test_a_response_that_is_not_kept_is_passed_on_and_not_made_again(
    shop: Shop, given: Given, caplog: pytest.LogCaptureFixture
) -> None:
    shop.protect(response_limit=300)
    shop.handler = lambda asked: given
    with caplog.at_level(logging.WARNING, "distlock.idempotency"):
        assert shop.ask().content == b"".join(given.chunks)
    assert "a retry will not get" in caplog.text
    assert problem_of(shop.ask()) == (410, "not-kept")
    assert len(shop.asked) == 1


def test_pieces_whose_length_is_known_are_kept(shop: Shop) -> None:
    shop.handler = lambda asked: Given(chunks=STREAM, headers={"content-length": "15"})
    assert shop.ask().content == shop.ask().content == b"piece" * 3
    assert len(shop.asked) == 1


SECRETS = ("cookie-secret", "token-secret", "client-secret", "basic-secret", "body-secret", "key-secret")


def test_no_secret_is_kept(shop: Shop) -> None:
    """Neither of requests nor of responses; what responses say beside is kept."""
    shop.protect(client=lambda scope: "client-secret")
    headers = {
        "set-cookie": "session=cookie-secret",
        "authorization": "Bearer token-secret",
        "www-authenticate": "Basic basic-secret",
        "proxy-authenticate": "Basic basic-secret",
        "authentication-info": "basic-secret",
        "location": "/kept",
    }
    sent = {"authorization": "Bearer token-secret", "cookie": "session=cookie-secret"}
    shop.handler = lambda asked: Given(headers=headers)
    first = shop.ask(b'"body-secret"', key='"key-secret"', headers=sent)
    again = shop.ask(b'"body-secret"', key='"key-secret"', headers=sent)
    assert first.headers["set-cookie"] == "session=cookie-secret"
    assert again.headers["location"] == "/kept"
    kept = stored(shop)
    assert b"/kept" in kept
    names = "".join(operation.key for operation in shop.locks.results.list())
    assert [secret for secret in SECRETS if secret.encode() in kept or secret in names] == []
    assert not set(headers) - {"location"} & set(again.headers)


NEVER = ["Set-Cookie", "authorization", "WWW-Authenticate", "proxy-authorization", "cookie"]
NEVER += ["Content-Length", "transfer-encoding", "connection", "keep-alive", "TE", "trailer", "upgrade", "Date"]
NEVER += ["Proxy-Connection", "Idempotency-Replayed"]


@pytest.mark.parametrize("name", NEVER)
def test_credentials_and_what_holds_for_one_response_cannot_be_chosen(name: str) -> None:
    with pytest.raises(distlock.ConfigurationError, match=name.lower()):
        IdempotencyOptions(headers=["x-request", name])


def test_headers_are_chosen(shop: Shop) -> None:
    shop.protect(headers=["X-Kept"])
    shop.handler = lambda asked: Given(headers={"x-kept": "1", "location": "/"})
    shop.ask()
    assert set(shop.ask().headers) == {"x-kept", "content-length", "idempotency-replayed"}


def mirrored(data: bytes) -> bytes:
    return data[::-1]


def test_what_is_kept_may_be_redacted_and_encrypted(shop: Shop) -> None:
    shop.protect(
        redact=lambda status, headers, body: body.replace(b"4111 1111", b"****"), encrypt=mirrored, decrypt=mirrored
    )
    shop.handler = lambda asked: Given(chunks=[b"card 4111 1111, name Smith"])
    assert shop.ask().content == b"card 4111 1111, name Smith"
    assert shop.ask().content == b"card ****, name Smith"
    kept = stored(shop)
    assert b"htimS" in kept
    assert b"Smith" not in kept
    assert b"4111 1111" not in kept + mirrored(kept)


def test_what_is_redacted_is_what_the_first_client_gets(shop: Shop) -> None:
    """With the headers that are not kept."""
    shop.protect(redact=lambda status, headers, body: b"%d %s" % (status, dict(headers)["x-other"].encode()))
    shop.handler = lambda asked: Given(headers={"x-other": "1"})
    shop.ask()
    assert shop.ask().content == b"201 1"


@pytest.mark.parametrize(("encoding", "kept"), [("gzip", False), ("Identity", True)])
def test_what_is_compressed_is_not_kept_where_it_is_to_be_redacted(
    shop: Shop, encoding: str, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """For in it nothing is found."""
    shop.protect(redact=lambda status, headers, body: body.replace(b"4111 1111", b"****"))
    card = gzip.compress(b"card 4111 1111") if encoding == "gzip" else b"card 4111 1111"
    shop.handler = lambda asked: Given(headers={"content-encoding": encoding}, chunks=[card])
    assert shop.ask().content == b"card 4111 1111"
    assert card not in stored(shop)
    assert ("it is compressed" in caplog.text) is not kept
    assert shop.ask().status_code == (201 if kept else 410)


def test_what_cannot_be_packed_is_not_kept_and_nor_is_what_was_said_of_it(shop: Shop) -> None:
    def redact(status: int, headers: Any, body: bytes) -> bytes:
        raise ValueError(f"cannot redact {body!r}")

    shop.protect(redact=redact)
    shop.handler = lambda asked: Given(chunks=[b"card 4111 1111"])
    assert shop.ask().content == b"card 4111 1111"
    assert b"4111 1111" not in stored(shop)
    assert problem_of(shop.ask()) == (410, "not-kept")


def test_what_cannot_be_read_is_not_done_again(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """As after a change of the key that it was encrypted with."""
    shop.ask()
    shop.protect(encrypt=mirrored, decrypt=mirrored)
    assert problem_of(shop.ask()) == (410, "not-kept")
    assert "a retry gets no response" in caplog.text
    assert len(shop.asked) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"encrypt": bytes}, {"decrypt": bytes}, {"body_limit": -1}, {"response_limit": 1.5}, {"body_limit": True}],
    ids=str,
)
def test_options_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"encrypt and decrypt|number of bytes"):
        IdempotencyOptions(**wrong)


@pytest.mark.parametrize("wrong", [{"ttl": 0}, {"lease": -1}, {"wait": -1}, {"wait": None, "ttl": "x"}], ids=str)
def test_terms_that_cannot_work_are_refused_when_it_is_made(shop: Shop, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        shop.protect(**wrong)


def lose_claims(shop: Shop) -> None:
    backend: Any = shop.locks.results_manager()._backend
    backend._locks.clear()


def test_a_response_is_passed_on_though_the_claim_was_lost(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    def handler(asked: Asked) -> Given:
        lose_claims(shop)
        return Given(headers={"x": "y"})

    shop.handler = handler
    with caplog.at_level(logging.WARNING, "distlock.idempotency"):
        first = shop.ask()
    assert (first.status_code, first.content, first.headers["x"]) == (201, b"done", "y")
    assert "a retry may be carried out again" in caplog.text
    assert stored(shop) == b""


def test_only_an_outage_is_answered_as_one() -> None:
    with pytest.raises(distlock.LockLost):
        Rules(None, DEFAULTS).instead(distlock.LockLost("while it was claimed", key="k"))


def test_the_page_of_the_problems_is_chosen(shop: Shop) -> None:
    shop.protect(required=True, page="https://shop.test/help")
    assert shop.ask(key=None).json()["type"] == "https://shop.test/help#missing"


def test_a_hundred_duplicates_are_done_once(shop: Shop) -> None:
    shop.protect(wait=30)
    shop.handler = lambda asked: Given(chunks=[b"%d" % len(shop.asked)])
    answers = [future.result() for future in [shop.start() for _ in range(100)]]
    assert {(answer.status_code, answer.content) for answer in answers} == {(201, b"1")}
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 99
    assert len(shop.asked) == 1


def test_the_bare_middleware_uses_the_configured_store(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distlock._default._default", shop.locks)
    shop.locks, locks = None, shop.locks  # type: ignore[assignment]
    shop.protect()
    shop.locks = locks
    assert isinstance(shop.ask(), httpx.Response)
    assert "idempotency-replayed" in shop.ask().headers
