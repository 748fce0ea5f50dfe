"""The README can be followed: its examples run, its links lead somewhere, its tables say what the library says."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import distlock
from distlock import DistLockError, Fault, LeaseState
from distlock.backends.file import FileBackend
from distlock.backends.memory import MemoryBackend
from distlock.backends.redis import RedisBackend

ROOT = Path(distlock.__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def column(text: str, title: str) -> list[str]:
    """The first cells of the table whose head begins with ``title``."""
    table = text[text.index(f"| {title} |") :].partition("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_examples_run(number, tmp_path):
    code = blocks("python")[number].replace("/tmp/shop-locks", f"{tmp_path}/shop-locks")  # noqa: S108 - replaced
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DISTLOCK_URL": f"file://{tmp_path}/locks"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.rglob("*.lock")) == []


def test_there_are_examples():
    assert len(blocks("python")) >= 3


def test_two_commands_set_up_everything():
    assert blocks("sh") == [
        "python3 -m venv .venv && .venv/bin/pip install -q '.[cli]' && .venv/bin/distlock demo\n",
        "./scripts/test\n",
    ]


def test_links_lead_to_files():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert "docs/guarantees.md" in targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_option_is_described_with_its_default():
    parameters = inspect.signature(distlock.lock).parameters
    assert column(README, "option") == [f"`{name}`" for name in parameters if name != "key"]
    for name, parameter in parameters.items():
        if name not in ("key", "when_lost"):
            assert f"| `{name}` | `{parameter.default}` |" in README


def test_every_error_and_state_is_named():
    errors = [name for name in distlock.__all__ if issubclass_of(name, DistLockError)]
    assert [name for name in errors if f"`{name}`" not in README] == []
    assert [state.name for state in LeaseState if f"`{state.name}`" not in README] == []


def issubclass_of(name: str, base: type) -> bool:
    found = getattr(distlock, name)
    return isinstance(found, type) and issubclass(found, base)


def test_excepted_faults_are_those_that_the_backends_name():
    table = GUARANTEES[GUARANTEES.index("| fault (") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()[2:]]
    told = {Fault[row[1].split("`")[1]]: (row[2] == "×", row[3] == "×") for row in rows}
    excepted = FileBackend.guarantees.excepted, RedisBackend.guarantees.excepted
    assert told == {fault: (fault in excepted[0], fault in excepted[1]) for fault in Fault}
    assert MemoryBackend.guarantees.excepted == frozenset()
