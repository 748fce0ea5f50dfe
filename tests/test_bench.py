"""``distlock bench`` as a user runs it, on real servers. Figures are for people to judge: no test asserts a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy

import distlock
from distlock._core.drive import drive
from distlock.bench import WORKLOADS, Plan, bench
from distlock.bench._measure import Spread, Unknown, percentile
from distlock.bench._servers import server_of
from distlock.bench._sql import RowLock, SqlServer
from distlock.testing.torture._colour import Colour

from .databases import Database
from .etcd_servers import EtcdServer
from .mariadb_servers import MariaDBServer
from .postgres_servers import PostgresServer
from .programs import wait_until
from .redlock_tools import Nodes
from .servers import RedisServer

ROOT = Path(distlock.__file__).parent.parent
TIMEOUT = 400


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DISTLOCK_")}
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    return {**inherited, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), "COLUMNS": "100"}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "distlock", "bench", *args]


def run(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def keys_of(server: RedisServer) -> list[str]:
    """All but the token clock, which Redis keeps for a day for whoever comes next."""
    reply = server.command("KEYS", "*")
    assert isinstance(reply, list)
    return [key.decode() for key in reply if isinstance(key, bytes) and not key.endswith(b":clock")]


def rows_of(report: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for work in report["workloads"]:
        for row in work["rows"]:
            found.setdefault((work["name"], row["store"]), []).append(row)
    return found


def quick(*urls: str, workloads: tuple[str, ...] = tuple(WORKLOADS), **more: Any) -> Plan:
    return Plan(urls, workloads, os.urandom(6).hex(), **more).quick()


def test_all_workloads_run_on_every_kind_of_store_and_nothing_is_left(
    env: dict[str, str], tmp_path: Path, redis_server: RedisServer, etcd_server: EtcdServer
) -> None:
    files, page = tmp_path / "locks", tmp_path / "bench.html"
    urls = "memory://", files.as_uri(), redis_server.url, etcd_server.url
    done = run(env, *urls, "--quick", "--json", "--plot", str(page), "--pid", f"4={etcd_server.pid}")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert list(report) == ["format", "plan", "conditions", "stores", "workloads", "failures", "interrupted"]
    assert (report["format"], report["failures"], report["interrupted"]) == (1, [], False)
    assert [work["name"] for work in report["workloads"]] == list(WORKLOADS)
    rows = rows_of(report)
    for (name, store), found in rows.items():
        for row in found:
            check_row(row, name, store)
    assert [row["contenders"] for row in rows["threads", "redis"]] == [1, 2]
    assert {store for name, store in rows if name == "capacity"} == {
        "memory", "file", "redis", "local lock, redis", "etcd", "local lock, etcd"
    }  # fmt: skip
    assert "<svg" in page.read_text()
    assert "hand-off" in page.read_text()
    assert keys_of(redis_server) == []
    assert (etcd_server.keys(), etcd_server.leases()) == ([], [])
    assert [path for path in files.rglob("*") if path.is_file() and not path.name.startswith(".clock-")] == []
    assert os.listdir(env["TMPDIR"]) == []


def check_row(row: dict[str, Any], name: str, store: str) -> None:
    """Every figure is there, or there is a reason."""
    assert list(row) == ["store", "contenders", "missing", "best", "figures", "to_floor", "floor_us"]
    assert list(row["figures"]) == [metric.name for metric in WORKLOADS[name].metrics]
    for figure in row["figures"].values():
        assert (figure["median"] is None) == bool(figure["unknown"])
        assert figure["median"] is None or figure["low"] <= figure["median"] <= figure["high"]
        assert len(figure["rounds"]) == (figure["median"] is not None)
    measured = row["missing"] is None
    assert measured or (row["missing"], store) == ("its locks are those of one process", "memory")
    assert (row["to_floor"] is not None) == (measured and WORKLOADS[name].has_floor and store != "memory")
    if store in ("redis", "etcd") and name == "renewal":
        assert row["figures"]["requests"]["unknown"] is None
    if store in ("redis", "etcd") and name == "capacity":
        # Of a wait nothing is known where a slow machine got no lock in time.
        unknown = [row["figures"][figure]["unknown"] for figure in ("server CPU", "memory", "connections")]
        assert unknown == [None] * 3, "by INFO, and by --pid"


@pytest.mark.parametrize("database", [PostgresServer, MariaDBServer])
def test_row_locks_of_a_database_stand_beside_and_leave_no_table(tmp_path: Path, database: type[Database]) -> None:
    with database() as server:
        workloads = "uncontended", "hand-off", "threads", "recovery", "capacity", "renewal"
        outcome = bench(quick(server.url, tmp_path.as_uri(), workloads=workloads, pids={1: server.pid}))
        assert outcome.failures == []
        missing = {cell.workload.name for cell in outcome.cells if cell.missing}
        assert missing == {"renewal"}
        (capacity,) = (cell for cell in outcome.of("capacity") if cell.store.guarantees is None)
        assert capacity.unknown == {}
        engine = sqlalchemy.create_engine(server.url)
        assert sqlalchemy.inspect(engine).get_table_names() == []
        engine.dispose()


@pytest.mark.parametrize("database", [PostgresServer, MariaDBServer])
def test_a_row_that_is_locked_is_waited_for_as_long_as_is_asked_and_no_longer(database: type[Database]) -> None:
    async def main() -> None:
        await rows.open(Colour("sync"))
        held = rows.mutex("wanted", TIMEOUT)
        assert await held.acquire()
        late = rows.mutex("wanted", 0.01)  # nothing is waited for yet
        assert not await late.acquire()
        await held.release()
        again = rows.mutex("wanted", TIMEOUT)
        assert await again.acquire()
        await again.release()

    with database() as server:
        table = SqlServer(server.url, "rows_of_the_test")
        rows = RowLock(server.url, "rows_of_the_test", table.address)
        drive(main())
        drive(rows.close())
        table.close()


def test_it_refuses_to_run_where_names_like_its_own_are_in_use(env: dict[str, str], tmp_path: Path) -> None:
    url = (tmp_path / "locks").as_uri()
    with distlock.connect(url) as locks, locks.lock("distlock-bench/mine"):
        done = run(env, "memory://", url, "--quick")
        assert done.returncode == 75
        assert done.stdout == ""
        assert "distlock-bench/mine" in done.stderr
        assert done.stderr.count("\n") == 1
        assert run(env, url, "--quick", "--only", "uncontended", "--namespace", "other").returncode == 0


@pytest.mark.parametrize(("workload", "key"), [("threads", "wanted"), ("recovery", "killed"), ("waiting", "kept")])
def test_ctrl_c_leaves_no_key_and_no_process(
    env: dict[str, str], redis_server: RedisServer, workload: str, key: str
) -> None:
    args = redis_server.url, "--only", workload, "--seconds", "60", "--rounds", "1000", "--json"
    with subprocess.Popen(
        command(*args), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            wait_until(lambda: any(key in name for name in keys_of(redis_server)), "it is at work")
            family = psutil.Process(process.pid).children(recursive=True)
        finally:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert json.loads(out)["interrupted"]
    assert "Traceback" not in err
    assert family
    wait_until(lambda: not any(lives(each) for each in family), "all processes have ended")
    assert keys_of(redis_server) == []


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_server_that_goes_away_is_told_and_the_others_are_measured_on(tmp_path: Path) -> None:
    with RedisServer('save ""') as server:

        def tell(doing: str, done: int, total: int) -> None:
            if done == 3:  # both have had a turn, and one of them a second
                server.kill()

        outcome = bench(quick(server.url, tmp_path.as_uri(), workloads=("uncontended", "many-keys", "threads")), tell)
        server.start()
    assert {type(failure.error) for failure in outcome.failures} == {distlock.BackendUnavailable}
    assert [failure.where for failure in outcome.failures] == ["redis, threads", "redis, cleaning up"], "each once"
    found = {(cell.workload.name, cell.store.name): cell for cell in outcome.cells}
    assert found["uncontended", "redis"].spread("latency") is not None
    assert found["threads", "redis"].missing
    assert all(cell.spread(cell.workload.metrics[0].name) for cell in outcome.cells if cell.store.name == "file")


def test_a_url_that_cannot_be_used_does_not_keep_the_others_from_being_measured(
    env: dict[str, str], tmp_path: Path
) -> None:
    urls = "redis://:secret@127.0.0.1:1/0", "nonsense://", "sqlite:///x", tmp_path.as_uri()
    done = run(env, *urls, "--quick", "--only", "uncontended", "--plot", str(tmp_path / "out.svg"))
    assert done.returncode == 69
    said = done.stderr.splitlines()
    assert len(said) == 3
    for line, words in zip(said, ("cannot be reached", "no backend for nonsense://", "not on sqlite"), strict=True):
        assert words in line
    assert "secret" not in done.stderr
    assert "file" in done.stdout
    assert "<svg" in (tmp_path / "out.svg").read_text()


@pytest.fixture(params=["cluster", "sentinel", "redlock", "zookeeper", "etcd with few rights", "redis with few rights"])
def topology(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of one."""
    rights = "on >pw ~distlock:* &distlock:* +@scripting +@read +@write +@pubsub +@connection +time"
    if request.param == "etcd with few rights":
        with EtcdServer(tls=True, users={"me": ("pw", "distlock/")}) as etcd:
            yield etcd.url
    elif request.param == "redis with few rights":
        with RedisServer(users={"me": rights}) as redis:
            yield redis.url_at(redis.port, user="me", password="pw")
    else:
        fixtures = {
            "cluster": "shared_cluster",
            "sentinel": "shared_sentinels",
            "redlock": "redlock_nodes",
            "zookeeper": "shared_zookeeper",
        }
        yield request.getfixturevalue(fixtures[request.param]).url


