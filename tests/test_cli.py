"""The command line, as a user runs it: real processes, real stores."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import distlock
from distlock.cli._race import Outcome
from distlock.cli._worker import Sale

from .children import untraced
from .servers import bind_free_port

ROOT = Path(distlock.__file__).parent.parent
TIMEOUT = 150


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Of a run that sees this library, no settings of ours, and a folder for temporary files of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DISTLOCK_")}
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    return {**inherited, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), "COLUMNS": "100", "TERM": "xterm"}


def run(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distlock", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def left_behind(env: dict[str, str]) -> list[str]:
    return os.listdir(env["TMPDIR"])


def check_report(report: dict[str, Any], stock: int, workers: int) -> None:
    assert list(report) == ["stock", "workers", "url", "unlocked", "locked", "seconds"]
    assert (report["stock"], report["workers"]) == (stock, workers)
    unlocked, locked = report["unlocked"], report["locked"]
    assert list(unlocked) == ["sold", "oversold", "fairness", "seconds"]
    assert list(locked) == ["sold", "oversold", "handoffs_per_s", "fairness", "tokens_in_order", "seconds"]
    assert unlocked["oversold"] == unlocked["sold"] - stock > 0
    assert (locked["sold"], locked["oversold"], locked["tokens_in_order"]) == (stock, 0, True)
    assert 1 / workers <= locked["fairness"] <= 1
    assert locked["seconds"] > 0 or stock == 1
    assert report["seconds"] > locked["seconds"] + unlocked["seconds"]


def test_the_lock_sells_what_is_there_and_no_lock_sells_more(env):
    done = run(env, "demo", "--json", "--stock", "20")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    check_report(report, 20, 4)
    assert report["url"].startswith("file:///")
    assert left_behind(env) == []


def test_the_last_item_is_oversold_too(env):
    done = run(env, "demo", "--json", "--stock", "1", "--workers", "8")
    assert done.returncode == 0
    check_report(json.loads(done.stdout), 1, 8)


def test_modules_of_the_folder_it_runs_in_are_not_its_own(env, tmp_path):
    (tmp_path / "random.py").write_text("raise SystemExit('imported')")
    # As the installed script does: its own folder comes first on the path, not the one it runs in.
    script = "import sys; del sys.path[0]; from distlock.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "demo", "--json", "--stock", "5", "--workers", "2"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    check_report(json.loads(done.stdout), 5, 2)


def test_on_redis_nothing_is_left_in_the_store(env, redis_url):
    done = run(env, "demo", "--json", "--stock", "20", "--url", redis_url)
    assert (done.returncode, done.stderr) == (0, "")
    check_report(json.loads(done.stdout), 20, 4)
    with distlock.connect(redis_url) as locks:
        assert json.loads(done.stdout)["url"] == locks.address
        assert json.loads(done.stdout)["locked"]["handoffs_per_s"] > 0  # it is fair
        assert [found.key for found in locks.list("distlock-demo")] == []


def test_the_url_may_come_from_the_environment(env, tmp_path):
    folder = tmp_path / "my locks"
    done = run({**env, "DISTLOCK_URL": folder.as_uri()}, "demo", "--json", "--stock", "5", "--workers", "2")
    assert done.returncode == 0
    assert json.loads(done.stdout)["url"] == f"file://{folder}"
    assert list(folder.rglob("*.lock")) == []


def test_a_table_for_people(env):
    done = run(env, "demo", "--stock", "5", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("without a lock", "with the lock", "oversold", "hand-offs per second", "fairness", "tokens in order"):
        assert words in done.stdout
    assert "\x1b[" not in done.stdout


@pytest.mark.parametrize("command", ["demo", "run", "inspect", "ls", "release", "torture", "bench"])
def test_help_has_examples(env, command):
    done = run(env, command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Examples: distlock {command} " in " ".join(done.stdout.split()) + " "
    assert "\x1b[" not in done.stdout


def test_without_a_command_help_is_shown(env):
    done = run(env)
    assert (done.returncode, done.stderr) == (64, "")
    assert "demo" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there(env, shell):
    done = run({**env, "_DISTLOCK_COMPLETE": f"source_{shell}"})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"complete_{shell}" in done.stdout
    assert "--install-completion" in run(env, "--help").stdout


def test_names_are_completed_from_the_store(env, tmp_path):
    url = (tmp_path / "locks").as_uri()
    asked = {"_DISTLOCK_COMPLETE": "complete_bash", "COMP_WORDS": "distlock inspect or", "COMP_CWORD": "2"}
    there = {**env, **asked, "DISTLOCK_URL": url, "DISTLOCK_NAMESPACE": "shop"}
    with distlock.connect(url, namespace="shop") as locks, locks.lock("orders"), locks.lock("users"):
        assert run(there, "").stdout.split() == ["orders"]
    assert run({**env, **asked, "DISTLOCK_URL": "redis://127.0.0.1:1"}, "").stdout.strip() == ""


def test_version(env):
    assert run(env, "--version").stdout == f"distlock {distlock.__version__}\n"


@pytest.mark.parametrize("args", [["--stock", "0"], ["--workers", "1"], ["--nonsense"]])
def test_an_impossible_option_is_a_usage_error(env, args):
    assert run(env, "demo", *args).returncode == 64


def test_memory_is_refused_with_the_reason(env):
    done = run(env, "demo", "--url", "memory://")
    assert (done.returncode, done.stdout) == (64, "")
    assert "a memory of its own" in done.stderr
    assert done.stderr.count("\n") == 1
    assert left_behind(env) == []


@pytest.mark.parametrize(
    ("url", "said", "status"),
    [
        ("redis://user:secret@127.0.0.1:{port}/0", "cannot be reached", 69),
        ("nonsense://user:secret@host", "no backend for nonsense://", 64),
        ("user:secret@host", "not a URL", 64),
        ("file:///proc/nowhere", "cannot be used", 1),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_without_secrets(env, url, said, status):
    with bind_free_port() as bound:  # bound, not listening: refused
        done = run(env, "demo", "--json", "--url", url.format(port=bound.getsockname()[1]))
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr
    assert left_behind(env) == []


def test_debug_shows_where_an_error_comes_from(env):
    done = run(env, "demo", "--debug", "--url", "nonsense://")
    assert done.returncode == 64
    assert done.stderr.startswith("Traceback")


def without(package: str, folder: Path) -> str:
    """A folder for PYTHONPATH that makes ``package`` look as if it were not installed."""
    folder.mkdir()
    (folder / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module', name={package!r})")
    return os.pathsep.join([str(folder), str(ROOT)])


CTRL_C_AT_IMPORT = """
import builtins, os, signal, sys
import _distlock_main
imported = builtins.__import__
def interrupted(name, *rest, **more):
    if name == WHERE:
        os.kill(os.getpid(), signal.SIGINT)
    return imported(name, *rest, **more)
