"""Real etcd servers for the tests: one, or a cluster of three whose members can be cut off from each other."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trustme

from .ensembles import Ensemble, Member, Network
from .programs import START_TIMEOUT, bind_free_port, missing, wait_until

__all__ = ("MIN_TTL", "Authority", "EtcdCluster", "EtcdServer", "require_etcd", "require_etcdctl")

# The least TTL of a lease is that of one and a half elections, in whole seconds: as few as that can be.
_HEARTBEAT, _ELECTION = 50, 650
MIN_TTL = 1
"""Seconds: the least TTL that a lease gets here."""
_LOOK = 3.0
"""Seconds that a member has to say how it is."""


def require_etcd() -> str:
    """The path of ``etcd``; without one the test fails in CI and is skipped elsewhere."""
    return shutil.which("etcd") or missing("no etcd on PATH: run scripts/install-servers")


def require_etcdctl() -> str:
    """The path of ``etcdctl``; without one the test fails in CI and is skipped elsewhere."""
    return shutil.which("etcdctl") or missing("no etcdctl on PATH: run scripts/install-servers")


@cache
def _no_fsync(program: str) -> list[str]:
    """No disk is waited for, where this etcd can be told so. A crash loses nothing yet: the machine stays up."""
    option = "--unsafe-no-fsync"
    return [option] if subprocess.run([program, option, "--version"], capture_output=True).returncode == 0 else []


class Authority:
    """Certificates of a server and of its clients, as files of a folder."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca, self.server, self.client = (str(folder / name) for name in ("ca.pem", "server.pem", "client.pem"))
        authority.cert_pem.write_to_path(self.ca)
        # No common name: etcd would take it for a user's, and its HTTP gateway does not work with one.
        for path in (self.server, self.client):
            certificate = authority.issue_cert("127.0.0.1", "localhost")
            certificate.private_key_and_cert_chain_pem.write_to_path(path)

    def context(self) -> ssl.SSLContext:
        """For a client."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.client)
        return context


@dataclass(frozen=True, slots=True)
class _Peer:
    """A member among its peers: where it listens for them, where they find it, and all of them."""

    name: str
    port: int
    found_at: int
    members: str


class EtcdServer(Member):
    """An etcd server of the test's own, as a context manager.

    ``arguments`` are for the program. With ``tls`` clients speak TLS, by certificates of `authority`; with
    ``client_certificates`` they need one of their own. ``users`` maps names to a password and a prefix of
    keys that they may read and write; then there is ``root`` too, whose password is `root_password`, and nobody else
    may do anything. A token of theirs lasts ``token_ttl`` seconds from its last use.
    """

    root_password = "r/oo:t@1"

    def __init__(
        self,
        *arguments: str,
        tls: bool = False,
        client_certificates: bool = False,
        users: Mapping[str, tuple[str, str]] | None = None,
        token_ttl: int = 300,
    ) -> None:
        super().__init__()
        self.tls = tls or client_certificates
        self.client_certificates = client_certificates
        self.users = dict(users or {})
        self.peer: _Peer | None = None
        self._given = [*arguments, "--auth-token-ttl", str(token_ttl), "--bcrypt-cost", "4"]
        self._authority: Authority | None = None
        self.asks = False
        """Whether it asks who one is."""
        self._token = ""
        self._log_before = 0

    # Where it is

    @property
    def authority(self) -> Authority:
        if self._authority is None:
            self._authority = Authority(self.folder)
        return self._authority

    def share(self, other: EtcdServer) -> None:
        """Has the certificates of another server."""
        if self.tls:
            self._authority = other.authority

    @property
    def url(self) -> str:
        """Its URL for its first user, if it has users."""
        return self.url_at(self.port)

    def url_at(self, *ports: int, user: str | None = None, password: str | None = None) -> str:
        """Its URL by way of other ports (proxies'), or for another user."""
        if user is None and self.users:
            user = next(iter(self.users))
        if user is not None and password is None:
            password = self.users[user][0] if user in self.users else self.root_password
        login = f"{quote(user, safe='')}:{quote(password or '', safe='')}@" if user is not None else ""
        places = ",".join(f"127.0.0.1:{port}" for port in ports)
        files = []
        if self.tls:
            files.append(f"ca={quote(self.authority.ca)}")
        if self.client_certificates:
            files += [f"cert={quote(self.authority.client)}", f"key={quote(self.authority.client)}"]
        return f"etcd{'+tls' if self.tls else ''}://{login}{places}{'?' if files else ''}{'&'.join(files)}"

    # Its life

    def start(self) -> None:
        """Starts it and waits until it serves, with a leader. Later starts use the port of the first."""
        fresh = not (self.folder / "data").exists()
        super().start()
        if fresh and self.users and self._alone:
            self.enable_auth()

    def enable_auth(self) -> None:
        """Makes the users that were asked for, and asks everybody who they are from now on."""
        for name, (password, prefix) in self.users.items():
            self.call("auth/user/add", name=name, password=password)
            self.call("auth/role/add", name=name)
            self.call("auth/role/grant", name=name, perm={"permType": "READWRITE", **_prefixed(prefix)})
            self.call("auth/user/grant", user=name, role=name)
        self.call("auth/user/add", name="root", password=self.root_password)
        self.call("auth/role/add", name="root")
        self.call("auth/user/grant", user="root", role="root")
        self.call("auth/enable")
        self.asks = True

    # What it says

    def call(self, path: str, **request: object) -> Any:
        """The answer of its JSON gateway to a request, root's if there are users. Errors are `RuntimeError`."""
        if self.asks and not self._token:
            self._log_in()
        try:
            return self._post(path, request)
        except PermissionError:
            self._log_in()
            return self._post(path, request)

    def put(self, key: str, value: str = "") -> None:
        self.call("kv/put", key=_encoded(key), value=_encoded(value))

    def get(self, key: str) -> str | None:
        found = self.call("kv/range", key=_encoded(key)).get("kvs", ())
        return base64.b64decode(found[0].get("value", "")).decode() if found else None

    def delete(self, key: str) -> int:
        """How many there were."""
        return int(self.call("kv/deleterange", key=_encoded(key)).get("deleted", 0))

    def keys(self, prefix: str = "") -> list[str]:
        """All keys, or those that begin so, in the order of their creation."""
        found = self.call("kv/range", **_prefixed(prefix), keys_only=True, sort_target="CREATE").get("kvs", ())
        return [base64.b64decode(each["key"]).decode() for each in found]

    def leases(self) -> list[int]:
        return [int(lease["ID"]) for lease in self.call("lease/leases").get("leases", ())]

    def lease_keys(self, lease: int) -> list[str]:
        """The keys that go with a lease."""
        found = self.call("lease/timetolive", ID=lease, keys=True).get("keys", ())
        return [base64.b64decode(each).decode() for each in found]

    def revoke(self, lease: int) -> None:
        """Ends a lease, and with it its keys."""
        self.call("lease/revoke", ID=lease)

    def revision(self) -> int:
        return int(self.call("kv/range", key=_encoded("-"), count_only=True)["header"]["revision"])

    def compact(self) -> None:
        """Forgets everything that was before now: who wants to watch from earlier on is cancelled."""
        self.call("kv/compaction", revision=self.revision(), physical=True)

    def flush(self) -> None:
        """Ends all leases and deletes all keys."""
        for lease in self.leases():
            with suppress(RuntimeError):  # it has just ended by itself
                self.revoke(lease)
        self.call("kv/deleterange", **_prefixed(""))

    def metric(self, name: str) -> float:
        """A counter of its own, summed over its labels (``grpc_server_handled_total{grpc_method="Txn"`` are some)."""
        lines = self._exchange("GET", "/metrics", None, START_TIMEOUT)[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def etcdctl(self, *arguments: str) -> list[str]:
        """The command line that runs etcdctl with it, as root if there are users."""
        options = [f"--endpoints={'https' if self.tls else 'http'}://127.0.0.1:{self.port}"]
        if self.tls:
            options += [f"--cacert={self.authority.ca}"]
        if self.client_certificates:
            options += [f"--cert={self.authority.client}", f"--key={self.authority.client}"]
        if self.users:
            options += ["--user=root", f"--password={self.root_password}"]
        return ["env", "ETCDCTL_API=3", require_etcdctl(), *options, *arguments]

    def status(self) -> tuple[str, str]:
        """The ids, in hex, of itself and of the leader that it knows (``0``: of none)."""
        status = self._post("maintenance/status", {}, _LOOK)
        return f"{int(status['header']['member_id']):x}", f"{int(status.get('leader', 0)):x}"

    def serves(self) -> bool:
        return self._exchange("GET", "/health", None, _LOOK)[0] == 200

    # Inside

    def _program(self) -> str:
        return require_etcd()

    @property
    def _alone(self) -> bool:
        return self.peer is None or "," not in self.peer.members

    def _take_ports(self) -> None:
        with bind_free_port() as client, bind_free_port() as peer:
            self.port, port = client.getsockname()[1], peer.getsockname()[1]
        if self._alone:
            self.peer = _Peer("m0", port, port, f"m0=http://127.0.0.1:{port}")

    def _arguments(self) -> list[str]:
        assert self.peer is not None
        self._log_before = len(self.log())
        clients = f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"
        options = {
            "name": self.peer.name,
            "data-dir": str(self.folder / "data"),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": f"http://127.0.0.1:{self.peer.port}",
            "initial-advertise-peer-urls": f"http://127.0.0.1:{self.peer.found_at}",
            "initial-cluster": self.peer.members,
            "initial-cluster-token": self.peer.members,
            "heartbeat-interval": str(_HEARTBEAT),
            "election-timeout": str(_ELECTION),
            "logger": "zap",
            "log-outputs": "stderr",
        }
        if self.tls:
            options |= {"cert-file": self.authority.server, "key-file": self.authority.server}
        certificates: list[str] = []
        if self.client_certificates:  # a trusted-ca-file alone would ask for them as well
            certificates = ["--client-cert-auth", "--trusted-ca-file", self.authority.ca]
        words = [word for option, value in options.items() for word in (f"--{option}", value)]
        return [*words, *_no_fsync(self._program()), *certificates, *self._given]

    def _ready(self) -> bool:
        # It says so when it has bound its port, so that nobody else can be who answers there.
        return "serving client traffic" in self.log()[self._log_before :] and self.serves()

    def _log_in(self) -> None:
        login = {"name": "root", "password": self.root_password}
        self._token = ""
        self._token = self._post("auth/authenticate", login)["token"]

    def _post(self, path: str, request: object, timeout: float = START_TIMEOUT) -> Any:
        status, text = self._exchange("POST", f"/v3/{path}", json.dumps(request), timeout)
        answer = json.loads(text)
        if status == 200:
            return answer
        error = answer.get("error", "")
        if "invalid auth token" in error or "old revision" in error:
            raise PermissionError(error)
        raise RuntimeError(f"{path}: {error}")

    def _exchange(self, method: str, path: str, body: str | None, timeout: float) -> tuple[int, str]:
        link = (
            HTTPSConnection(*self.address, timeout=timeout, context=self.authority.context())
            if self.tls
            else HTTPConnection(*self.address, timeout=timeout)
        )
        with closing(link):
            try:
                link.request(method, path, body, {"Authorization": self._token} if self._token else {})
                response = link.getresponse()
                return response.status, response.read().decode()
            except HTTPException as error:
                raise RuntimeError(f"no answer: {error!r}") from error


class EtcdCluster(Ensemble[EtcdServer]):
    """Three etcd servers of the test's own. Options as of `EtcdServer`."""

    def __init__(
        self,
        *arguments: str,
        tls: bool = False,
        client_certificates: bool = False,
        users: Mapping[str, tuple[str, str]] | None = None,
        token_ttl: int = 300,
    ) -> None:
        super().__init__(
            EtcdServer(*arguments, tls=tls, client_certificates=client_certificates, users=users, token_ttl=token_ttl)
            for _ in range(3)
        )
        self._ids: list[str] = []

    def url_without(self, number: int) -> str:
        """Its URL by way of the other members."""
        return self.servers[0].url_at(*(server.port for server in self.servers if server is not self.servers[number]))

    def _leader(self) -> int:
        leaders = {self.servers[number].status()[1] for number in self.left}
        if len(leaders) != 1 or not leaders <= {self._ids[number] for number in self.left}:
            raise RuntimeError(f"no leader at this moment: {leaders}")
        return self._ids.index(leaders.pop())

    def partition(self, number: int) -> None:
        """It is cut off from the others; clients still reach it. On return it knows that it has no leader."""
        super().partition(number)
        wait_until(lambda: self.servers[number].status()[1] == "0", f"member {number} to miss its leader")

    def lead(self, number: int) -> None:
        """Another leader, in order."""

        def leads() -> bool:
            leader = self._leader()
            if leader != number:  # a busy one may refuse to go, or another than was meant be elected
                self.servers[leader].call("maintenance/transfer-leadership", targetID=str(int(self._ids[number], 16)))
            return leader == number

        wait_until(leads, f"member {number} to lead")

    # Inside

    def _start(self) -> None:
        self._start_members()
        self._ids = [server.status()[0] for server in self.servers]
        self._await_all()
        if self.servers[0].users:
            self.servers[0].enable_auth()
        for server in self.servers:
            server.asks = bool(server.users)

    def _connect(self) -> Network:
        with ExitStack() as stack:
            doors = [stack.enter_context(bind_free_port()) for _ in self.servers]
            ports = [stack.enter_context(bind_free_port()).getsockname()[1] for _ in self.servers]
            found = [door.getsockname()[1] for door in doors]
            words = [word for door, port in zip(doors, ports, strict=True) for word in (door.fileno(), port)]
            network = Network("etcd_peers", words, doors)
        members = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(found))
        for number, (server, port, at) in enumerate(zip(self.servers, ports, found, strict=True)):
            server.peer = _Peer(f"m{number}", port, at, members)
            server.share(self.servers[0])
        return network

    def _ends(self, number: int) -> tuple[str, ...]:
        return f"m{number}", self._ids[number]


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _prefixed(prefix: str) -> dict[str, str]:
    """The range of the keys that begin so."""
    first, last = (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)) if prefix else ("\0", "\0")
    return {"key": _encoded(first), "range_end": _encoded(last)}
