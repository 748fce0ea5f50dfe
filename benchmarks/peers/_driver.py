"""The measuring end of a worker's pipe."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.programs import launch_prefix

__all__ = ("Crew", "Failed", "Worker")

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 60.0
"""Seconds for a reply: more than any order takes, and than any lock lasts that a lost release leaves behind."""


class Failed(Exception):
    """A peer raised, or did not come back."""


class Worker:
    """A process of a peer's environment."""

    def __init__(self, adapter: str, python: str, place: str) -> None:
        # Nothing of our own environment is to be found from there.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `kill`
        self._process = subprocess.Popen(
            [*launch_prefix(), python, "-m", "benchmarks.peers._worker", adapter, place],
            bufsize=0,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        try:
            self.about = self.reply()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def ask(self, do: str, **words: Any) -> Any:
        """An order, and what comes of it."""
        self.send(do, **words)
        return self.reply()

    def send(self, do: str, **words: Any) -> None:
        """An order."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({"do": do, **words}).encode() + b"\n")
        except BrokenPipeError:
            raise self._gone() from None

    def reply(self) -> Any:
        """What came of the oldest order; `Failed` if it raised, or took longer than `PATIENCE`."""
        words = json.loads(self._line())
        if "failed" in words:
            raise Failed(words["failed"])
        return words["done"]

    def kill(self) -> None:
        """Ends it at once (SIGKILL)."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            assert pipe
            pipe.close()

    def _line(self) -> bytes:
        assert self._process.stdout
        deadline, line = time.monotonic() + PATIENCE, b""
        while not line.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Failed(f"did not come back in {PATIENCE:g} s")
            some = os.read(self._process.stdout.fileno(), 65536)
            if not some:
                raise self._gone()
            line += some
        return line

    def _gone(self) -> Failed:
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        return Failed(f"its process ended: {said[-1] if said else 'without a word'}")


class Crew:
    """The workers of one contender over one store, each started when it is first needed, all ended with the block."""

    def __init__(self, adapter: str, python: str, place: str) -> None:
        self.adapter = adapter
        self.about: dict[str, Any] = {}
        self._make = (adapter, python, place)
        self._workers: list[Worker] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def dismiss(self) -> None:
        """Kills them all."""
        while self._workers:
            self._workers.pop().kill()

    def first(self, count: int) -> list[Worker]:
        """So many of its workers; `Failed` where claims were read in another version than it has."""
        while len(self._workers) < count:
            self._workers.append(Worker(*self._make))
            self.about = self._workers[-1].about
            if self.about["absent"]:
                raise Failed(f"claims name what is not there: {', '.join(self.about['absent'])}")
        return self._workers[:count]
