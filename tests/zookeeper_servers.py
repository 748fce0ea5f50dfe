"""Real ZooKeeper servers for the tests: one, or an ensemble of three whose members can be cut off from each other."""

from __future__ import annotations

import itertools
import shutil
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cryptography.hazmat.primitives import serialization

from .ensembles import Ensemble, Member, Network
from .etcd_servers import Authority
from .programs import START_TIMEOUT, bind_free_port, missing, start_all

if TYPE_CHECKING:
    from kazoo.client import KazooClient

__all__ = ("JAR", "MIN_SESSION", "TICK", "ZooKeeperEnsemble", "ZooKeeperServer", "require_zookeeper")

TICK = 0.2
"""Seconds."""
MIN_SESSION = 2 * TICK
"""Seconds: the shortest session that a server grants here, as by its own default."""
_MAX_SESSION = 600.0

_JARS = Path("/usr/share/java")
JAR = _JARS / "zookeeper.jar"

T = TypeVar("T")


def require_zookeeper() -> str:
    """The class path of ZooKeeper; where it or Java is not, the test fails in CI and is skipped elsewhere."""
    if shutil.which("java") is None or not JAR.exists():
        missing("no java on PATH, or no zookeeper.jar: run scripts/install-servers")
    names = ("slf4j-simple", "netty-codec", "netty-resolver", "netty-transport-native-unix-common")
    return ":".join(map(str, [JAR, *(_JARS / f"{name}.jar" for name in names)]))


@dataclass(slots=True)
class _Peer:
    """A member among its peers: its number, where it listens for them, and where it finds them."""

    number: int
    quorum: int
    election: int
    others: dict[int, tuple[int, int]] = field(default_factory=dict)


