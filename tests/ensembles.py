"""Servers of the tests' own that are one store together: a majority of them serves, and members can be cut off."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from socket import socket
from typing import Any, Generic, TypeVar

from .programs import Program, start_all, wait_until

__all__ = ("Ensemble", "Member", "Network")

_ROOT = Path(__file__).parent.parent

EnsembleT = TypeVar("EnsembleT", bound="Ensemble[Any]")


class Member(Program):
    """A server that may be one of several."""

    @abstractmethod
    def url_at(self, *ports: int) -> str:
        """Its URL by way of other ports (proxies', or other members')."""

    @abstractmethod
    def serves(self) -> bool:
        """Whether it has a leader that answers."""

    @abstractmethod
    def flush(self) -> None:
        """Empties the store."""


MemberT = TypeVar("MemberT", bound=Member)


class Network:
    """Through which the members reach each other: a process that listens at ``doors``, and cuts members off.

    ``module`` is its program, a user of `tests.peers`, and ``words`` are its arguments.
    """

    def __init__(self, module: str, words: Iterable[object], doors: Iterable[socket]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.{module}", *map(str, words)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[door.fileno() for door in doors],
            start_new_session=True,
            text=True,
        )
        self.cut(())  # and it listens

    @property
    def pid(self) -> int:
        return self._process.pid

    def cut(self, ends: Iterable[object]) -> None:
        """These, and no others from now on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, ends)) + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the network has ended")

    def close(self) -> None:
        self._process.communicate()


class Ensemble(ABC, Generic[MemberT]):
    """Three servers that are one store, as a context manager.

    What its methods do to a member is told to all: on return those that are left follow one leader.
    """

    def __init__(self, servers: Iterable[MemberT]) -> None:
        self.servers = [*servers]
        self._network: Network | None = None
        self._cut: set[int] = set()

    def __enter__(self: EnsembleT) -> EnsembleT:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._thaw()
        for server in self.servers:
            server.discard()
        if self._network is not None:
            self._network.close()
            self._network = None

    # Where it is

    @property
    def url(self) -> str:
        return self.servers[0].url_at(*(server.port for server in self.servers))

    @property
    def left(self) -> list[int]:
        """The numbers of the members that are up and not cut off."""
        return [number for number, server in enumerate(self.servers) if server.up and number not in self._cut]

    @property
    def any(self) -> MemberT:
        """One of those that are up and not cut off."""
        return self.servers[self.left[0]]

    def leader(self) -> int:
        """The number of the leader that those that are left agree on. Waited for: where it is busy they elect anew."""
        found: list[int] = []

        def look() -> bool:
            found.append(self._leader())
            return True

        wait_until(look, "a leader")
        return found[0]

    def followers(self) -> list[int]:
        leader = self.leader()
        return [number for number in self.left if number != leader]

    def whole(self) -> bool:
        """Whether all members are up, follow one leader and serve."""
        return len(self.left) == len(self.servers) and self._settled()

    # What happens to it

    def flush(self) -> None:
        def empty() -> bool:
            self.any.flush()
            return True

        wait_until(empty, "the store to be emptied")

    def kill(self, number: int) -> None:
        """A crash (SIGKILL)."""
        self.servers[number].kill()
        self._settle()

    def pause(self, number: int) -> None:
        """It stands still (SIGSTOP)."""
        self.servers[number].pause()
        self._settle()

    def partition(self, number: int) -> None:
        """It is cut off from the others; clients still reach it, until it notices, and is not waited for."""
        self.cut(number)
        self._settle()

    def cut(self, number: int) -> None:
        """The same; returns at once."""
        self._cut.add(number)
        self._tell_network()

    def heal(self) -> None:
        """All members are up and connected again."""
        self._cut.clear()
        self._tell_network()
        self._thaw()
        dead = [server for server in self.servers if not server.running]
        if dead:
            start_all(dead)  # side by side: one alone may be no majority
        self._await_all()

    # Each kind's own

    @abstractmethod
    def _leader(self) -> int:
        """At this moment; `RuntimeError` while there is none that those that are left agree on."""

    @abstractmethod
    def _connect(self) -> Network:
        """A place for each member, and the network between them."""

    def _start(self) -> None:
        self._start_members()
        self._await_all()

    def _ends(self, number: int) -> Iterable[object]:
        """What the network is to cut for a member."""
        return (number,)

    # Inside

    def _start_members(self) -> None:
        tries = 3
        while True:
            self._network = self._connect()
            try:
                self._start_up()
            except RuntimeError as error:
                tries -= 1
                if "address already in use" not in str(error).lower() or not tries:
                    raise
                Ensemble.__exit__(self)
            else:
                return

    def _start_up(self) -> None:
        start_all(self.servers)

    def _thaw(self) -> None:
        for server in self.servers:
            if server.running and not server.up:
                server.resume()

    def _tell_network(self) -> None:
        assert self._network is not None
        self._network.cut(end for number in self._cut for end in self._ends(number))

    def _settled(self) -> bool:
        self._leader()
        return all(self.servers[number].serves() for number in self.left)

    def _settle(self) -> None:
        wait_until(self._settled, "those that are left to follow one leader")

    def _await_all(self) -> None:
        wait_until(self.whole, "the members to follow one leader")