builtins.__import__ = interrupted
_distlock_main.main()
"""


@pytest.mark.parametrize(("where", "status"), [("distlock.cli", -signal.SIGINT), ("typer", 130)])
def test_ctrl_c_while_it_is_being_imported_is_no_error(env, where, status):
    command = [sys.executable, "-c", CTRL_C_AT_IMPORT.replace("WHERE", repr(where)), "--version"]
    done = subprocess.run(command, env=untraced(env), capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.parametrize(
    ("package", "extra", "status"), [("typer", "cli", 1), ("rich", "cli", 1), ("redis", "redis", 64)]
)
def test_a_missing_package_is_named_with_its_extra(env, tmp_path, package, extra, status):
    done = run({**env, "PYTHONPATH": without(package, tmp_path / "shadow")}, "demo", "--url", "redis://127.0.0.1:1")
    assert done.returncode == status
    assert done.stderr == f"distlock: {package} is not installed; run: pip install 'pydistlock[{extra}]'\n"


def test_a_broken_installation_is_not_taken_for_a_missing_extra(env, tmp_path):
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "typer.py").write_text("import distlock.nowhere")
    done = run({**env, "PYTHONPATH": os.pathsep.join([str(shadow), str(ROOT)])}, "--version")
    assert "distlock.nowhere" in done.stderr.splitlines()[-1]


class Terminal:
    """A run whose stderr is a terminal: its progress says when to act."""

    def __init__(self, env: dict[str, str], *args: str) -> None:
        self._end, other = pty.openpty()
        command = [sys.executable, "-m", "distlock", *args]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=other, text=True)
        os.close(other)
        self.shown = ""

    def wait_for_bar(self) -> None:
        """Until the first bar is there: workers are being started."""
        while "without a lock" not in self.shown:
            self.shown += self._read() or pytest.fail(f"ended without a bar: {self.shown!r}")

    def wait_for_sales(self, run: str) -> None:
        """Until the bar of ``run`` has a number above zero."""
        plain = ""
        while not re.search(rf"{run}[^/]*[^0-9/][1-9][0-9]*/", plain):
            self.shown += self._read() or pytest.fail(f"ended before a sale {run}: {self.shown!r}")
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown)

    def finish(self) -> str:
        """What was printed on stdout."""
        while more := self._read():
            self.shown += more
        assert self.process.stdout is not None
        printed = self.process.stdout.read()
        self.process.wait(TIMEOUT)
        return printed

    def _read(self) -> str:
        try:
            return os.read(self._end, 4096).decode(errors="replace")
        except OSError:  # EIO: nobody has it open any more
            return ""

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._end)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def on_terminal(terminals: list[Terminal], env: dict[str, str], *args: str) -> Terminal:
    terminals.append(Terminal(env, *args))
    return terminals[-1]


def test_progress_is_shown_on_a_terminal_and_stdout_stays_clean(env, terminals):
    terminal = on_terminal(terminals, env, "demo", "--json", "--stock", "20")
    check_report(json.loads(terminal.finish()), 20, 4)
    assert "without a lock" in terminal.shown
    assert "with the lock" in terminal.shown


@pytest.mark.parametrize("no_color", [True, False])
def test_colours_are_left_out_if_so_wished(env, terminals, no_color):
    wish = {"NO_COLOR": "1"} if no_color else {"COLORTERM": "truecolor"}
    terminal = on_terminal(terminals, {**env, **wish}, "demo", "--json", "--stock", "20")
    terminal.finish()
    coloured = re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.shown) is not None
    assert coloured is not no_color


@pytest.mark.parametrize("moment", ["without a lock", "with the lock"])
def test_ctrl_c_ends_all_and_leaves_nothing(env, terminals, redis_url, moment):
    terminal = on_terminal(terminals, untraced(env), "demo", "--stock", "2000", "--url", redis_url)
    terminal.wait_for_sales(moment)
    workers = psutil.Process(terminal.process.pid).children(recursive=True)
    assert len(workers) == 4
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == ""
    assert terminal.process.returncode == 130
    assert "Traceback" not in terminal.shown
    assert psutil.wait_procs(workers, 0)[1] == []
    assert left_behind(env) == []
    with distlock.connect(redis_url) as locks:
        assert [found.key for found in locks.list("distlock-demo")] == []


def test_ctrl_c_while_the_workers_start(env, terminals):
    terminal = on_terminal(terminals, untraced(env), "demo", "--workers", "8", "--stock", "2000")
    terminal.wait_for_bar()
    terminal.process.send_signal(signal.SIGINT)
    terminal.finish()
    assert terminal.process.returncode == 130
    assert "Traceback" not in terminal.shown
    assert left_behind(env) == []


def test_workers_end_when_the_demo_is_killed(env, terminals, redis_url):
    terminal = on_terminal(terminals, env, "demo", "--stock", "5000", "--url", redis_url)
    terminal.wait_for_sales("without a lock")
    workers = psutil.Process(terminal.process.pid).children(recursive=True)
    terminal.process.kill()
    terminal.process.wait(TIMEOUT)
    assert psutil.wait_procs(workers, TIMEOUT)[1] == []


def test_a_worker_that_dies_fails_the_demo(env, terminals, redis_url):
    terminal = on_terminal(terminals, env, "demo", "--stock", "5000", "--url", redis_url)
    terminal.wait_for_sales("without a lock")
    psutil.Process(terminal.process.pid).children(recursive=True)[0].kill()
    assert terminal.finish() == ""
    assert terminal.process.returncode == 1
    assert "a worker of the demo ended with exit status -9" in terminal.shown


BROKEN = """
import itertools, os, time
from distlock.backends.base import *
from distlock.backends.memory import MemoryBackend

