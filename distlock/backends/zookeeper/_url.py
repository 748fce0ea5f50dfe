"""What a URL, or a ready client, says: the servers of one ZooKeeper, how to reach them, and as whom."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._urls import Form
from ..base import ConfigurationError

if TYPE_CHECKING:
    from kazoo.client import KazooClient

__all__ = ("Place",)

LONGEST_SESSION = 30.0
FORM = Form(
    store="ZooKeeper",
    scheme="zookeeper",
    example="zookeeper://[user:password@]host[:2181],host…[/chroot]",
    port=2181,
    options=("session_timeout", "layout", "path", "acl", "auth"),
    tls_options=("ca", "cert", "key"),
)
LAYOUTS = ("distlock", "kazoo", "curator")
ACLS = ("open", "creator")
AUTHS = ("digest", "sasl")


@dataclass(frozen=True, slots=True)
class Place:
    """A URL taken apart. An option that nobody knows is refused: a lock never silently does less than asked for."""

    hosts: tuple[str, ...]
    """Each ``host:port``."""
    chroot: str = ""
    session_timeout: float = LONGEST_SESSION
    """Seconds: no session is longer."""
    insists: bool = False
    """That length was asked for, and is not to be a shorter one."""
    layout: str = "distlock"
    path: str = ""
    """Under which the locks are; empty: where they are by default."""
    acl: str | tuple[Any, ...] = "open"
    """Whose the nodes are, or ACLs of kazoo's."""
    driver: dict[str, Any] = field(default_factory=dict, repr=False)
    """What else kazoo's client is made with."""

    @classmethod
    def parse(cls, url: str) -> Place:
        """Raises `ConfigurationError`, which repeats nothing that may be a password."""
        parts = FORM.parse(url)
        options = parts.options
        driver = _tls(options) if parts.tls else {}
        driver.update(_auth(parts.login, _one_of("auth", options.pop("auth", "digest"), AUTHS)))
        return cls(
            parts.hosts,
            _path(parts.path, "the chroot"),
            _seconds(options.get("session_timeout", str(LONGEST_SESSION))),
            "session_timeout" in options,
            _one_of("layout", options.get("layout", "distlock"), LAYOUTS),
            _path(options.get("path", ""), "path"),
            _one_of("acl", options.get("acl", "open"), ACLS),
            driver,
        )

    @classmethod
    def of(cls, client: KazooClient, layout: str, path: str) -> Place:
        """Of a client of kazoo, which lends its servers, its credentials and its session's length."""
        driver = {
            "auth_data": set(client.auth_data),
            "sasl_options": dict(client._connection.sasl_options) if client._connection.sasl_options else None,
            **{
                name: getattr(client, name)
                for name in ("keyfile", "keyfile_password", "certfile", "ca", "use_ssl", "verify_certs")
            },
            "check_hostname": getattr(client, "check_hostname", False),
            "randomize_hosts": client.randomize_hosts,
        }
        return cls(
            tuple(f"{host}:{port}" for host, port in client.hosts or ()),
            client.chroot or "",
            client._session_timeout / 1000,
            False,
            _one_of("layout", layout, LAYOUTS),
            _path(path, "path"),
            tuple(client.default_acl) if client.default_acl else "open",
            driver,
        )

    @property
    def address(self) -> str:
        """For people: no user, no password."""
        scheme = "zookeeper+tls" if self.driver.get("use_ssl") else "zookeeper"
        return f"{scheme}://{','.join(self.hosts)}{self.chroot}"


def _auth(login: tuple[str, str] | None, how: str) -> dict[str, Any]:
    if login is None:
        return {}
    user, password = login
    if how == "digest":
        return {"auth_data": {("digest", f"{user}:{password}")}}
    try:
        import puresasl  # noqa: F401 - kazoo's own way to SASL
    except ModuleNotFoundError as error:
        raise ConfigurationError("pure-sasl is not installed; run: pip install pure-sasl") from error
    return {"sasl_options": {"mechanism": "DIGEST-MD5", "username": user, "password": password}}


def _tls(options: dict[str, str]) -> dict[str, Any]:
    """Takes its own out of ``options``."""
    files = {name: os.path.expanduser(options.pop(name)) for name in FORM.tls_options if name in options}
    for name, path in files.items():
        if not os.access(path, os.R_OK):
            raise ConfigurationError(f"the file of the option {name!r} cannot be read: {path!r}")
    if "key" in files and "cert" not in files:
        raise ConfigurationError("cert and key go together: the client's certificate, and the key to it")
    named = {"ca": files.get("ca"), "certfile": files.get("cert"), "keyfile": files.get("key", files.get("cert"))}
    return {"use_ssl": True, "check_hostname": True, **{name: path for name, path in named.items() if path}}


def _one_of(option: str, given: str, there: tuple[str, ...]) -> str:
    if given not in there:
        raise ConfigurationError(f"{option} is one of {', '.join(there)} (the default is {there[0]})")
    return given


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= 86400.0:
        raise ConfigurationError("session_timeout is a number of seconds, from 1 to 86400")
    return seconds


def _path(text: str, what: str) -> str:
    """Without the ``/`` at its end."""
    path = text.rstrip("/")
    if path and (not path.startswith("/") or any(part in ("", ".", "..") for part in path[1:].split("/"))):
        raise ConfigurationError(f"{what} is a path in ZooKeeper, as in /locks")
    return path
