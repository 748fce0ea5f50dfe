"""ZooKeeper, asked by bare kazoo, and by its words of four letters."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException

from ..backends.zookeeper._client import acl_of
from ..backends.zookeeper._url import Place
from ._measure import Unknown
from ._servers import NOT_TOLD, Usage

__all__ = ("Bare", "ZooKeeperServer")

TIMEOUT = 5.0


class Bare:
    """An ephemeral sequential node that is made and deleted: half of what any lock in ZooKeeper does."""

    def __init__(self, client: Any, path: str) -> None:
        self.client = client
        self.client.ensure_path(path)
        self.path = f"{path}/n-"

    def run(self, count: int) -> None:
        """So many times."""
        create, delete, path = self.client.create, self.client.delete, self.path
        for _ in range(count):
            delete(create(path, b"v" * 80, ephemeral=True, sequence=True))


class ZooKeeperServer:
    """The members that a URL names."""

    floor = "a node created and deleted"

    def __init__(self, url: str, name: str) -> None:
        self._place = Place.parse(url)
        self._client: Any = KazooClient(",".join(self._place.hosts), timeout=30.0, **self._place.driver)
        self._client.default_acl = acl_of(self._place)
        self._client.start(timeout=TIMEOUT)
        self._path = f"{self._place.chroot}{self._place.path or '/distlock'}/{name}"
        self._asked = 0
        self.run = Bare(self._client, self._path).run

    def requests(self) -> float | Unknown:
        """Packets, of all members together; pings are some."""
        told = self._told()
        if isinstance(told, Unknown):
            return told
        return sum(float(each["zk_packets_received"]) - self._asked for each in told)

    def usage(self) -> Usage:
        """Of all members together."""
        told = self._told()
        if isinstance(told, Unknown):
            return Usage(connections=told)
        return Usage(NOT_TOLD, NOT_TOLD, sum(float(each["zk_num_alive_connections"]) - 1 for each in told) - 1)

    def _told(self) -> list[Mapping[str, str]] | Unknown:
        if self._place.driver.get("use_ssl"):
            return Unknown("mntr is not asked for over TLS")
        self._asked += 1  # which is a packet, on a connection
        try:
            return [_mntr(host) for host in self._place.hosts]
        except (OSError, ValueError) as error:
            return Unknown(f"mntr is not to be had: {error}")

    def close(self) -> None:
        """Deletes the node."""
        try:
            self._client.delete(self._path, recursive=True)
        except (KazooException, self._client.handler.timeout_exception):
            pass
        finally:
            self._client.stop()
            self._client.close()


def _mntr(place: str) -> Mapping[str, str]:
    host, _, port = place.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT) as link:
        link.sendall(b"mntr")
        answer = b""
        while data := link.recv(65536):
            answer += data
    lines = dict(line.split("\t", 1) for line in answer.decode().splitlines() if "\t" in line)
    if "zk_packets_received" not in lines:
        raise ValueError(answer.decode().strip()[:80] or "no answer")
    return lines
