"""Real servers for the tests: started on a free port of this machine, ended by process id.

A server never outlives the tests: the kernel kills it when the process that started it dies.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BufferedReader
from pathlib import Path
from threading import current_thread, main_thread
from typing import TypeAlias
from urllib.parse import quote

import pytest
import trustme

__all__ = ("REDIS_URL", "RedisServer", "bind_free_port", "redis_binary", "require_redis")

REDIS_URL = os.environ.get("DISTLOCK_TEST_REDIS_URL")
"""A server to use instead of starting one."""

_START_TIMEOUT = 15.0
_STOP_TIMEOUT = 10.0
# Below the ports that the kernel gives to outgoing connections: a client that keeps dialling the port of
# a server that is down must not end up connected to itself. Cluster buses (port + 10000) fit there too.
_PORTS = range(15_000, 22_000)

Reply: TypeAlias = "str | bytes | int | list[Reply] | None"


def bind_free_port() -> socket.socket:
    """A TCP socket bound to a free port of 127.0.0.1, not listening yet."""
    for port in random.sample(_PORTS, 200):
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(("127.0.0.1", port))
        except OSError:
            bound.close()
        else:
            return bound
    raise RuntimeError(f"no free port in {_PORTS}")


def _free_port() -> int:
    with bind_free_port() as bound:
        return int(bound.getsockname()[1])


def redis_binary() -> str | None:
    """The path of ``redis-server``, if there is one."""
    return shutil.which("redis-server")


def require_redis() -> str:
    """The path of ``redis-server``; without one the test fails in CI and is skipped elsewhere."""
    binary = redis_binary()
    if binary is None:
        reason = "no redis-server on PATH: run scripts/install-servers"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return binary


class RedisServer:
    """A Redis server of the test's own, as a context manager.

    ``config`` are lines of redis.conf. ``users`` maps names to ACL rules (``{"app": "on >pw ~* &* +@all"}``).
    With ``tls`` the port speaks TLS, by a certificate of an authority whose file is ``ca_file``. With
    ``appendonly`` every write survives `kill`; without, data survives `restart` but not a crash.
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
    ) -> None:
        self.port = 0
        self.tls = tls
        self.password = requirepass
        self._config = [
            *config,
            *([f'requirepass "{requirepass}"'] if requirepass else []),
            *(f"user {name} {rules}" for name, rules in (users or {}).items()),
            *([f"maxmemory {maxmemory}", f"maxmemory-policy {maxmemory_policy}"] if maxmemory else []),
            *(["appendonly yes", "appendfsync always"] if appendonly else []),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    def __repr__(self) -> str:
        return f"<RedisServer port={self.port} pid={self._process.pid if self._process else None}>"

    def __enter__(self) -> RedisServer:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    # Where it is

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def folder(self) -> Path:
        """Its files. Short, since the path of a Unix socket may have some hundred characters at most."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="distlock-"))
        return self._folder

    @property
    def socket_path(self) -> str:
        return str(self.folder / "redis.sock")

    @property
    def ca_file(self) -> str:
        return str(self.folder / "ca.pem")

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

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

    def start(self) -> None:
        """Starts it and waits until it answers. Later starts use the port of the first."""
        if self._process is not None:
            raise RuntimeError("the server runs already")
        binary = require_redis()
        deadline = time.monotonic() + _START_TIMEOUT
        if self.tls and not Path(self.ca_file).exists():
            self._make_certificates()
        first = self.port == 0
        while True:
            if first:
                self.port = _free_port()
            before = len(self.log())
            self._process = _launch([binary, str(self._write_config())], self.folder / "out.log")
            if self._answers(deadline):
                return
            self.kill()
            said = self.log()[before:]
            # Someone else may have bound the port before Redis did; nothing else is worth another try.
            if "Address already in use" not in said or time.monotonic() > deadline:
                raise RuntimeError(f"redis-server did not start:\n{said[-2000:]}")

    def stop(self) -> None:
        """An orderly shutdown (SIGTERM), which saves the data."""
        process = self._running()
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_TIMEOUT)
        self._process = None

    def kill(self) -> None:
        """A crash (SIGKILL)."""
        process = self._running()
        process.kill()
        process.wait(_STOP_TIMEOUT)
        self._process = None

    def restart(self, *, data: bool = True, crash: bool = False) -> None:
        """Down and up again at the same address, with its data or empty.

        After a crash its data is what `appendonly` saved.
        """
        if crash:
            self.kill()
        else:
            self.stop()
        if not data:
            shutil.rmtree(self.folder / "data")
        self.start()

    def pause(self) -> None:
        """Stops it (SIGSTOP), as a long pause of its machine would; on return it stands still."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Lets it go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    # What it says

    def command(self, *args: str | bytes | int) -> Reply:
        """The reply to one command, by no driver, on a connection of its own; errors are `RuntimeError`."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(_START_TIMEOUT)
            link.connect(self.socket_path)
            link.sendall(_encode(["AUTH", "harness", "-"]) + _encode(args))
            with link.makefile("rb") as stream:
                _read_reply(stream)
                return _read_reply(stream)

    def log(self) -> str:
        path = self.folder / "out.log"
        return path.read_text() if path.exists() else ""

    # Inside

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process

    def _answers(self, deadline: float) -> bool:
        # Over the Unix socket, which is surely this server's; Redis opens it after it has bound its port.
        process = self._running()
        while time.monotonic() < deadline and process.poll() is None:
            try:
                return self.command("PING") == "PONG"
            except (OSError, RuntimeError):  # not listening yet, or LOADING
                try:
                    process.wait(0.01)
                except subprocess.TimeoutExpired:
                    continue
        return False

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
            "user harness on nopass ~* &* +@all",  # for `command`, whatever a test does to the other users
            *self._config,
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    def _make_certificates(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(self.folder / "server.pem"))


@cache
def _launcher() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="server-launcher")


def _launch(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts a program that the kernel kills when this process dies."""
    if current_thread() is not main_thread():
        # The kernel means the *thread* that started the program (prctl(2), PR_SET_PDEATHSIG), so a
        # thread that ends with the test must not be the one.
        return _launcher().submit(_popen, argv, log).result()
    return _popen(argv, log)


def _popen(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    # setpriv, not preexec_fn: Python code between fork and exec may deadlock where there are threads.
    tether = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    with log.open("ab") as out:
        return subprocess.Popen(
            [*tether, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )


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
