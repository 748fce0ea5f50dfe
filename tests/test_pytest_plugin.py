"""The fixtures that come with the package, as a project that installs it has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import distlock

ROOT = Path(distlock.__file__).parent.parent

pytest_plugins = ("pytester",)

PAYMENT = """
    import asyncio
    import distlock

    CARD = distlock.lock("card", ttl=30, timeout=5)

    def pay(written):
        with CARD as lease:
            written.append("booked")
            yield
            lease.ensure_held()
            written.append("paid")

    async def pay_async():
        async with CARD:
            await asyncio.sleep(60)
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with distlock installed: its entry point is all that pytest is told."""
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.entry-points.pytest11]\n")[2]
    package = pytester.mkdir("site") / "distlock-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: distlock\nVersion: 1\n")
    (package / "entry_points.txt").write_text(f"[pytest11]\n{declared.partition('[')[0].replace(chr(34), '')}")
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{ROOT}")
    pytester.makepyfile(payment=PAYMENT)
    return pytester


def outcomes(project: pytest.Pytester, tests: str, *, plugin: str = "anyio") -> dict[str, int]:
    """What becomes of a project's tests; warnings are errors there, too. ``plugin`` is its one for event loops."""
    project.makepyfile(test_payment=tests)
    others = [option for name in ("anyio", "asyncio", "trio") if name != plugin for option in ("-p", f"no:{name}")]
    scope = ["-o", "asyncio_default_fixture_loop_scope=function"] if plugin == "asyncio" else []
    result = project.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", *others, *scope)
    return {what: n for what, n in result.parseoutcomes().items() if what not in ("warnings", "warning")}


def test_the_fixtures_are_found(project):
    result = project.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(["*fixtures defined from _distlock_pytest*", "distlock_clock*"])


def test_sync_code_is_tested_with_them(project):
    tests = """
        import threading
        import pytest
        from distlock import AcquireTimeout, LeaseState, LockLost, current, lock
        from payment import CARD, pay

        def test_it_stops(distlock_manager, distlock_lose):
            written = []
            with pytest.raises(LockLost):
                for _ in pay(written):
                    distlock_lose(current())
            assert written == ["booked"]

        def test_it_gives_up(distlock_clock):
            with lock("card"), pytest.raises(AcquireTimeout):
                next(pay([]))

        def test_it_may_take_its_time(distlock_clock):
            written = []
            for _ in pay(written):
                distlock_clock.advance(3600)
            assert written == ["booked", "paid"]

        def test_each_test_has_its_own_locks(distlock_manager):
            assert distlock_manager.list() == ()
    """
    assert outcomes(project, tests) == {"passed": 4}


ASYNC = """
    import anyio
    import pytest
    from distlock import AcquireTimeout, LockLost, current, lock
    from payment import CARD

    async def hold(held):
        async with CARD:
            held.set()
            await anyio.sleep(60)

    {mark}
    async def test_it_is_cancelled(distlock_manager, distlock_lose):
        with pytest.raises(LockLost):
            async with CARD as lease:
                distlock_lose(lease)
                await anyio.sleep(60)

    {mark}
    async def test_it_gives_up(distlock_clock):
        async with anyio.create_task_group() as group:
            held = anyio.Event()
            group.start_soon(hold, held)
            await held.wait()
            with pytest.raises(AcquireTimeout):
                await CARD.acquire_async()
            group.cancel_scope.cancel()

    {mark}
    async def test_it_is_lost_in_time(distlock_clock):
        with pytest.raises(LockLost):
            async with lock("card", ttl=10, renew=False) as lease:
                await distlock_clock.advance_async(60)
"""


def test_async_code_is_tested_with_them(project):
    assert outcomes(project, ASYNC.format(mark="@pytest.mark.anyio")) == {"passed": 6}


@pytest.mark.parametrize("plugin", ["asyncio", "trio"])
def test_other_plugins_for_event_loops_do_as_well(project, plugin):
    pytest.importorskip(f"pytest_{plugin}", reason=f"pytest-{plugin} is not installed; tox does that")
    assert outcomes(project, ASYNC.format(mark=f"@pytest.mark.{plugin}"), plugin=plugin) == {"passed": 3}


def test_event_loops_that_the_test_starts_do_as_well(project):
    tests = """
        import asyncio
        import pytest
        from distlock import AcquireTimeout, lock
        from payment import pay_async

        def test_it_gives_up(distlock_clock):
            with lock("card"), pytest.raises(AcquireTimeout):
                asyncio.run(pay_async())
    """
    assert outcomes(project, tests) == {"passed": 1}


def test_code_that_is_wrong_fails(project):
    tests = """
        import pytest
        from distlock import LockLost, lock

        def careless(written):
            with lock("card", when_lost="warn"):
                yield
                written.append("paid")

        def test_it_stops(distlock_manager, distlock_lose):
            written = []
            for _ in careless(written):
                distlock_lose(__import__("distlock").current())
            assert written == []

        def test_it_lets_go(distlock_manager):
            lock("card").acquire().extend(60)
            lock("ship").acquire().extend(60)

        leases = []

        def test_it_lets_go_in_the_end(distlock_clock):
            leases.append(lock("card").acquire())
    """
    assert outcomes(project, tests) == {"failed": 2, "passed": 1, "errors": 1}


def test_a_project_without_them_imports_nothing(project):
    tests = """
        import sys

        def test_nothing_is_there():
            heavy = ("distlock", "anyio", "trio", "typer", "redis", "rich")
            assert [name for name in heavy if name in sys.modules] == []
    """
    assert outcomes(project, tests, plugin="none") == {"passed": 1}


def test_the_aids_need_no_pytest(tmp_path):
    code = """
import sys
sys.modules["pytest"] = None
from distlock import AcquireTimeout, lock
from distlock.testing import VirtualClock, in_memory, lose
with in_memory(), VirtualClock(), lock("k") as lease:
    try:
        lock("k", timeout=5).acquire()
    except AcquireTimeout:
        print("gave up", *(name for name in ("anyio", "redis", "trio", "asyncio") if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "gave up\n", "")
