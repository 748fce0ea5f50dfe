"""What is written for people is true: examples run, links lead somewhere, tables say what the library says."""

from __future__ import annotations

import configparser
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import distlock
import distlock.backends.base
import distlock.testing
from distlock import DistLockError, Fault, LeaseState
from distlock.backends.file import FileBackend
from distlock.backends.memory import MemoryBackend
from distlock.backends.redis import RedisBackend
from distlock.testing.torture._verdict import Kind

from .pages import blocks_of, fences_of
from .servers import RedisServer

ROOT = Path(distlock.__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")

# Two blocks of the README cannot run among the tests, and have one of their own below.
SET_UP = "python3 -m venv .venv && .venv/bin/pip install -q '.[cli]' && .venv/bin/distlock demo\n"
EVERYTHING = "./scripts/test\n"

SHOWN = {"", "console", "ini", "sql", "text", "yaml"}
"""Languages of blocks that nobody runs. What looks like a program is ``python`` or ``sh``, and runs."""
DIRECTIVES = {"include", "literalinclude", "toctree"}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def elsewhere(page: Path) -> list[int]:
    """The lines of the blocks that have a test of their own."""
    return [block.line for block in blocks_of(page) if block.code in (SET_UP, EVERYTHING)]


def to_run(page: Path) -> int:
    return len(blocks_of(page)) - len(elsewhere(page))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)], ids=name)
def test_the_examples_run(page: Path, tmp_path: Path, redis_server: RedisServer) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.pages", str(page), *map(str, elsewhere(page))],
        cwd=tmp_path,
        env=environment(DISTLOCK_URL=redis_server.url),
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == f"{to_run(page)} blocks ran\n", "each block, once"
    assert left_behind(redis_server, tmp_path, page.read_text(encoding="utf-8")) == []


def environment(**more: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DISTLOCK_", "PYTEST_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**inherited, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **more}


def left_behind(server: RedisServer, folder: Path, text: str) -> list[str]:
    """Keys other than token clocks, which are kept for a day, and files of which the page says nothing."""
    reply = server.command("KEYS", "*")
    assert isinstance(reply, list)
    keys = [key.decode() for key in reply if isinstance(key, bytes)]
    files = [path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".clock-")]
    return [
        *(key for key in keys if not re.fullmatch(r"distlock:[^:{]+:clock", key)),
        *(file for file in files if file not in text and not file.startswith("test_line_")),
    ]


def test_no_example_is_left_out() -> None:
    """Every fence is of a kind that is run, or that is plainly none; and no other way to write one is in use."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        kinds = {fence.language for fence in fences_of(text)} - {"python", "sh"} - SHOWN
        assert {kind.partition("}")[0].lstrip("{") for kind in kinds} <= DIRECTIVES, name(page)
        assert not re.search(r"^\s*(~~~|>>> )", text, re.MULTILINE), name(page)
        opened = len(re.findall(r"^ *```+ *(?:python|py|sh)\b", text, re.MULTILINE))
        assert opened == len(blocks_of(page)), name(page)
    assert sum(map(to_run, PAGES)) >= 45


def test_the_reference_has_no_examples() -> None:
    """They would not be run there."""
    for page in (ROOT / "docs").rglob("*.rst"):
        assert not re.search(r"code-block|>>>|^[^.\n].*::$", page.read_text(encoding="utf-8"), re.MULTILINE), name(page)


def test_what_is_included_is_run_too() -> None:
    """As the conformance suite runs the worked backend."""
    included = {
        fence.language.partition("}")[2].strip()
        for page in PAGES
        for fence in fences_of(page.read_text(encoding="utf-8"))
        if fence.language.startswith("{literalinclude}")
    }
    assert included == {"../tests/example_backend.py", "../tests/test_conformance.py"}


def test_two_commands_set_up_everything() -> None:
    shell = [block.code for block in blocks_of(PAGES[0]) if block.language == "sh"]
    assert [code for code in shell if code in (SET_UP, EVERYTHING)] == [SET_UP, EVERYTHING]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1].endswith(f" {EVERYTHING.strip()}")


@pytest.mark.installs
@pytest.mark.timeout(300)
def test_the_way_to_set_up_works(tmp_path: Path) -> None:
    """In a copy of the project, with nothing but Python."""
    project = tmp_path / "project"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    home = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "DISTLOCK"))
    }
    done = subprocess.run(["sh", "-c", SET_UP], cwd=project, env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "oversold" in done.stdout


def test_one_environment_sets_up() -> None:
    """The test above is slow, and left out everywhere else."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    chosen = [section for section in tox.sections() if "-m installs" in tox[section].get("commands", "")]
    assert chosen == ["testenv:docs"]
    assert "docs" in [env.strip() for env in tox["tox"]["env_list"].split(",")]


def test_testing_first_does_not_stand_in_the_way() -> None:
    """tox 4.67 writes a file ``.venv``, where the README makes a folder."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    assert tox["tox"]["venv_redirect"] == "false"


def column(text: str, title: str) -> list[str]:
    """The first cells of the table whose head begins with ``title``."""
    table = text[text.index(f"| {title} |") :].partition("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


def test_every_option_is_described_with_its_default():
    parameters = inspect.signature(distlock.lock).parameters
    assert column(README, "option") == [f"`{name}`" for name in parameters if name != "key"]
    for name, parameter in parameters.items():
        if name not in ("key", "when_lost"):
            assert f"| `{name}` | `{parameter.default}` |" in README


def test_every_kind_of_finding_is_explained():
    proof = (ROOT / "docs" / "proof.md").read_text(encoding="utf-8")
    assert column(proof, "kind") == [kind.name.lower().replace("_", " ") for kind in Kind]


def test_every_error_and_state_is_named():
    errors = [name for name in distlock.__all__ if issubclass_of(name, DistLockError)]
    assert [name for name in errors if f"`{name}`" not in README] == []
    assert [state.name for state in LeaseState if f"`{state.name}`" not in README] == []


def issubclass_of(name: str, base: type) -> bool:
    found = getattr(distlock, name)
    return isinstance(found, type) and issubclass(found, base)


def test_the_reference_has_all_that_is_public() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.rst"))
    described = set(re.findall(r"^\.\. (?:auto)?(?:class|exception|function|data):: (\w+)", pages, re.MULTILINE))
    public = {*distlock.__all__, *distlock.backends.base.__all__, *distlock.testing.__all__}
    assert public - described == set()


def test_excepted_faults_are_those_that_the_backends_name():
    table = GUARANTEES[GUARANTEES.index("| fault (") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()[2:]]
    told = {Fault[row[1].split("`")[1]]: (row[2] == "×", row[3] == "×") for row in rows}
    excepted = FileBackend.guarantees.excepted, RedisBackend.guarantees.excepted
    assert told == {fault: (fault in excepted[0], fault in excepted[1]) for fault in Fault}
    assert MemoryBackend.guarantees.excepted == frozenset()
