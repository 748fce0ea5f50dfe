"""A flash sale: several processes sell a small stock that is kept in a file, without a lock and with one."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distlock
from distlock import ConfigurationError, DistLockError

__all__ = ("Demo", "Outcome", "Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one sale came to."""

    stock: int
    sold: int
    seconds: float
    handoffs: int
    """How often the next sale was another worker's."""
    fairness: float
    """Jain's index of the sales by worker: 1 is even, 1/workers is one worker alone."""
    tokens_in_order: bool | None
    """None without a lock: there are no tokens."""

    @property
    def oversold(self) -> int:
        return max(0, self.sold - self.stock)

    @property
    def handoffs_per_s(self) -> float:
        return self.handoffs / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "sold": self.sold,
            "oversold": self.oversold,
            "seconds": round(self.seconds, 3),
            "handoffs_per_s": round(self.handoffs_per_s, 1),
            "fairness": round(self.fairness, 3),
            "tokens_in_order": self.tokens_in_order,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """Both sales."""

    url: str
    workers: int
    unlocked: Outcome
    locked: Outcome

    @property
    def sound(self) -> bool:
        """The lock kept its promises."""
        return self.locked.sold == self.locked.stock and self.locked.tokens_in_order is True

    def as_dict(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "stock": self.locked.stock,
            "workers": self.workers,
            "unlocked": self.unlocked.as_dict(),
            "locked": self.locked.as_dict(),
        }


class Demo:
    """Worker processes, a stock and a ledger in a temporary folder, and a lock named after this run."""

    def __init__(self, url: str | None, stock: int, workers: int) -> None:
        if url is not None and url.startswith("memory:"):
            raise ConfigurationError(
                "memory:// cannot keep processes apart: each has a memory of its own; try file:// or redis://"
            )
        self._url = url
        self._stock = stock
        self._workers = workers
        self._key = f"distlock-demo:{secrets.token_hex(6)}"

    def run(self, sold: Callable[[str], None]) -> Result:
        """Both sales; ``sold`` is called for each item sold, with the name of the sale."""
        with tempfile.TemporaryDirectory(prefix="distlock-demo-") as name:
            folder = Path(name)
            url = self._url or f"file://{folder}/locks"
            with distlock.connect(url) as locks:
                locks.inspect(self._key)  # a store that cannot be reached is said before anyone starts
                address = locks.address
            unlocked = self._sell(folder, None, lambda: sold("without a lock"))
            locked = self._sell(folder, url, lambda: sold("with the lock"))
        return Result(address, self._workers, unlocked, locked)

    def _sell(self, folder: Path, url: str | None, sold: Callable[[], None]) -> Outcome:
        stock, ledger = folder / "stock", folder / "ledger"
        stock.write_text(f"{self._stock:08d}")
        ledger.write_text("")
        task = {"stock": str(stock), "ledger": str(ledger), "url": url, "key": self._key}
        with self._started(task) as workers:
            for worker in workers:
                _heard(worker, "ready")
            started = time.monotonic()
            for worker in workers:
                _say(worker, "go")
            self._watch(workers, sold)
            seconds = time.monotonic() - started
        return self._judge([line.split() for line in ledger.read_text().splitlines()], seconds, locked=url is not None)

    @contextmanager
    def _started(self, task: dict[str, Any]) -> Iterator[list[subprocess.Popen[str]]]:
        workers: list[subprocess.Popen[str]] = []
        try:
            for number in range(self._workers):
                worker = subprocess.Popen(
                    [sys.executable, "-m", "distlock.cli._worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                workers.append(worker)
                _say(worker, json.dumps({**task, "number": number}))
            yield workers
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.communicate()

    @staticmethod
    def _watch(workers: list[subprocess.Popen[str]], sold: Callable[[], None]) -> None:
        """Until all are through; the first one that failed says why."""
        failures: list[str] = []

        def listen(worker: subprocess.Popen[str]) -> None:
            assert worker.stdout is not None
            for line in worker.stdout:
                if line == "sold\n":
                    sold()
                else:
                    failures.append(line.strip())

        listeners = [threading.Thread(target=listen, args=(worker,), daemon=True) for worker in workers]
        for listener in listeners:
            listener.start()
        for listener in listeners:
            listener.join()
        if failures or any(worker.wait() for worker in workers):
            raise DistLockError(failures[0] if failures else "a worker of the demo died")

    def _judge(self, lines: list[list[str]], seconds: float, *, locked: bool) -> Outcome:
        sellers = [seller for seller, _ in lines]
        tokens = [int(token) for _, token in lines]
        counts = Counter(sellers)
        squares = self._workers * sum(count * count for count in counts.values())
        return Outcome(
            stock=self._stock,
            sold=len(lines),
            seconds=seconds,
            handoffs=sum(before != after for before, after in zip(sellers, sellers[1:], strict=False)),
            fairness=len(lines) ** 2 / squares if squares else 0.0,
            tokens_in_order=all(a < b for a, b in zip(tokens, tokens[1:], strict=False)) if locked else None,
        )


def _say(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(line + "\n")
    worker.stdin.flush()


def _heard(worker: subprocess.Popen[str], expected: str) -> None:
    assert worker.stdout is not None
    line = worker.stdout.readline().strip()
    if line != expected:
        raise DistLockError(line or "a worker of the demo did not start")