class ZooKeeperServer(Member):
    """A ZooKeeper server of the test's own, as a context manager.

    ``settings`` are lines of its zoo.cfg, ``properties`` of the JVM. With ``tls`` there is a second port for clients,
    `secure_port`, by certificates of `authority`. ``users`` maps names to the passwords of SASL's DIGEST-MD5.
    """

    def __init__(
        self,
        settings: Iterable[str] = (),
        properties: Iterable[str] = (),
        *,
        tls: bool = False,
        users: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.tls = tls
        self.users = dict(users or {})
        self.secure_port = 0
        self.peer: _Peer | None = None
        self.settings = [*settings]
        self._properties = [*properties]
        self._authority: Authority | None = None
        self._client: KazooClient | None = None
        self._mutex = threading.Lock()

    def __exit__(self, *_: object) -> None:
        self.drop_client()
        super().__exit__()

    # Where it is

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, *ports: int) -> str:
        return f"zookeeper://{','.join(f'127.0.0.1:{port}' for port in ports)}"

    @property
    def hosts(self) -> str:
        """As kazoo's client takes it."""
        return f"127.0.0.1:{self.port}"

    @property
    def authority(self) -> Authority:
        if self._authority is None:
            self._authority = Authority(self.folder)
        return self._authority

    # Its life

    def kill(self) -> None:
        self.drop_client()
        super().kill()

    def stop(self) -> None:
        self.drop_client()
        super().stop()

    def pause(self) -> None:
        self.drop_client()
        super().pause()

    # What it says

    def say(self, word: str) -> str:
        """The answer to a word of four letters."""
        with closing(socket.create_connection(self.address, timeout=3.0)) as link:
            link.sendall(word.encode())
            answer = b""
            while data := link.recv(65536):
                answer += data
            return answer.decode()

    def mode(self) -> str:
        """``standalone``, ``leader`` or ``follower``; empty if it serves nobody."""
        found = [line for line in self.say("srvr").splitlines() if line.startswith("Mode: ")]
        return found[0].partition(": ")[2] if found else ""

    def serves(self) -> bool:
        return bool(self.mode())

    def metric(self, name: str) -> float:
        """One line of ``mntr``."""
        lines = dict(line.split("\t", 1) for line in self.say("mntr").splitlines() if "\t" in line)
        return float(lines[name])

    def watches(self) -> int:
        """How many its clients have."""
        return int(self.metric("zk_watch_count"))

    def sessions(self) -> set[int]:
        """Those that are open, but for our own."""
        own = self.client().client_id
        text = self.say("dump").partition("ephemeral")[0]
        words = {word.strip() for word in text.replace("(", " ").split() if word.startswith("0x")}
        return {int(word, 16) for word in words} - {own[0] % 2**64 if own else 0}

    def client(self) -> KazooClient:
        """Ours, to look inside."""
        from kazoo.client import KazooClient

        with self._mutex:
            if self._client is None:
                patient = {"max_tries": -1, "delay": 0.05, "max_delay": 0.2}
                client = KazooClient(self.hosts, timeout=10.0, connection_retry=patient)
                client.start(timeout=START_TIMEOUT)
                self._client = client
            return self._client

    def nodes(self, path: str = "/distlock") -> list[str]:
        """All nodes from ``path`` on that have and had no children: emptied containers go by themselves."""
        return self._ask(lambda client: client.sync(path) and [*_leaves(client, path)])

    def children(self, path: str) -> list[str]:
        """In the order of their creation."""

        def ask(client: KazooClient) -> list[str]:
            from kazoo.exceptions import NoNodeError

            client.sync(path)  # this member may be behind
            try:
                stats = {name: client.exists(f"{path}/{name}") for name in client.get_children(path)}
            except NoNodeError:
                return []
            return sorted((name for name, stat in stats.items() if stat), key=lambda name: int(stats[name].czxid))

        return self._ask(ask)

    def delete(self, path: str) -> None:
        self._ask(lambda client: client.delete(path, recursive=True))

    def flush(self) -> None:
        """Deletes all nodes."""
        from kazoo.exceptions import NoNodeError, NotEmptyError

        def ask(client: KazooClient) -> None:
            for name in client.get_children("/"):
                while name != "zookeeper":
                    with suppress(NoNodeError, NotEmptyError):
                        client.delete(f"/{name}", recursive=True)
                    if not client.exists(f"/{name}"):
                        break

        self._ask(ask)

    def expire(self, client_id: tuple[int, bytes]) -> None:
        """Ends a session, as the server does when it has not heard of it in time."""
        from kazoo.client import KazooClient

        other = KazooClient(self.hosts, timeout=10.0, client_id=client_id)
        other.start(timeout=START_TIMEOUT)
        other.stop()
        other.close()

    # Inside

    def _ask(self, call: Callable[[KazooClient], T]) -> T:
        """By our client, which may have lost its connection a moment ago."""
        from kazoo.exceptions import ConnectionLoss, SessionExpiredError

        for _ in range(20):
            try:
                return call(self.client())
            except (ConnectionLoss, SessionExpiredError):
                self.drop_client()
        return call(self.client())

    def drop_client(self) -> None:
        with self._mutex:
            client, self._client = self._client, None
        if client is not None:
            client.stop()
            client.close()

    def _program(self) -> str:
        require_zookeeper()
        return shutil.which("java") or ""

    def _take_ports(self) -> None:
        with ExitStack() as stack:
            self.port, self.secure_port = (stack.enter_context(bind_free_port()).getsockname()[1] for _ in range(2))

    def _arguments(self) -> list[str]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        config = self.folder / "zoo.cfg"
        config.write_text("\n".join([*self._lines(data), *self.settings, ""]))
        return [
            "-Xmx128m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Xshare:auto",
            "-Dzookeeper.forceSync=no",  # a crash loses nothing yet: the machine stays up
            "-Dznode.container.checkIntervalMs=1000",
            "-Dznode.container.maxPerMinute=600000",
            "-Dzookeeper.cnxTimeout=500",
            "-Dzookeeper.fastleader.minNotificationInterval=50",
            "-Dzookeeper.fastleader.maxNotificationInterval=300",
            "-Dzookeeper.leader.maxTimeToWaitForEpoch=1000",
            "-Dzookeeper.leader.closeSocketAsync=true",
            "-Dzookeeper.learner.closeSocketAsync=true",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            *self._login_properties(),
            *self._properties,
            "-cp",
            require_zookeeper(),
            "org.apache.zookeeper.server.quorum.QuorumPeerMain",
            str(config),
        ]

    def _lines(self, data: Path) -> list[str]:
        lines = [
            f"tickTime={int(TICK * 1000)}",
            f"maxSessionTimeout={int(_MAX_SESSION * 1000)}",
            "initLimit=10",
            "syncLimit=10",
            f"dataDir={data}",
            f"clientPort={self.port}",
            "clientPortAddress=127.0.0.1",
            "maxClientCnxns=0",
            "admin.enableServer=false",
            "4lw.commands.whitelist=*",
        ]
        if self.tls:
            lines += self._secure_lines()
        if self.peer is not None:
            own = self.peer
            (data / "myid").write_text(str(own.number))
            lines += [
                f"server.{number}=127.0.0.1:{quorum}:{election}"
                for number, (quorum, election) in sorted({**own.others, own.number: (own.quorum, own.election)}.items())
            ]
        return lines

    def _secure_lines(self) -> list[str]:
        own = self.folder / "server-pkcs8.pem"  # Java reads no other form
        text = Path(self.authority.server).read_bytes()
        key = serialization.load_pem_private_key(text, None)
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        own.write_bytes(pem + text[text.index(b"-----BEGIN CERT") :])
        return [
            f"secureClientPort={self.secure_port}",
            "secureClientPortAddress=127.0.0.1",
            "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory",
            f"ssl.keyStore.location={own}",
            "ssl.keyStore.type=PEM",
            f"ssl.trustStore.location={self.authority.ca}",
            "ssl.trustStore.type=PEM",
            "ssl.hostnameVerification=false",
        ]

    def _login_properties(self) -> list[str]:
        if not self.users:
            return []
        path = self.folder / "jaas.conf"
        users = "\n".join(f'  user_{name}="{password}"' for name, password in self.users.items())
        path.write_text(f"Server {{\n  org.apache.zookeeper.server.auth.DigestLoginModule required\n{users};\n}};\n")
        provider = "org.apache.zookeeper.server.auth.SASLAuthenticationProvider"
        return [f"-Djava.security.auth.login.config={path}", f"-Dzookeeper.authProvider.1={provider}"]

    def _ready(self) -> bool:
        return self.serves()