def test_the_servers_of_every_topology_are_asked(topology: str) -> None:
    outcome = bench(quick(topology, workloads=("uncontended", "renewal", "capacity")))
    assert outcome.failures == []
    for cell in outcome.cells:
        first = cell.workload.metrics[0].name
        assert cell.spread(first) or (first in cell.unknown and "me:pw" in topology)
        assert bool(cell.ratios) == cell.workload.has_floor
    unknown = {metric: why for cell in outcome.cells for metric, why in cell.unknown.items()}
    if topology.startswith("redis://me"):
        assert unknown.keys() == {"requests", "server CPU", "memory", "connections"}
        assert all(why.startswith("INFO: ") for why in unknown.values())
    elif topology.startswith(("redis", "redlock")):
        assert unknown == {}
    with distlock.connect(topology) as locks:
        assert list(locks.list("distlock-bench")) == []


def test_nothing_is_remembered_of_claims_that_were_given_up(redlock_nodes: Nodes) -> None:
    plan = replace(quick(redlock_nodes.url, workloads=("waiting", "capacity")), timeout=0.01, contenders=(4,))
    outcome = bench(plan)
    assert outcome.failures == []
    assert redlock_nodes.keys() == []


@pytest.mark.parametrize("fixture", ["redis_server", "etcd_server", "zookeeper_server"])
def test_what_it_asks_itself_is_not_counted(request: pytest.FixtureRequest, fixture: str) -> None:
    url = request.getfixturevalue(fixture).url
    server = server_of(url, url, os.urandom(6).hex())
    try:
        server.run(3)
        requests = server.requests()
        assert not isinstance(requests, Unknown)
        assert [server.requests(), server.requests()] == [requests] * 2
        server.run(1)
        # On Redis what clients ask for is told from what scripts do by the command, and SET is not among them.
        assert server.requests() == requests + (1 if fixture == "redis_server" else 2)
        if fixture != "etcd_server":  # which does not tell
            assert server.usage().connections == 0
    finally:
        server.close()