class Everyones(MemoryBackend):
    guarantees = Guarantees("everyones", "machine", True, True, "ttl", True, True)

    def acquire(self, claim, deadline):
        WHAT

    def release(self, grant, deadline):
        return True

def open_url(url, *, namespace, op_timeout):
    return Everyones(namespace)
"""
LETS_ALL_IN = "return Grant(claim, time.monotonic_ns(), now() + claim.ttl)"
FAILS = "raise BackendError('it is on fire')"


def broken(what: str, folder: Path) -> str:
    """A folder for PYTHONPATH with an installed backend of the scheme ``broken``."""
    (folder / "broken-1.dist-info").mkdir(parents=True)
    (folder / "broken-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    points = "[distlock.backends]\nbroken = broken_backend:open_url\n"
    (folder / "broken-1.dist-info" / "entry_points.txt").write_text(points)
    (folder / "broken_backend.py").write_text(textwrap.dedent(BROKEN).replace("WHAT", what))
    return os.pathsep.join([str(folder), str(ROOT)])


def test_a_lock_that_lets_all_in_is_found_out(env, tmp_path):
    path = broken(LETS_ALL_IN, tmp_path / "broken")
    done = run({**env, "PYTHONPATH": path}, "demo", "--json", "--stock", "20", "--url", "broken://")
    assert done.returncode == 1
    assert json.loads(done.stdout)["locked"]["oversold"] > 0


@pytest.mark.parametrize("debug", [True, False])
def test_what_went_wrong_in_a_worker_is_said(env, tmp_path, debug):
    path = broken(FAILS, tmp_path / "broken")
    flags = ["--debug"] if debug else []
    done = run({**env, "PYTHONPATH": path}, "demo", "--stock", "20", "--url", "broken://", *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "distlock: it is on fire"
    assert done.stderr.startswith("Traceback") is debug


def outcome(*sales: tuple[int, int], stock: int = 4) -> Outcome:
    return Outcome(stock, 2, [Sale(who, token, 11.0 + i) for i, (who, token) in enumerate(sales)])


def test_fairness_is_jains_index():
    assert outcome((0, 1), (1, 2), (0, 3), (1, 4)).fairness == 1.0
    assert outcome((0, 1), (0, 2), (0, 3), (0, 4)).fairness == 0.5
    assert outcome().fairness == 0.0


def test_a_hand_off_is_a_sale_after_one_of_someone_else():
    assert outcome((0, 1), (1, 2), (1, 3), (0, 4)).handoffs_per_s == pytest.approx(2 / 3)
    assert outcome().handoffs_per_s == 0.0


def test_tokens_must_rise_strictly():
    assert outcome((0, 1), (1, 3)).tokens_in_order
    assert not outcome((0, 1), (1, 1)).tokens_in_order
    assert not outcome((0, 2), (1, 1)).tokens_in_order


def test_selling_less_than_the_stock_is_not_overselling():
    assert outcome((0, 1)).oversold == 0
    assert outcome((0, 1), (0, 2), stock=1).oversold == 1
