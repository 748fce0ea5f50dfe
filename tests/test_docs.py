"""What is written for people is true: examples run, links lead somewhere, tables say what the library says."""

from __future__ import annotations

import configparser
import inspect
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import distlock
import distlock.backends.base
import distlock.testing
from distlock import DistLockError, Fault, LeaseState
from distlock.testing.torture._verdict import Kind

from .pages import blocks_of, fences_of
from .servers import RedisServer

ROOT = Path(distlock.__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
WHEN_NOT = (ROOT / "docs" / "when-not-to-lock.md").read_text(encoding="utf-8")
COMPARED = ["memory", "file", "Redis", "Sentinel", "Cluster", "Redlock", "etcd", "ZooKeeper"]

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
    """As the conformance suite runs the worked backend, and the tests of the flash sale that application."""
    included = {
        fence.language.partition("}")[2].strip()
        for page in PAGES
        for fence in fences_of(page.read_text(encoding="utf-8"))
        if fence.language.startswith("{literalinclude}")
    }
    shop = {f"flash_sale/{name}.py" for name in ("stock", "shop", "saga", "outbox", "worker")}
    assert included == {"../tests/example_backend.py", "../tests/test_conformance.py", *shop}


def test_two_commands_set_up_everything() -> None:
    shell = [block.code for block in blocks_of(PAGES[0]) if block.language == "sh"]
    assert [code for code in shell if code in (SET_UP, EVERYTHING)] == [SET_UP, EVERYTHING]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1].endswith(f" {EVERYTHING.strip()}")


@pytest.mark.installs
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


URLS = {
    "memory": ("memory://",),
    "file": ("file:///tmp/shop-locks",),
    "Redis": ("redis://h",),
    "Redis, one server": ("redis://h",),
    "Sentinel": ("redis+sentinel://h/group",),
    "Cluster": ("redis+cluster://h",),
    "Sentinel, Cluster": ("redis+sentinel://h/group", "redis+cluster://h"),
    "Redlock": ("redlock://h1,h2,h3",),
    "Redlock³": ("redlock://h1,h2,h3",),
    "etcd": ("etcd://h",),
    "ZooKeeper": ("zookeeper://h",),
}
"""Backends as the tables call them."""


def promised(backend: str) -> distlock.Guarantees:
    """Asks no server: a manager connects when the first lock is asked for."""
    found = []
    for url in URLS[backend]:
        with distlock.connect(url) as locks:
            found.append(replace(locks.guarantees, backend=""))
    assert found[1:] == found[:-1], f"{backend} stand in one column"
    return found[0]


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the table whose head begins with ``title``, head first; links are their texts."""
    table = text[text.index(title) :].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return [[re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", cell) for cell in row] for row in (cells[0], *cells[2:])]


def test_excepted_faults_are_those_that_the_backends_name() -> None:
    head, *told = rows(GUARANTEES, "| fault (")
    assert {Fault[row[0].split("`")[1]] for row in told} == set(Fault)
    for number, backend in [*enumerate(head)][1:-1]:
        excepted = {Fault[row[0].split("`")[1]] for row in told if row[number] == "×"}
        assert excepted == promised(backend).excepted, backend
    assert promised("memory").excepted == frozenset()


def test_backends_are_compared_by_what_they_promise() -> None:
    """With which faults and how a dead holder is noticed, on the page that helps to decide."""
    head, *told = rows(WHEN_NOT, "| | two may overlap")
    assert head[2] == "a dead holder frees it"
    assert [row[0] for row in told] == [*COMPARED, "row lock, no part of distlock"]
    redis = {fault.name for fault in promised("Redis").excepted}
    for backend, faults, dead, *_ in told[:-1]:
        excepted = redis if faults.startswith("as Redis") else {*re.findall(r"`([A-Z_]+)`", faults)}
        assert excepted == {fault.name for fault in promised(backend).excepted}, backend
        noticed = {"after its ttl": "ttl", "at once": "at once", "with its session": "session"}
        assert noticed[dead.partition(":")[0]] == promised(backend).dead_holder, backend


def test_what_differs_between_backends_is_what_they_promise() -> None:
    (_, *backends), *told = rows((ROOT / "docs" / "howto" / "backend.md").read_text("utf-8"), "| | memory |")
    differs = {what: dict(zip(backends, cells, strict=True)) for what, *cells in told}
    for backend in backends:
        promise = promised(backend)
        assert differs["who is kept out"][backend].split()[-1] == promise.scope
        assert differs["order of arrival"][backend].startswith("yes") == promise.fair
        assert differs["`extend(ttl)`"][backend].startswith("yes") == promise.extend
        assert differs["re-entry by `owner`"][backend].startswith("yes") == promise.owner_reentrant
        assert differs["faults that are excepted"][backend] == str(len(promise.excepted) or "none")


def test_what_is_to_be_alarmed_on_is_logged() -> None:
    logged = "".join(path.read_text("utf-8") for path in (ROOT / "distlock").rglob("*.py"))
    _, *told = rows(WHEN_NOT, "| look at |")
    texts = [row[0].strip("`") for row in told if re.fullmatch(r"`[^`]+ [^`]+`", row[0])]
    assert len(texts) == 4
    assert [text for text in texts if any(part not in logged for part in text.split("…"))] == []


def test_costs_that_are_told_elsewhere_were_measured() -> None:
    """They are the medians, and the ratios to the floor, of the page with the benchmarks."""
    results = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    _, *measured = rows(results, "| store | take and give back |")
    _, *told = rows(WHEN_NOT, "| | take and give back | hand over")
    assert told == [[re.sub(r" \(.*?\)", "", cell) for cell in row[:-1]] for row in measured]
    assert {row[0].partition(" of ")[0] for row in told} >= {*COMPARED}
    redis = results[results.index("**redis uncontended**") :]
    for way, what in (("distlock with", "takes"), ("distlock", "hand-over")):
        of_it = redis if what == "takes" else redis[redis.index("**redis hand-off, 2 processes**") :]
        median, ratio = next(re.finditer(rf"\| {way} \| ([\d.]+) \(.*? µs \| ([\d.]+) \(", of_it)).groups()
        assert re.search(rf"{what}\s+{median} µs, × {ratio}\b", WHEN_NOT), what
