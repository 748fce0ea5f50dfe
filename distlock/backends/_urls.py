"""URLs that name several servers of one store, ``store://[user:password@]host[:port],host…?option=…``.

No error repeats what may be a part of a password, and no option is passed over: a lock never silently does less than it
was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from .base import ConfigurationError

__all__ = ("ESCAPES", "Form", "Parts")

ESCAPES = "in a password, write / ? # @ and : as %2F %3F %23 %40 and %3A"


class Parts(NamedTuple):
    """A URL taken apart."""

    hosts: tuple[str, ...]
    """Each ``host:port``."""
    login: tuple[str, str] | None
    """User and password."""
    path: str
    tls: bool
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class Form:
    """Of one store's URLs."""

    store: str
    """As people call it."""
    scheme: str
    """With ``+tls`` behind it, TLS is used."""
    example: str
    port: int
    """Where none is given."""
    options: tuple[str, ...]
    tls_options: tuple[str, ...]

    def parse(self, url: str) -> Parts:
        """Raises `ConfigurationError`."""
        try:
            parts = urlsplit(url)
        except ValueError:  # whose text may repeat a part of the URL
            raise ConfigurationError(f"not a usable {self.store} URL: {self.example}") from None
        if "@" in parts.path + parts.query or parts.fragment:  # what stands there may be the rest of a password
            raise self._misplaced("an @ or a # where none can be", "; so elsewhere")
        login, _, hosts = parts.netloc.rpartition("@")
        tls = parts.scheme.endswith("+tls")
        return Parts(
            tuple(self._with_port(host) for host in hosts.split(",")),
            self._login(login),
            unquote(parts.path),
            tls,
            self._options(parts.scheme, parts.query, tls=tls),
        )

    def _misplaced(self, what: str, more: str = "") -> ConfigurationError:
        return ConfigurationError(f"not a usable {self.store} URL ({what}): {ESCAPES}{more}")

    def _with_port(self, host: str) -> str:
        name, colon, port = host.rpartition(":")
        if not colon or "]" in port:
            name, port = host, str(self.port)
        if not name.strip("[]"):
            raise ConfigurationError("a host is missing: write host[:port],host[:port],…")
        port = port or str(self.port)
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):  # it may be a part of a password
            raise self._misplaced("a port is no number from 1 to 65535")
        return f"{name}:{port}"

    def _login(self, login: str) -> tuple[str, str] | None:
        if not login:
            return None
        user, colon, password = login.partition(":")
        if not user or not colon:
            raise ConfigurationError(f"{self.store} wants a user and a password, or neither: {self.example}")
        return unquote(user), unquote(password)

    def _options(self, scheme: str, query: str, *, tls: bool) -> dict[str, str]:
        given = dict(parse_qsl(query, keep_blank_values=True))
        there = (*self.options, *(self.tls_options if tls else ()))
        for name in sorted(given.keys() - set(there)):
            if name in self.tls_options:
                raise ConfigurationError(f"the option {name!r} is for TLS: write {self.scheme}+tls://…")
            which = f"option {name!r}" if name.isidentifier() else "such option"
            raise ConfigurationError(f"{scheme}:// has no {which}; there are {', '.join(there)}; {ESCAPES}")
        return given
