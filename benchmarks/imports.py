"""How long ``import distlock`` takes in a fresh interpreter, and what it brings along."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import distlock

from ._machine import CLIENT, awake, description, pin
from ._measure import Pace, Report, Row, Spread, Target, rotated, table_of

__all__ = ("importing",)

ROUNDS = 30
DRIVERS = ("redis", "hiredis", "grpc", "google.protobuf", "kazoo", "trio", "rich", "typer", "pytest")
ROOT = Path(distlock.__file__).parent.parent
PREPARE = f"import sys; sys.path.insert(0, {str(ROOT)!r})"


def importing(pace: Pace) -> Report:
    """Of compiled files that are in memory, as on any start but the first."""
    with awake():
        pin(0, CLIENT)
        programs = {
            "bare interpreter": PREPARE,
            "import asyncio": f"{PREPARE}; import asyncio",
            "import distlock": f"{PREPARE}; import distlock",
        }
        times: dict[str, list[float]] = {name: [] for name in programs}
        for code in programs.values():
            _run(code)
        for turn in pace.turns(ROUNDS):
            for name in rotated(list(programs), turn):
                times[name].append(_run(programs[name]))
        rows = list(table_of(times, "ms", {}, scale=1e3))
        bare = times["bare interpreter"]
        own = Spread.of([(each - start) * 1e3 for each, start in zip(times["import distlock"], bare, strict=True)])
        rows.append(Row("distlock alone", own, "ms", None, ((Target(60), own.median),), _drivers()))
        return Report("import", "start to end of an interpreter", rows, description())


def _run(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
    return time.perf_counter() - start


def _drivers() -> str:
    code = f"{PREPARE}; import distlock; print(*(name for name in {DRIVERS!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True).stdout
    return f"imports {loaded.strip()}" if loaded.strip() else "imports no driver"
