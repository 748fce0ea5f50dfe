"""RESP 2, taken in as it comes, however it is cut into pieces."""

from __future__ import annotations

from typing import Any

from redis.exceptions import BusyLoadingError, InvalidResponse, NoPermissionError, NoScriptError, ResponseError

__all__ = ("Replies",)

# What `mapped` tells apart by more than the text.
_ERRORS: dict[str, type[Exception]] = {
    "NOSCRIPT": NoScriptError,
    "NOPERM": NoPermissionError,
    "LOADING": BusyLoadingError,
}


class Replies:
    """What a server says on one connection. No byte is looked at twice, into however many pieces a reply is cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._open: list[tuple[list[Any], int]] = []
        """Arrays that lack something, outermost first, and how long each will be."""

    def feed(self, data: bytes) -> list[Any]:
        """The replies that are whole now; errors as exceptions, not raised: a `ConnectionError` is the last word of a
        server. `InvalidResponse`: this is no RESP 2."""
        try:
            return self._whole(data)
        except ValueError as error:
            raise InvalidResponse(f"not a reply in RESP 2: {error}") from error

    def _whole(self, data: bytes) -> list[Any]:
        if self._rest:
            data = self._rest + data
        found: list[Any] = []
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            value: Any
            if data[at] == 58:  # an integer, as in most cases
                value = int(data[at + 1 : end])
            elif data[at] == 36 and data[at + 1] != 45:  # a text, and not nil
                start, end = end + 2, end + 2 + int(data[at + 1 : end])
                if len(data) < end + 2:
                    break
                value = data[start:end]
            else:
                value = _other(data[at : at + 1], data[at + 1 : end])
            at = end + 2
            if self._open or type(value) is _Array:
                self._add(value, found)
            else:
                found.append(value)
        self._rest = data[at:]
        return found

    def _add(self, value: Any, found: list[Any]) -> None:
        if type(value) is _Array:
            self._open.append(([], value.length))
            return
        while self._open:
            values, length = self._open[-1]
            values.append(value)
            if len(values) < length:
                return
            self._open.pop()
            value = values
        found.append(value)


class _Array:
    """The beginning of one that has something in it."""

    def __init__(self, length: int) -> None:
        self.length = length


def _other(kind: bytes, text: bytes) -> Any:
    if kind == b"*":
        length = int(text)
        return _Array(length) if length > 0 else [] if length == 0 else None
    if kind == b"-":
        return _error(text.decode(errors="replace"))
    if kind == b"+":
        return text
    if kind == b"$" and text == b"-1":
        return None
    raise ValueError(kind + text[:40])


def _error(text: str) -> Exception:
    code, _, rest = text.partition(" ")
    if "max number of clients" in text:  # said in place of a welcome
        return ConnectionError(text)
    return _ERRORS[code](rest) if code in _ERRORS else ResponseError(text)
