"""The flash sale runs by one command, comes back to life by itself, and leaves nothing behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from flash_sale.running.processes import TIED, CannotStart, listen
from flash_sale.running.system import System
from flash_sale.settings import Settings
from flash_sale.tables import create, engine_of
from redis import Redis

from .children import untraced
from .postgres_servers import PostgresServer
from .programs import launch_prefix, wait_until
from .servers import require_redis

pytestmark = pytest.mark.timeout(600)  # a dozen processes start
ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
AS_A_FOLDER = [str(TUTORIALS / "flash_sale")]
AS_A_MODULE = ["-m", "flash_sale"]
TIMEOUT = 150.0
"""Seconds, on a machine that is busy with other tests."""
ROLES = {"redis": 1, "services": 1, "shop": 2, "saga": 2, "publisher": 2, "consumer": 1}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """The command as a user types it, with its temporary files where the test's are."""
    with ExitStack() as stack:

        def popen(*words: str, **more: str) -> subprocess.Popen[str]:
            stderr = stack.enter_context((tmp_path / "stderr").open("w"))
            environment = {**untraced(), "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), **more}
            process = stack.enter_context(
                subprocess.Popen(
                    [*launch_prefix(), sys.executable, *words],
                    cwd=TUTORIALS,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield popen


def settings_in(folder: Path) -> Settings:
    """Of a shop with a database and a Redis of its own."""
    return Settings(database="", redis="", services="", folder=str(folder))


def url_of(process: subprocess.Popen[str], folder: Path) -> str:
    """It is printed once the shop answers."""
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), (folder / "stderr").read_text()
    return line.strip()


def is_well(url: str) -> bool:
    return httpx.get(f"{url}/health", trust_env=False, timeout=TIMEOUT).status_code == httpx.codes.OK


def family_of(process: subprocess.Popen[str], words: Sequence[str] = ()) -> list[psutil.Process]:
    """All that it has started, or those whose command ends with these words."""
    everyone = psutil.Process(process.pid).children(recursive=True)
    return [each for each in everyone if not words or each.cmdline()[-len(words) :] == [*words]]


def test_one_command_runs_the_shop_until_ctrl_c(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    require_redis()
    process = start(*AS_A_FOLDER, "--workers", "2")
    assert is_well(url_of(process, tmp_path))
    family = family_of(process)
    assert len(family) == sum(ROLES.values())

    process.send_signal(signal.SIGINT)
    wait_until(lambda: not all(lives(each) for each in family), "the first of them to end")
    process.send_signal(signal.SIGINT)  # of somebody who is impatient
    assert process.wait(TIMEOUT) == 0, (tmp_path / "stderr").read_text()
    assert psutil.wait_procs(family, 0)[1] == []
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert [each.name for each in tmp_path.iterdir()] == ["stderr"], "its files are gone, too"


def test_it_runs_on_postgres_until_sigterm(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    require_redis()
    pytest.importorskip("psycopg")  # it is not for every machine
    with PostgresServer() as server:
        process = start(*AS_A_MODULE, "serve", "--workers", "2", "--database", server.url)
        assert is_well(url_of(process, tmp_path))
        family = family_of(process)

        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0, (tmp_path / "stderr").read_text()
        assert psutil.wait_procs(family, 0)[1] == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not tie a process to its parent")
def test_kill_9_leaves_nobody(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    require_redis()
    process = start(*AS_A_MODULE, "--workers", "2")
    url_of(process, tmp_path)
    family = family_of(process)
    (stopped,) = family_of(process, ["flash_sale.worker", "consumer"])
    # The shop answers, and the consumer may not even be what it is to become: then nothing ties it to its parent yet.
    wait_until(lambda: str(TIED) not in stopped.cmdline(), "the consumer to be tied")
    stopped.suspend()

    process.kill()
    process.wait(TIMEOUT)
    wait_until(lambda: not any(lives(each) for each in family), "them to be killed")


def lives(process: psutil.Process) -> bool:
    """A zombie that nobody has waited for yet does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_dies_comes_back(tmp_path: Path) -> None:
    require_redis()
    told: list[str] = []
    with System(settings_in(tmp_path), shop_workers=2, tell=told.append) as system:
        first = {role: system.pids(role) for role in ROLES}
        assert {role: len(pids) for role, pids in first.items()} == ROLES

        for role in ("saga", "shop"):
            system.kill(first[role][0])
        wait_until(lambda: all(new(first[role], system.pids(role)) for role in ("saga", "shop")), "them to be back")
        assert sorted(line.split()[0] for line in told) == ["saga-1", "shop-1"]
        assert is_well(system.url)

        with closing(Redis.from_url(system.settings.redis)) as client:
            client.set("kept", "by its disk")
            system.restart_redis()
            assert client.get("kept") == b"by its disk"
        assert new(first["redis"], system.pids("redis"))
    assert [system.pids(role) for role in ROLES] == [[]] * len(ROLES)


def new(before: Sequence[int], now: Sequence[int]) -> bool:
    """As many as before, and one of them is another."""
    return len(now) == len(before) and len({*now} - {*before}) == 1


def children() -> set[psutil.Process]:
    """Of this process: other tests may have theirs."""
    return {*psutil.Process().children(recursive=True)}


def test_who_dies_at_the_start_is_told_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_redis()
    before = children()
    monkeypatch.setenv("PYTHONHASHSEED", "a number, it should be")  # no Python starts with that
    with (
        pytest.raises(CannotStart, match=r"(?s)ended with status 1; the end of .*\.log:.*PYTHONHASHSEED"),
        System(settings_in(tmp_path)),
    ):
        pass
    assert children() - before == set()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param({"redis": "redis://127.0.0.1:1"}, "^Redis: Error 111", id="Redis is down"),
        pytest.param({"redis": "rediss:/x"}, "^Redis: ", id="no URL of Redis"),
        pytest.param({"database": "x"}, "^the database: Could not parse", id="no URL of a database"),
        pytest.param({"database": "sqlite:////no/x.db"}, "^the database: unable to open", id="no database"),
        pytest.param({"database": "postgresql+psycopg://u@h:x/y"}, "^the database: invalid literal", id="no port"),
        pytest.param({"database": "postgresql+nil://x"}, "^the database: Can't load plugin", id="no driver"),
        pytest.param({"database": "mysql://x"}, "^the database: mysql: the shop knows SQLite", id="another database"),
    ],
)
def test_what_it_cannot_use_is_told(tmp_path: Path, given: Mapping[str, Any], says: str) -> None:
    require_redis()
    before = children()
    with pytest.raises(CannotStart, match=says) as caught, System(replace(settings_in(tmp_path), **given)):
        pass
    assert "\n" not in str(caught.value)
    assert children() - before == set()


def test_a_database_of_another_sale_is_left_alone(tmp_path: Path) -> None:
    require_redis()
    settings = replace(settings_in(tmp_path), database=f"sqlite:///{tmp_path}/old.db")
    engine = engine_of(settings.database)
    create(engine, 1)
    engine.dispose()
    with pytest.raises(CannotStart, match=r"^the database: .* has tables of these names already"), System(settings):
        pass


def test_without_redis_server_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    says = "no redis-server on this machine: install it, or give --redis URL"
    with pytest.raises(CannotStart, match=says), System(settings_in(tmp_path)):
        pass


def test_a_port_of_a_server_that_starts_again_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last connections hold the port; it alone, as the one who wants this very port, may have it."""
    with listen() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Redis does
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()
            assert client.recv(1) == b""
    monkeypatch.setattr("random.sample", lambda ports, number: [port])
    with pytest.raises(CannotStart, match="in use"):
        listen()
    listen(port).close()


def test_a_port_that_is_taken_is_status_2(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    with listen() as listener:
        port = listener.getsockname()[1]
        process = start(*AS_A_MODULE, "--port", str(port))
        assert process.wait(TIMEOUT) == 2
    assert process.stdout
    assert process.stdout.read() == ""
    *_, last = (tmp_path / "stderr").read_text().splitlines()
    assert last == f"flash_sale: port {port} of 127.0.0.1: Address already in use"
    assert [each.name for each in tmp_path.iterdir()] == ["stderr"]
