"""The comparison with other libraries: its adapters, its workers, one race. No test asserts a time."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks._measure import Pace
from benchmarks._stores import STORES
from benchmarks.peers._driver import Crew, Failed
from benchmarks.peers._measured import Results, measure
from benchmarks.peers._peer import PROMISES, absent, no, peers
from benchmarks.peers._tables import guarantees

from .servers import require_redis
from .zookeeper_servers import require_zookeeper

ROOT = Path(__file__).parent.parent
PEERS = peers()
HERE = [("redis", "redis_py", require_redis), ("redis", "redis_py_asyncio", require_redis)]
HERE += [("redis", "python_redis_lock", require_redis), ("zookeeper", "kazoo", require_zookeeper)]


def test_every_adapter_is_a_contender():
    modules = {path.stem for path in (ROOT / "benchmarks" / "peers").glob("[!_]*.py")}
    assert set(PEERS) == modules


@pytest.mark.parametrize("peer", [peer for peer in PEERS.values() if peer.guarantees], ids=lambda peer: peer.name)
def test_a_peer_has_exact_pins_and_says_what_it_does_not_guarantee(peer):
    assert peer.pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in peer.pins.split())
    claims = peer.guarantees.each()
    assert len(claims) == len(PROMISES)
    assert {claim.answer for claim in claims} <= {"yes", "no", "in part"}
    assert all(re.fullmatch(r"[\w.]+:[\w.]+", claim.seen_in) for claim in claims)


def test_a_claim_about_what_is_not_there_is_found():
    ours = PEERS["distlock_sync"]
    assert ours.guarantees
    assert absent(ours) == []
    assert absent(replace(ours, guarantees=replace(ours.guarantees, fencing=no("json:token")))) == ["json:token"]


def test_the_page_has_the_table_of_guarantees():
    assert guarantees(PEERS.values()) in (ROOT / "docs" / "benchmarks.md").read_text()


@pytest.fixture(params=HERE, ids=lambda given: given[1])
def crew(request):
    """Two workers of a peer that the tests have anyway."""
    store, adapter, require = request.param
    require()
    with STORES[store](None) as place, Crew(adapter, sys.executable, place.place) as crew:
        yield crew


def test_a_worker_takes_gives_back_and_counts(crew):
    (worker,) = crew.first(1)
    assert worker.ask("pairs", key="pairs", count=3) > 0
    asked, entered = worker.ask("take", key="held")
    assert asked <= entered <= worker.ask("give", key="held")


def test_who_waits_in_another_process_is_in_after_the_release(crew):
    holder, waiter = crew.first(2)
    holder.ask("take", key="held")
    waiter.send("take", key="held")
    given = holder.ask("give", key="held")
    _, entered = waiter.reply()
    assert entered > given
    waiter.ask("give", key="held")


def test_what_a_peer_raises_is_told_and_the_worker_goes_on(crew):
    (worker,) = crew.first(1)
    with pytest.raises(Failed, match="has no attribute"):
        worker.ask("nonsense")
    assert worker.ask("pairs", key="pairs", count=1) > 0


def test_a_worker_that_is_gone_is_told():
    with pytest.raises(Failed, match="No module named"):
        Crew("no_such_peer", sys.executable, "file:///").first(1)


def test_a_race_gives_ratios_to_the_floor_and_to_distlock():
    require_redis()
    those = {name: PEERS[name] for name in ("raw", "raw_queue", "distlock_sync", "python_redis_lock")}
    results = Results()
    for workload in ("uncontended", "hand-off", "contended"):
        measure("redis", workload, those, dict.fromkeys(those, sys.executable), Pace(quick=True), results)
    assert results.failures == {}
    of_peer = {each.figure: each for each in results.figures if each.peer == "python-redis-lock"}
    assert set(of_peer) == {"uncontended", "hand-off", "contended", "fairness"}
    assert all(each.to_floor and each.to_distlock for each in of_peer.values())


def test_those_who_ask_again_and_again_are_heard():
    require_redis()
    results = Results()
    measure(
        "redis", "waiting", {"redis_py": PEERS["redis_py"]}, {"redis_py": sys.executable}, Pace(quick=True), results
    )
    assert results.failures == {}
    assert results.figures[0].value.median > 0


def test_a_peer_that_does_not_start_fails_alone():
    require_redis()
    results = Results()
    those = {name: PEERS[name] for name in ("raw", "redis_py")}
    measure("redis", "uncontended", those, {"raw": sys.executable, "redis_py": "/bin/false"}, Pace(quick=True), results)
    assert list(results.failures) == ["redis-py, redis, uncontended"]
    assert [each.peer for each in results.figures] == ["raw floor"]
