"""A server behind a wire: in a network namespace of its own, inside one that the tests have to themselves.

``python -m tests.proof --wired`` goes there by itself: ``unshare -rn`` gives a process a network that is its own, of
which it is root.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from distlock.testing.torture._network_faults import Wire, network_faults

from .arenas import Ground, keys_left
from .programs import launch_prefix, wait_until
from .servers import RedisServer

__all__ = ("IS_WIRED", "go_there", "redis_behind_a_wire", "why_no_wire")

_MARK = "DISTLOCK_TEST_WIRED"
IS_WIRED = bool(os.environ.get(_MARK))
"""This process is in a network of its own."""
_OURS, _THEIRS = "10.77.0.1", "10.77.0.2"


def why_no_wire() -> str | None:
    """Why this machine gives nobody a network of his own; None if it does."""
    try:
        done = subprocess.run(
            ["unshare", "-rn", "ip", "link", "add", "name", "a0", "type", "veth", "peer", "name", "a1"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError as error:
        return str(error)
    return done.stderr.strip() or "it does not say" if done.returncode else None


def go_there(argv: Sequence[str]) -> int:
    """Runs ``python -m tests.proof`` there. Its exit status."""
    program = [sys.executable, "-m", "tests.proof", *argv]
    return subprocess.run(["unshare", "-rn", *program], env={**os.environ, _MARK: "1"}).returncode


@contextmanager
def redis_behind_a_wire() -> Iterator[Ground]:
    """The wire is what is hurt."""
    with _namespace() as inside, RedisServer(f"bind {_THEIRS}", "protected-mode no", within=inside) as server:
        wire = Wire(inside, "wire1", f"{_OURS}/32")
        wire.prepare()
        yield Ground(f"redis://{_THEIRS}:{server.port}/0", network_faults(wire), lambda: keys_left([server]))


@contextmanager
def _namespace() -> Iterator[Sequence[str]]:
    """What commands in there begin with."""
    own = os.readlink("/proc/self/ns/net")
    with subprocess.Popen([*launch_prefix(), "unshare", "-n", "sleep", "infinity"]) as holder:
        try:
            wait_until(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != own, "the namespace")
            inside = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
            for command in (
                f"ip link add name wire0 type veth peer name wire1 netns {holder.pid}",
                f"ip addr add {_OURS}/30 dev wire0",
                "ip link set lo up",
                "ip link set wire0 up",
            ):
                subprocess.run(command.split(), check=True)
            for command in (f"ip addr add {_THEIRS}/30 dev wire1", "ip link set lo up", "ip link set wire1 up"):
                subprocess.run([*inside, *command.split()], check=True)
            yield inside
        finally:
            holder.kill()