def _leaves(client: Any, path: str) -> Iterable[str]:
    from kazoo.exceptions import NoNodeError

    try:
        names, stat = client.get_children(path, include_data=True)
    except NoNodeError:
        return
    if not names and not stat.children_version:
        yield path
    for name in names:
        yield from _leaves(client, f"{path}/{name}")


class ZooKeeperEnsemble(Ensemble[ZooKeeperServer]):
    """Three ZooKeeper servers of the test's own. Options as of `ZooKeeperServer`."""

    def __init__(
        self, settings: Iterable[str] = (), properties: Iterable[str] = (), *, last_leads: bool = False
    ) -> None:
        """``last_leads``: the last of the servers is the first leader, else it may be any."""
        super().__init__(ZooKeeperServer(settings, properties) for _ in range(3))
        self._last_leads = last_leads

    def _leader(self) -> int:
        leaders = [number for number in self.left if self.servers[number].mode() == "leader"]
        if len(leaders) != 1:
            raise RuntimeError(f"no leader at this moment: {leaders}")
        return leaders[0]

    def cut(self, number: int) -> None:
        self.servers[number].drop_client()
        super().cut(number)

    # Inside

    def _start_up(self) -> None:
        if self._last_leads:
            start_all(self.servers[1:])  # of two that are empty and need each other the higher number is elected
            start_all(self.servers[:1])
        else:
            super()._start_up()

    def _connect(self) -> Network:
        """Two links from each to each other."""
        pairs = list(itertools.permutations(range(3), 2))
        with ExitStack() as stack:
            own = [[stack.enter_context(bind_free_port()).getsockname()[1] for _ in range(2)] for _ in self.servers]
            doors = {(*pair, kind): stack.enter_context(bind_free_port()) for pair in pairs for kind in (0, 1)}
            at = {link: door.getsockname()[1] for link, door in doors.items()}
            words, names = [], []
            for number, ((one, other, kind), door) in enumerate(doors.items()):
                words += [door.fileno(), own[other][kind], one, other]
                names.append(f"{number},127.0.0.1:{own[one][1]},127.0.0.1:{at[other, one, 1]}")
            network = Network("zookeeper_peers", [*words, "--", *names], doors.values())
        for number, server in enumerate(self.servers):
            others = {other + 1: (at[number, other, 0], at[number, other, 1]) for other in range(3) if other != number}
            server.peer = _Peer(number + 1, own[number][0], own[number][1], others)
        return network

    def _settle(self) -> None:
        super()._settle()
        for server in self.servers:
            server.drop_client()  # its session may be on its way to another member
