"""What a network does below TCP, for servers in a network namespace of their own, by root there; Linux only.

Packets vanish without a word, as where a cable is pulled or a firewall drops them. Where the kernel has netem, they
are late, or lost one by one, too.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from ._faults import Arena, Hurt, in_background

__all__ = ("Wire", "network_faults")

_FIRST, _LOCAL = "5", "10"


@dataclass(frozen=True, slots=True)
class Wire:
    """The way from a namespace to its clients."""

    inside: Sequence[str]
    """What a command begins with to be run in the namespace, as ``("ip", "netns", "exec", "db")``."""
    device: str
    """Its end of the wire."""
    clients: str
    """Where they are, as ``"10.0.0.0/24"``."""

    def prepare(self) -> None:
        """Once: from now on something can stand before the rule by which packets for the machine itself are taken."""
        self.run("ip", "rule", "add", "pref", _LOCAL, "lookup", "local")
        self.run("ip", "rule", "del", "pref", "0")

    def deafen(self) -> None:
        """Packets of the clients are dropped."""
        self.run("ip", "rule", "add", "pref", _FIRST, "iif", self.device, "blackhole")

    def silence(self) -> None:
        """Packets to the clients are dropped."""
        self.run("ip", "rule", "add", "pref", _FIRST, "iif", "lo", "to", self.clients, "blackhole")

    def cut(self) -> None:
        """Both."""
        self.deafen()
        self.silence()

    def heal(self) -> None:
        """Ends all of these."""
        while self._try("ip", "rule", "del", "pref", _FIRST):
            pass

    @contextmanager
    def netem(self, *how: str) -> Iterator[None]:
        """As tc-netem(8) says: ``("delay", "50ms", "20ms")``, ``("loss", "10%")``."""
        self.run("tc", "qdisc", "add", "dev", self.device, "root", "netem", *how)
        try:
            yield
        finally:
            self.run("tc", "qdisc", "del", "dev", self.device, "root")

    @property
    def has_netem(self) -> bool:
        """Whether the kernel has it."""
        added = self._try("tc", "qdisc", "add", "dev", self.device, "root", "netem", "delay", "0ms")
        return added and self._try("tc", "qdisc", "del", "dev", self.device, "root")

    def run(self, *command: str) -> None:
        """Runs a command in the namespace. `RuntimeError` if it fails."""
        done = self._run(command)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")

    def _try(self, *command: str) -> bool:
        return self._run(command).returncode == 0

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.inside, *command], capture_output=True, text=True, check=False)  # noqa: S603 - ours


def network_faults(wire: Wire) -> tuple[Hurt, ...]:
    """Partitions of each kind, and latency and loss if they can be had. No promise excepts any of it."""
    ways = {"wire cut": wire.cut, "wire loses requests": wire.deafen, "wire loses replies": wire.silence}
    hurts = [Hurt(name, partial(_cut, wire, way), (0.2, 2.5)) for name, way in ways.items()]
    hurts.append(Hurt("wire flapping", partial(_flapping, wire), (0.5, 3.0)))
    if wire.has_netem:
        hurts.append(Hurt("wire slow", partial(_late, wire), (0.5, 2.5)))
        hurts.append(Hurt("wire loses packets", partial(_lossy, wire), (0.5, 2.5)))
    return tuple(hurts)


@contextmanager
def _cut(wire: Wire, way: Callable[[], None], arena: Arena) -> Iterator[str]:
    try:
        way()
        yield wire.device
    finally:
        wire.heal()


@contextmanager
def _flapping(wire: Wire, arena: Arena) -> Iterator[str]:
    turn = arena.plan.ttl * arena.dice.uniform(0.05, 0.3)

    def flap(over: threading.Event) -> None:
        while not over.wait(turn):
            wire.cut()
            over.wait(turn)
            wire.heal()

    with in_background(flap):
        yield wire.device


@contextmanager
def _late(wire: Wire, arena: Arena) -> Iterator[str]:
    delay = arena.plan.ttl * arena.dice.uniform(20, 300)
    with wire.netem("delay", f"{delay:.0f}ms", f"{delay / 2:.0f}ms"):
        yield f"{wire.device}, by {delay:.0f} ms"


@contextmanager
def _lossy(wire: Wire, arena: Arena) -> Iterator[str]:
    loss = arena.dice.uniform(5, 40)
    with wire.netem("loss", f"{loss:.0f}%"):
        yield f"{wire.device}, {loss:.0f} %"