@pytest.mark.parametrize("colour", ["asyncio", "trio"])
def test_contenders_may_be_tasks(redis_server: RedisServer, colour: str) -> None:
    outcome = bench(quick(redis_server.url, workloads=("uncontended", "hand-off", "tasks", "capacity"), colour=colour))
    assert outcome.failures == []
    assert all(cell.spread(cell.workload.metrics[0].name) for cell in outcome.cells)
    assert keys_of(redis_server) == []


@pytest.mark.parametrize(("module", "args"), [("matplotlib", ["--plot", "x.svg"]), ("trio", ["--colour", "trio"])])
def test_it_says_what_to_install(env: dict[str, str], tmp_path: Path, module: str, args: list[str]) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / f"{module}.py").write_text(f"raise ModuleNotFoundError('No module', name={module!r})")
    done = run({**env, "PYTHONPATH": os.pathsep.join([str(shadow), str(ROOT)])}, "memory://", *args)
    assert done.returncode == 64
    assert done.stderr.startswith(f"distlock: {module} is not installed; run: pip install ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["--list"], 0, ""),
        (["--only", "nonsense"], 64, "'nonsense' is none of uncontended, "),
        (["--contenders", "0"], 64, "no list of numbers"),
        (["--colour", "blue"], 64, "'blue' is none of "),
        (["--pid", "2=1"], 64, "is not N=PID"),
        (["--plot", "x.png"], 64, "writes .svg or .html"),
        (["--plot", "/nowhere/x.svg"], 74, "/nowhere/x.svg"),
        (["--quick", "--only", "uncontended", "--pid", "1=999999999"], 64, "--pid"),
    ],
)
def test_it_says_what_it_cannot_do(env: dict[str, str], args: list[str], status: int, said: str) -> None:
    done = run(env, "memory://", *args)
    assert done.returncode == status
    assert said in done.stderr
    assert os.listdir(env["TMPDIR"]) == []


def test_the_turns_of_all_stores_are_interleaved(tmp_path: Path) -> None:
    heard: list[str] = []
    plan = Plan(("memory://", tmp_path.as_uri()), ("uncontended",), "interleaved", rounds=3, seconds=0.02, warm_up=0.0)
    outcome = bench(plan, lambda doing, done, total: heard.append(doing.partition(": ")[2]))
    assert heard[:6] == ["memory", "file", "file", "memory", "memory", "file"]
    assert all(len(cell.values["latency"]) == 3 for cell in outcome.cells)


def test_figures_are_medians_with_their_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, (1.5, 2.5))
    assert [percentile(range(1, 101), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
