"""Runs of the torture kit, short and small: that they do what they say, and see what they should."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import distlock
from distlock.testing.torture import (
    CLIENT_FAULTS,
    Event,
    Held,
    Hurt,
    Kind,
    Log,
    Plan,
    Verdict,
    What,
    _worker,
    read_logs,
    torture,
)
from distlock.testing.torture._nemesis import Nemesis, a_round, schedule
from distlock.testing.torture._own_faults import hook
from distlock.testing.torture._party import Distlock
from distlock.testing.torture._register import Register
from distlock.testing.torture._report import repeat

from .servers import wait_until

ROOT = Path(distlock.__file__).parent.parent


def hurts(*words: str) -> list[Hurt]:
    return [hurt for hurt in CLIENT_FAULTS if any(word in hurt.name for word in words)]


def plan(url: str, **more: Any) -> Plan:
    # A machine may stand still for seconds, which no store is to blame for.
    given = {"ttl": 0.5, "seconds": 0.0, "actors": 3, "grace": 20.0, "op_timeout": 20.0, "timeout": 20.0, **more}
    return Plan(url, **given)


def what(folder: Path, kind: What) -> list[Event]:
    return [event for event in read_logs(folder) if event.what is kind]


def is_well(verdict: Verdict, folder: Path) -> bool:
    assert [(each.kind, each.text) for each in verdict.findings if not each.excused] == []
    assert [path.name for path in folder.glob("*.err") if path.stat().st_size] == []
    return verdict.ok


# Whole runs


@pytest.mark.parametrize("colour", ["sync", "asyncio", "trio"])
def test_one_process_contends_for_its_own_memory(tmp_path, colour):
    wanted = plan("memory://", workers=1, actors=8, keys=1, colours=(colour,), overlong=0.05)
    verdict = torture(wanted, tmp_path, [])
    assert is_well(verdict, tmp_path)
    assert len({event.who for event in what(tmp_path, What.WROTE)}) > 1
    (ends,) = what(tmp_path, What.ENDS)
    assert ends.more["counts"]["leases"] == 0


def test_workers_are_killed_and_stopped_and_others_take_their_places(tmp_path):
    wanted = plan((tmp_path / "locks").as_uri(), seconds=2.0, keys=1)
    verdict = torture(wanted, tmp_path, hurts("kill", "beyond"))
    assert is_well(verdict, tmp_path)
    assert {event.more["colour"] for event in what(tmp_path, What.BEGINS)} == {"sync", "asyncio", "trio"}
    killed = [event.more["on"] for event in what(tmp_path, What.STRUCK) if "kill" in event.more["fault"]]
    ended = {event.who for event in what(tmp_path, What.ENDS)}
    assert killed
    assert ended.isdisjoint(killed)
    assert len(ended) == 3, "each was replaced"


def test_tasks_are_cancelled_and_processes_forked(tmp_path, redis_url):
    wanted = plan(redis_url, seconds=2.0, workers=2, colours=("asyncio", "trio"))
    verdict = torture(wanted, tmp_path, hurts("cancellation", "fork"))
    assert is_well(verdict, tmp_path)
    assert what(tmp_path, What.CANCELLED)


def test_locks_of_one_process_are_not_for_two(tmp_path):
    with pytest.raises(distlock.ConfigurationError, match="one process"):
        torture(plan("memory://", workers=2), tmp_path)


def test_a_store_that_cannot_be_reached_is_said_at_once(tmp_path):
    with pytest.raises(distlock.BackendUnavailable):
        torture(plan("redis://127.0.0.1:1"), tmp_path)
    assert list(tmp_path.iterdir()) == []


# What must be seen


class Stuck(Distlock):
    """Never comes back."""

    async def acquire(self, key: str, timeout: float | None, *, renew: bool) -> Held | None:
        while not key.startswith("rehearsal"):
            signal.pause()
        return None


def test_who_hangs_is_found_and_put_down(tmp_path, monkeypatch):
    monkeypatch.setattr(_worker, "SETTLING", 0.5)
    wanted = plan("memory://", workers=1, actors=1, timeout=0.1, op_timeout=0.1, grace=0.1, party=f"{__name__}:Stuck")
    verdict = torture(wanted, tmp_path, [])
    assert Kind.HANG in {each.kind for each in verdict.findings}
    assert what(tmp_path, What.FINAL)[0].more["found"] == {"hung": ["w0"]}
    assert "in acquire" in (tmp_path / "w0.stacks").read_text()


class Forked(Distlock):
    """Its locks are believed in by forked children too."""

    async def acquire(self, key: str, timeout: float | None, *, renew: bool) -> Held | None:
        held = await super().acquire(key, timeout, renew=renew)
        if held is not None:
            until = held.until
            held.sure = lambda: until  # type: ignore[method-assign]
        return held


def test_a_child_that_believes_in_the_lock_of_its_parent_is_found(tmp_path):
    wanted = plan("memory://", workers=1, seconds=1.0, ttl=1.0, work=0.5, party=f"{__name__}:Forked")
    fork = [Hurt(hurt.name, hurt.strike, lasts=(3.0, 3.0)) for hurt in hurts("fork")]
    verdict = torture(wanted, tmp_path, fork)
    assert Kind.SILENT_OVERLAP in {each.kind for each in verdict.findings}


class Nobody(Distlock):
    """Its locks keep nobody out."""

    async def acquire(self, key: str, timeout: float | None, *, renew: bool) -> Held | None:
        return await super().acquire(f"{key} {uuid.uuid4()}", timeout, renew=renew)


def test_locks_that_keep_nobody_out_are_found(tmp_path):
    wanted = plan("memory://", workers=1, actors=6, keys=1, party=f"{__name__}:Nobody")
    verdict = torture(wanted, tmp_path, [])
    assert Kind.SILENT_OVERLAP in {each.kind for each in verdict.findings}
    assert what(tmp_path, What.TURNED_DOWN), "and the register refuses what is stale"


class Leaky(Distlock):
    """Keeps a file open for each time that it was connected."""

    async def close(self) -> None:
        _worker.SETTLING = 0.1
        os.dup(0)
        await super().close()


def test_who_leaves_files_open_is_found(tmp_path):
    wanted = plan("memory://", ttl=0.1, workers=1, actors=1, party=f"{__name__}:Leaky")
    verdict = torture(wanted, tmp_path, [])
    assert [each.kind for each in verdict.findings] == [Kind.CLIENT_LEAK]


def test_what_the_store_has_kept_is_found(tmp_path):
    verdict = torture(plan("memory://", ttl=0.1, workers=1, actors=1), tmp_path, [], left=lambda: ["a key"])
    assert [each.kind for each in verdict.findings] == [Kind.STORE_LEAK]


# The register


@pytest.fixture
def ask(tmp_path) -> Iterator[Callable[..., list[Any]]]:
    with Log(tmp_path / "register.jsonl") as log:
        register = Register(log)
        yield lambda verb, token, read=None: json.loads(
            register.answer(json.dumps([verb, "w0.0", 1, "k", token, read]))
        )


def test_the_register_refuses_tokens_below_the_highest(ask, tmp_path):
    assert ask("write", 5, 0) == ["took", 1]
    assert ask("read", 7) == ["at", 1]
    assert ask("write", 6, 1) == ["refused", 7]
    assert ask("write", 7, 1) == ["took", 2]
    assert [event.what for event in read_logs(tmp_path)] == [What.TOOK, What.TURNED_DOWN, What.TOOK]


def test_the_register_takes_what_has_no_token(ask):
    assert ask("write", 5, 0) == ["took", 1]
    assert ask("write", None, 0) == ["took", 2]


def test_the_register_takes_lost_updates_and_logs_them(ask, tmp_path):
    assert ask("write", 5, 0) == ["took", 1]
    assert ask("write", 5, 0) == ["took", 2]
    assert [event.more["read"] for event in read_logs(tmp_path)] == [0, 0]


# The nemesis


def turns(seed: int, count: int = 20) -> list[tuple[str, float, str]]:
    found = itertools.islice(schedule(plan("memory://", seed=seed, seconds=1000.0), CLIENT_FAULTS), count)
    return [(turn.hurt.name, turn.lasts, turn.seed) for turn in found]


def test_the_seed_decides_what_strikes_and_for_how_long():
    assert turns(1) == turns(1)
    assert turns(1) != turns(2)


def test_every_fault_has_its_turn_in_each_round():
    names = [name for name, *_ in turns(1, 2 * len(CLIENT_FAULTS))]
    first, second = names[: len(CLIENT_FAULTS)], names[len(CLIENT_FAULTS) :]
    assert sorted(first) == sorted(second) == sorted(hurt.name for hurt in CLIENT_FAULTS)


def test_a_round_is_as_long_as_its_faults_and_their_rests():
    one = Hurt("one", lambda arena: pytest.fail("not struck"), lasts=(1.0, 1.0), rest=3.0)
    wanted = plan("memory://", ttl=2.0, seconds=16.0)
    assert a_round(wanted, [one, one]) == 16.0
    assert [turn.lasts for turn in schedule(wanted, [one, one])] == [2.0, 2.0]


def test_a_round_is_one_round_whatever_its_times_add_up_to_and_so_it_is_when_repeated():
    for seed in range(50):
        wanted = plan("memory://", seed=seed)
        wanted = dataclasses.replace(wanted, seconds=a_round(wanted, CLIENT_FAULTS))
        assert len(list(schedule(wanted, CLIENT_FAULTS))) == len(CLIENT_FAULTS)
        assert f"--for {wanted.seconds} " in repeat(wanted)


def test_what_cannot_be_hurt_is_left_out():
    wanted = plan("memory://", workers=1, colours=("sync", "trio"))
    with distlock.connect("memory://") as locks:
        names = {hurt.name for hurt in CLIENT_FAULTS if not hurt.fits(wanted, locks.guarantees)}
    assert names == {"kill -9 of a worker", "cancellation"}, "the locks die with it; threads cannot be cancelled"


class Empty:
    """An arena without processes."""

    def __init__(self, wanted: Plan) -> None:
        self.plan, self.dice = wanted, random.Random()
        self.mended = 0

    workers: Sequence[Any] = ()

    def mend(self) -> None:
        self.mended += 1


def test_a_fault_that_cannot_be_made_is_said_and_the_others_have_their_turns(tmp_path):
    struck: list[float] = []

    @contextmanager
    def strike(arena: Any) -> Iterator[str]:
        struck.append(arena.dice.random())
        yield "somebody"

    def fail(arena: Any) -> Any:
        raise OSError("not allowed")

    wanted = plan("memory://", ttl=0.1, seconds=30.0)
    nobody = Empty(wanted)
    with Log(tmp_path / "run.jsonl") as log:
        nemesis = Nemesis(nobody, [Hurt("well", strike), Hurt("ill", fail)], log, lambda text: None)
        nemesis.start()
        wait_until(lambda: len(struck) >= 2 and len(nemesis.failed) >= 1, "both have had a turn")
        nemesis.stop()
        nemesis.join()
    assert set(nemesis.failed) == {"ill: OSError: not allowed"}
    assert nobody.mended == len(struck)
    counts = {kind: len(what(tmp_path, kind)) for kind in (What.STRIKES, What.HEALED)}
    assert counts[What.STRIKES] == counts[What.HEALED] == len(struck) + len(nemesis.failed)


@pytest.mark.parametrize("name", ["INT", "HUP"])
def test_ctrl_c_cuts_off_no_command_that_hurts_or_heals(tmp_path, name):
    mine = hook("mine", f"kill -{name} $$; touch {tmp_path / 'began'}", f"kill -{name} $$; touch {tmp_path / 'ended'}")
    with mine.strike(Empty(plan("memory://"))):
        assert (tmp_path / "began").exists()
    assert (tmp_path / "ended").exists()


# The command


@pytest.fixture
def env(tmp_path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DISTLOCK_")}
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    return {**inherited, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), "COLUMNS": "100"}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "distlock", "torture", *args]


def run(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), env=env, capture_output=True, text=True, timeout=400, check=False)


def test_the_command_reports_a_run_that_was_well_and_leaves_nothing(env, tmp_path):
    page = tmp_path / "page.html"
    mine = f"mine=touch {tmp_path / 'began'};;touch {tmp_path / 'ended'}"
    args = "--for", "0.1", "--ttl", "0.5", "--grace", "20", "--seed", "7", "--faults", "mine", "--hook", mine
    done = run(env, *args, "--json", "--timeline", str(page))
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["figures"]["faults"] == {"mine": 1}
    assert "--seed 7 --workers 3 --actors 4" in report["repeat"]
    assert (tmp_path / "began").exists()
    assert (tmp_path / "ended").exists()
    assert "mine" in page.read_text()
    assert os.listdir(env["TMPDIR"]) == []


def test_the_command_fails_if_anything_was_wrong_and_keeps_what_proves_it(env):
    args = "memory://", "--for", "0.1", "--ttl", "0.1", "--actors", "1", "--grace", "20"
    done = run(env, *args, "--faults", "mine,kill", "--hook", "mine=exit 3")
    assert done.returncode == 1
    assert "exit 3" in done.stdout
    assert "again: distlock torture memory:// --for 0.1 " in done.stdout
    assert done.stdout.splitlines()[-2].endswith(" --faults mine,kill --hook 'mine=exit 3'"), "in one line"
    assert "left out, as nothing would come of it here: kill -9 of a worker" in done.stderr
    (folder,) = os.listdir(env["TMPDIR"])
    assert f"the logs are in {env['TMPDIR']}/{folder}" in done.stderr


def test_ctrl_c_ends_a_run_and_what_has_happened_is_judged(env, tmp_path):
    args = "memory://", "--for", "60", "--ttl", "0.1", "--grace", "20", "--faults", "none", "--json"
    logs = tmp_path / "logs"
    with subprocess.Popen(
        command(*args, "--logs", str(logs)), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        begun = {What.STARTED, What.GOT}  # without a grant a run proves nothing
        wait_until(lambda: logs.exists() and begun <= {event.what for event in read_logs(logs)}, "it has started")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=400)
    assert process.returncode == 130
    assert json.loads(out)["ok"]
    assert len(what(logs, What.ENDS)) == 1


def test_the_command_says_what_to_install_for_trio(env, tmp_path):
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "trio.py").write_text("raise ModuleNotFoundError('No module', name='trio')")
    done = run({**env, "PYTHONPATH": os.pathsep.join([str(shadow), str(ROOT)])}, "memory://")
    assert done.returncode == 64
    assert done.stderr.startswith("distlock: trio is not installed; run: pip install 'pydistlock[testing]'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["--list-faults"], 0, ""),
        (["--faults", "nonsense"], 64, "no fault has 'nonsense' in its name"),
        (["--hook", "nonsense"], 64, "is not NAME=BEGIN;;END"),
        (["nonsense://"], 64, "no backend for nonsense://"),
        (["--pid", "999999999"], 74, "No such process"),
        (["--timeline", "/nowhere/page.html"], 74, "/nowhere/page.html"),
        (["memory://", "--workers", "2"], 64, "the locks of memory are those of one process"),
        (["redis://127.0.0.1:1/0"], 69, "[redis://127.0.0.1:1/0]"),  # not the proxy, which can be reached
    ],
)
def test_the_command_says_what_it_cannot_do(env, args, status, said):
    done = run(env, *args)
    assert done.returncode == status
    assert said in done.stderr
    assert os.listdir(env["TMPDIR"]) == []
