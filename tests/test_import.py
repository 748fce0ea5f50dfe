"""`import distlock` is cheap, and asks for no driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import distlock

ROOT = Path(distlock.__file__).parent.parent
HEAVY = (
    "apscheduler",
    "celery",
    "grpc",
    "google.protobuf",
    "hypothesis",
    "kazoo",
    "pytest",
    "redis",
    "rich",
    "sqlalchemy",
    "trio",
    "typer",
)


def in_a_fresh_interpreter(code: str, folder: Path) -> str:
    """What ``code`` prints, run away from the source tree."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_importing_loads_no_driver(tmp_path):
    code = f"import sys, distlock; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    assert in_a_fresh_interpreter(code, tmp_path) == ""


def test_importing_starts_no_thread(tmp_path):
    code = "import threading, distlock; print(threading.active_count())"
    assert in_a_fresh_interpreter(code, tmp_path) == "1"


def test_importing_writes_nothing(tmp_path):
    in_a_fresh_interpreter("import distlock", tmp_path)
    assert list(tmp_path.iterdir()) == []
