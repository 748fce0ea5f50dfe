"""What a URL says: the endpoints of one etcd, how to reach them, and as whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .._urls import ESCAPES, Form
from ..base import ConfigurationError

__all__ = ("Place", "Tls")

FORM = Form(
    store="etcd",
    scheme="etcd",
    example="etcd://[user:password@]host[:2379],host…",
    port=2379,
    options=("layout",),
    tls_options=("ca", "cert", "key", "server_name"),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """What is asked of the server's certificate, and shown of our own. All are the texts of PEM files."""

    ca: bytes | None = None
    """Who may have signed the server's; ``None``: those that grpc trusts."""
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None
    """Whose the server's is, if not the host's that is dialled."""


@dataclass(frozen=True, slots=True)
class Place:
    """A URL taken apart. An option that nobody knows is refused: a lock never silently does less than asked for."""

    endpoints: tuple[str, ...]
    """Each ``host:port``."""
    tls: Tls | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    options: dict[str, str] = field(default_factory=dict)
    """The backend's own that were given."""

    @classmethod
    def parse(cls, url: str) -> Place:
        """``etcd://[user:password@]host[:port],host…?layout=…``; with TLS ``etcd+tls://…?ca=&cert=&key=&server_name=``.

        The files are read now, so that a missing one is said at once.
        """
        parts = FORM.parse(url)
        if parts.path not in ("", "/"):
            raise ConfigurationError(f"an etcd URL has no path: {FORM.example}; {ESCAPES}")
        user, password = parts.login or (None, None)
        tls = _tls(parts.options) if parts.tls else None
        return cls(parts.hosts, tls, user, password, parts.options)

    @property
    def address(self) -> str:
        """For people: no user, no password."""
        return f"{'etcd+tls' if self.tls else 'etcd'}://{','.join(self.endpoints)}"


def _tls(options: dict[str, str]) -> Tls:
    """Takes its own out of ``options``."""
    files = {name: _read(name, options.pop(name)) for name in ("ca", "cert", "key") if name in options}
    if ("cert" in files) != ("key" in files):
        raise ConfigurationError("cert and key go together: the client's certificate, and the key to it")
    return Tls(**files, server_name=options.pop("server_name", None) or None)


def _read(name: str, path: str) -> bytes:
    try:
        content = Path(path).expanduser().read_bytes()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigurationError(f"the file of the option {name!r} cannot be read: {why}: {path!r}") from None
    if b"-----BEGIN " not in content:
        raise ConfigurationError(f"the file of the option {name!r} holds no PEM: {path!r}")
    return content
