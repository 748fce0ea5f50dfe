"""What a lock file says: who holds it. And the clock that its tokens come from."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

from ..base import Claim, Holder, now

__all__ = ("Record", "TokenClock", "file_name", "started_at")

LONGEST_NAME = 200
BOOT_ID = "/proc/sys/kernel/random/boot_id"
PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")


def file_name(key: str, ending: str = "lock") -> str:
    """A name for ``key`` that no other key has, on file systems that ignore case too. Its one dot is the ending's."""
    raw = key.encode()
    name = "".join(chr(byte) if byte in PLAIN else f"%{byte:02x}" for byte in raw)
    if len(name) > LONGEST_NAME:
        import hashlib

        name = f"~{hashlib.sha256(raw).hexdigest()}"  # no other name has a tilde
    return f"{name}.{ending}"


@dataclass(frozen=True, slots=True)
class Record:
    """One line of text, so that the end of a longer one written before does no harm."""

    claim_id: str
    token: int
    pid: int
    started: int
    since: float
    key: str
    owner: str | None
    about: str

    @staticmethod
    def line(claim: Claim, token: int, since: float) -> bytes:
        """What the holder writes. The leading 1 is the version of the format."""
        owner = "~" if claim.owner is None else _quoted(claim.owner)
        text = f"1 {claim.id} {token} {_me()} {since:.6f} {_quoted(claim.key)} {owner} {claim.about}\n"
        return text.encode()

    @classmethod
    def read(cls, data: bytes) -> Record | None:
        """None if it is not one, or not a whole one."""
        line, newline, _ = data.partition(b"\n")
        fields = line.decode(errors="replace").split(" ", 8)
        if not newline or len(fields) != 9 or fields[0] != "1":
            return None
        _, claim_id, token, pid, started, since, key, owner, about = fields
        try:
            return cls(
                claim_id,
                int(token),
                int(pid),
                int(started),
                float(since),
                unquote(key),
                None if owner == "~" else unquote(owner),
                about,
            )
        except ValueError:
            return None

    def holder(self, path: str) -> Holder | None:
        """None if the process that wrote it is gone, and nobody has inherited the file: it is unlocked then."""
        if started_at(self.pid) != self.started and not _is_locked(path):
            return None
        held_for = max(0.0, now() - self.since)
        return Holder.found(self.owner or self.claim_id, self.about, token=self.token, held_for=held_for, ttl=None)


class TokenClock:
    """Microseconds that rise for every process of this machine, across restarts of all of them.

    Within a boot the time since boot does not step back, whatever is done to the wall clock; what has to be
    added to it is agreed upon once a boot, in a file that is made in one step. Where there is no such clock
    the wall clock serves, and a step back of it breaks the order (`Fault.CLOCK_SET_BACK`).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._base: int | None = None

    def next(self) -> int:
        """A token above all that were taken before, as taking one takes longer than a microsecond."""
        if self._base is None:
            self._base = self._agreed()
        return self._base + int((now() if self._base else time.time()) * 1e6)

    def _agreed(self) -> int:
        try:
            boot = Path(BOOT_ID).read_text().strip()
        except OSError:
            return 0
        agreed = self._folder / f".clock-{boot}"
        if not agreed.exists():
            mine = self._folder / f".clock-{boot}.{secrets.token_hex(4)}"
            try:
                mine.write_text(str(int((time.time() - now()) * 1e6)))
                with contextlib.suppress(FileExistsError):  # someone else was first: theirs counts
                    os.link(mine, agreed)
            finally:
                mine.unlink(missing_ok=True)
            self._forget_other_boots(boot)
        return int(agreed.read_text())

    def _forget_other_boots(self, boot: str) -> None:
        for old in self._folder.glob(".clock-*"):
            if not old.name.startswith(f".clock-{boot}"):
                old.unlink(missing_ok=True)


def started_at(pid: int) -> int:
    """When the process started, so that a reused pid is not taken for it; 0: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # Field 22 of proc(5), counted after the name, which may contain anything.
            fields = file.read().rpartition(b")")[2].split()
            return 0 if fields[0] in b"ZX" else int(fields[19])
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return 0
    except OSError:
        return 0
    try:  # no /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:
        pass
    return 1


def _is_locked(path: str) -> bool:
    """By whom, does not matter. To try to lock it would get in the way of others, so the kernel's list is asked, see
    proc(5); in a container that has nothing of those whose process is gone."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        name = f" {os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino} "
        with open("/proc/locks", encoding="ascii") as locks:
            return any(name in line and " FLOCK " in line and "->" not in line for line in locks)
    return False


@lru_cache(maxsize=512)
def _quoted(text: str) -> str:
    return quote(text, safe="")


@lru_cache(maxsize=1)
def _identity(pid: int) -> str:
    return f"{pid} {started_at(pid)}"


def _me() -> str:
    return _identity(os.getpid())
