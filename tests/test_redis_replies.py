"""RESP 2 is read the same however a network cuts it into pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st
from redis.exceptions import BusyLoadingError, InvalidResponse, NoPermissionError, NoScriptError, ResponseError

from distlock.backends.redis._replies import Replies

WORDS = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.integers() | st.binary() | WORDS.map(lambda text: ("+", text)) | WORDS.map(lambda text: ("-", text)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


def _packed(value: Any) -> bytes:
    """As a server would say it."""
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if isinstance(value, tuple):
        return f"{value[0]}{value[1]}\r\n".encode()
    return b"*%d\r\n" % len(value) + b"".join(_packed(each) for each in value)


def _plain(value: Any) -> Any:
    """What was read, in a form that can be compared."""
    if isinstance(value, Exception):
        return type(value), str(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _meant(value: Any) -> Any:
    if isinstance(value, tuple):
        return value[1].encode() if value[0] == "+" else _plain(Replies().feed(_packed(value))[0])
    return [_meant(each) for each in value] if isinstance(value, list) else value


@given(st.lists(VALUES, max_size=6), st.data())
def test_replies_are_the_same_however_they_are_cut(values: list[Any], data: st.DataObject) -> None:
    """redis-py#2579: what is left of one reply was taken for the next one."""
    stream = b"".join(_packed(value) for value in values)
    cuts = data.draw(st.lists(st.integers(0, len(stream))).map(sorted))
    replies, found = Replies(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += replies.feed(stream[start:end])
    assert [_plain(each) for each in found] == [_meant(value) for value in values]


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        ("NOSCRIPT No matching script.", NoScriptError, "No matching script."),
        ("NOPERM no permission", NoPermissionError, "no permission"),
        ("LOADING it is", BusyLoadingError, "it is"),
        ("MOVED 1 127.0.0.1:7001", ResponseError, "MOVED 1 127.0.0.1:7001"),
        ("ERR max number of clients reached", ConnectionError, "ERR max number of clients reached"),
    ],
)
def test_an_error_is_a_value_that_keeps_its_text(line: str, kind: type[Exception], text: str) -> None:
    assert _plain(Replies().feed(f"*2\r\n:1\r\n-{line}\r\n".encode())) == [[1, (kind, text)]]


@pytest.mark.parametrize("said", ["HTTP/1.1 400 Bad Request", ":", ":x", "$", "$x", "*-x", "$-2", "", "%1", "_"])
def test_what_is_no_resp_2_is_said_so(said: str) -> None:
    with pytest.raises(InvalidResponse):
        Replies().feed(f"{said}\r\n".encode())


def test_a_long_array_costs_no_more_for_its_pieces() -> None:
    """A queue of many waiters comes in hundreds of pieces; reading all of it again with each would take minutes."""
    stream = _packed([b"waiter"] * 200_000)
    replies, found = Replies(), []
    for start in range(0, len(stream), 1000):
        found += replies.feed(stream[start : start + 1000])
    assert found == [[b"waiter"] * 200_000]
