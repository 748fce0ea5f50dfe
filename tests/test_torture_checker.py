"""The checker of the torture kit finds each thing that can be wrong, in the smallest log that shows it, and nothing in
one that is just right."""

from __future__ import annotations

import dataclasses
import math

import pytest

from distlock import Fault
from distlock.testing.torture._checker import Kind, judge
from distlock.testing.torture._events import What

from .torture_logs import (
    FAIR,
    PLAN,
    RECOVERED,
    SOON,
    TTL,
    Log,
    barging,
    fault,
    findings,
    got,
    holds,
    killed,
    kinds,
    leaves,
    process,
    run,
    sure,
    then,
    took,
    verdict,
    wants,
)


def stopped(healed: float) -> Log:
    return fault(0.5, healed, "SIGSTOP of a worker", "w0")


def reads(token: int | None, t: float) -> Log:
    """The first reads, loses the lock, and the second one reads; the first one's write is taken at ``t``."""
    return [
        wants(1, "w0.0"),
        got(1, "w0.0", token=1, until=2),
        then(2, "w0.0", What.LOST),
        *leaves(8, "w0.0", how="lost"),
        wants(3, "w1.0"),
        got(3, "w1.0", token=token, until=6),
        then(4, "w1.0", What.READ, version=0),
        *leaves(5, "w1.0"),
        took(t, "w0.0", 1, 0, token=1),
    ]


CASES: dict[Kind, tuple[Log, Log]] = {
    Kind.SILENT_OVERLAP: (
        run(holds("w0.0", 1, 1, 3), wants(1, "w1.0"), got(2.9, "w1.0"), leaves(3, "w1.0")),
        run(holds("w0.0", 1, 1, 3), wants(1, "w1.0"), got(3, "w1.0"), leaves(3.1, "w1.0")),
    ),
    Kind.STALE_WRITE: (run(reads(2, 4.5)), run(reads(2, 3.5))),
    Kind.LOST_UPDATE: (
        run(took(1, "w0.0", 1, 0), took(2, "w0.0", 2, 0)),
        run(took(1, "w0.0", 1, 0), took(2, "w0.0", 2, 1)),
    ),
    Kind.TOKEN_REPEATED: (
        run(holds("w0.0", 1, 1, 2, token=7), wants(1, "w1.0"), got(2, "w1.0", token=7), leaves(3, "w1.0")),
        run(holds("w0.0", 1, 1, 2, token=7), wants(1, "w1.0"), got(2, "w1.0", token=8), leaves(3, "w1.0")),
    ),
    Kind.TOKEN_FELL: (
        run(holds("w0.0", 1, 1, 2, token=8), holds("w0.0", 2, 3, 4, token=7)),
        # The second one was granted, lost and only then told so: it may have been before the first one.
        run(
            holds("w0.0", 1, 1, 2, token=8),
            wants(0.5, "w1.0"),
            got(3, "w1.0", token=7, until=1),
            leaves(3, "w1.0", how="lost"),
        ),
    ),
    Kind.LOST_WAKEUP: (
        run(holds("w0.0", 1, 1, 2), wants(1, "w1.0"), holds("w1.0", 1, 2 + SOON + 0.1, 4)),
        run(holds("w0.0", 1, 1, 2), wants(1, "w1.0"), holds("w1.0", 1, 2 + SOON - 0.1, 4)),
    ),
    Kind.ORPHAN: (
        run(holds("w0.0", 1, 1, 2), wants(1, "w1.0"), then(11, "w1.0", What.BUSY)),
        run(holds("w0.0", 1, 1, 2), wants(9.4, "w1.0"), then(11, "w1.0", What.BUSY)),
    ),
    Kind.SLOW_RECOVERY: (
        run(
            wants(1, "w0.0"), got(1, "w0.0"), killed("w0", 1.5, 1.6),
            wants(1, "w1.0"), got(1.5 + RECOVERED + 0.1, "w1.0"), leaves(6, "w1.0"),
        ),
        run(
            wants(1, "w0.0"), got(1, "w0.0"), killed("w0", 1.5, 1.6),
            wants(1, "w1.0"), got(1.5 + RECOVERED - 0.1, "w1.0"), leaves(6, "w1.0"),
        ),
    ),
    Kind.STARVATION: (run(barging(10)), run(barging(9))),
    Kind.LATE_TIMEOUT: (
        run(holds("w0.0", 1, 1, 20), wants(1, "w1.0"), then(12.1, "w1.0", What.BUSY)),
        run(holds("w0.0", 1, 1, 20), wants(1, "w1.0"), then(11.9, "w1.0", What.BUSY)),
    ),
    Kind.HANG: (
        run(process("w0", 0, None), wants(1, "w0.0", timeout=None), got(1, "w0.0", until=math.inf)),
        run(process("w0", 0, None), wants(1, "w0.0", timeout=None), got(1, "w0.0"), killed("w0", 2, 3)),
    ),
    Kind.UNPROVOKED: (
        run(wants(20, "w0.0"), then(21, "w0.0", What.FAILED, error="BackendUnavailable: gone")),
        run(wants(20, "w0.0"), then(21, "w0.0", What.FAILED, error="BackendUnavailable: gone"), fault(18, 19)),
    ),
    Kind.AFTER_FORK: (run(found={"after a fork": ["w0: a child could release"]}), run(found={"after a fork": []})),
    Kind.CLIENT_LEAK: (run(process("w0", 1, 2, 3, 4)), run(process("w0", 1, 2, 4, 3))),
    Kind.STORE_LEAK: (run(found={"left in the store": ["k"]}), run(found={"left in the store": []})),
    Kind.NOT_FREE: (run(found={"not free": ["k"]}), run(found={"not free": []})),
    Kind.BROKEN_RUN: (run(found={"died": ["w0: out of memory"]}), run(found={"died": []})),
}  # fmt: skip


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_what_is_wrong_is_found_and_what_is_nearly_wrong_is_not(kind: Kind) -> None:
    wrong, nearly = CASES[kind]
    assert kinds(wrong) == {kind}
    assert findings(nearly) == ()


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_a_finding_carries_the_events_that_prove_it(kind: Kind) -> None:
    log = CASES[kind][0]
    for finding in findings(log):
        assert finding.text
        assert finding.proof
        assert set(map(id, finding.proof)) <= set(map(id, log))


# Overlaps


def test_a_holder_that_was_sure_had_the_lock_since_it_got_it() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0"), sure(8, "w0.0"), *leaves(9, "w0.0")]
    assert kinds(run(first, holds("w1.0", 1, 5, 6))) == {Kind.SILENT_OVERLAP}


def test_who_has_no_proven_time_left_does_not_hold() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0"), *leaves(9, "w0.0", how="lost")]
    assert findings(run(first, holds("w1.0", 1, 3, 6))) == ()


def test_who_was_told_does_not_hold() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0", until=9), then(2, "w0.0", What.LOST), *leaves(9, "w0.0", how="lost")]
    assert findings(run(first, holds("w1.0", 1, 2.1, 6))) == ()


def test_who_is_sure_after_it_was_told_holds() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0", until=9), then(2, "w0.0", What.LOST), sure(3, "w0.0", until=9)]
    assert kinds(run(first, leaves(9, "w0.0"), holds("w1.0", 1, 2.1, 6))) == {Kind.SILENT_OVERLAP}


def test_who_begins_to_leave_does_not_hold() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0", until=9), then(2, "w0.0", What.LEAVES)]
    last = then(5, "w0.0", What.LEFT, how="released")
    assert findings(run(first, last, holds("w1.0", 1, 2.1, 6))) == ()


def test_the_dead_do_not_hold() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0", until=9), *killed("w0", 2, 3)]
    assert findings(run(first, holds("w1.0", 1, 2.1, 6))) == ()


def test_the_stopped_hold_until_their_time_is_over() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0"), *leaves(9, "w0.0", how="lost"), *stopped(8)]
    assert findings(run(first, holds("w1.0", 1, 3, 6))) == ()
    assert kinds(run(first, holds("w1.0", 1, 2.9, 6))) == {Kind.SILENT_OVERLAP}


def test_a_forked_child_that_is_sure_holds_beside_its_parent() -> None:
    child = sure(1.5, "w0.0 forked", until=3)
    assert kinds(run(holds("w0.0", 1, 1, 2), child)) == {Kind.SILENT_OVERLAP}


def test_who_believes_for_ever_holds_until_it_leaves() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0", until=math.inf), *leaves(9, "w0.0")]
    assert kinds(run(first, holds("w1.0", 1, 8.9, 9.5))) == {Kind.SILENT_OVERLAP}
    assert kinds(run(first, holds("w1.0", 1, 9, 9.5))) == set()


# Tokens and writes


def test_tokens_follow_the_order_of_holdings_that_were_waited_for_at_once() -> None:
    log = run(holds("w0.0", 1, 1, 2, token=8), wants(0.5, "w1.0"), got(2.1, "w1.0", token=7), leaves(3, "w1.0"))
    assert kinds(log) == {Kind.TOKEN_FELL}


def test_a_fall_is_told_once() -> None:
    log = run(*(holds("w0.0", n, n, n + 0.5, token=token) for n, token in enumerate([5, 6, 1, 2, 3, 4], 1)))
    assert [finding.kind for finding in findings(log)] == [Kind.TOKEN_FELL]


def test_who_waited_through_a_fall_is_measured_by_what_came_after_it() -> None:
    first, second = holds("w0.0", 1, 1, 2, token=8), holds("w0.0", 2, 2.6, 3.5, token=1)
    log = run(first, wants(2.5, "w1.0"), second, got(4, "w1.0", token=2), leaves(5, "w1.0"))
    assert len(findings(log)) == 1


@pytest.mark.parametrize("token", [3, 0])
def test_a_token_below_that_of_any_who_had_it_before_it_was_wanted_has_fallen(token: int) -> None:
    """Though nobody can say when that one held."""
    late = [wants(5, "w1.0"), got(6, "w1.0", token=token, until=5), *leaves(6, "w1.0", how="lost")]
    assert kinds(run(holds("w0.0", 1, 1, 2, token=1), holds("w0.0", 2, 3, 4, token=5), late)) == {Kind.TOKEN_FELL}


def test_a_second_fall_is_told_too() -> None:
    log = run(*(holds("w0.0", n, n, n + 0.5, token=token) for n, token in enumerate([5, 6, 2, 3, 1], 1)))
    assert [finding.kind for finding in findings(log)] == [Kind.TOKEN_FELL] * 2


def test_locks_without_tokens_have_none_to_judge() -> None:
    assert findings(run(holds("w0.0", 1, 1, 2), holds("w0.0", 2, 3, 4))) == ()


def test_a_write_without_a_token_is_stale_once_the_next_holder_has_read() -> None:
    assert Kind.STALE_WRITE in kinds(run(reads(None, 4.5)))
    assert Kind.STALE_WRITE not in kinds(run(reads(None, 3.5)))


def test_a_write_with_a_token_below_one_that_was_turned_down_is_stale() -> None:
    refused = then(1, "register", What.TURNED_DOWN, by="w1.0", token=2, highest=3)
    assert kinds(run(refused, took(2, "w0.0", 1, 0, token=1))) == {Kind.STALE_WRITE}


def test_who_reads_and_writes_in_turn_is_never_stale() -> None:
    turns = [
        (holds("w0.0", 1, 1, 2), then(1.1, "w0.0", What.READ, version=0), took(1.2, "w0.0", 1, 0)),
        (holds("w1.0", 1, 3, 4), then(3.1, "w1.0", What.READ, version=1), took(3.2, "w1.0", 2, 1)),
    ]
    assert findings(run(*(part for turn in turns for part in turn))) == ()


def test_a_reader_whose_time_was_over_when_it_said_so_makes_no_write_stale() -> None:
    late = [wants(1, "w1.0"), got(6, "w1.0", until=4), then(7, "w1.0", What.READ, version=0)]
    log = run(holds("w0.0", 1, 5, 9), late, leaves(7, "w1.0", how="lost"), took(8, "w0.0", 1, 0))
    assert Kind.STALE_WRITE not in kinds(log)


# What is excused

OUTAGE = "failover"
FORGETFUL = dataclasses.replace(FAIR, excepted=frozenset(Fault) - {Fault.EVICTION})
OVERLAP = [*holds("w0.0", 1, 1, 3), wants(1, "w1.0"), got(2.9, "w1.0"), *leaves(3, "w1.0")]


@pytest.mark.parametrize(("start", "stop"), [(2.5, 2.95), (2, 2.5), (0.5, 2.9 - TTL)])
def test_an_overlap_in_an_excepted_fault_or_a_ttl_after_it_is_excused(start: float, stop: float) -> None:
    found = verdict(run(OVERLAP, fault(start, stop, OUTAGE, "a server", Fault.FAILOVER)), FORGETFUL)
    assert [finding.excused for finding in found.findings] == [Fault.FAILOVER]
    assert found.ok
    assert (found.count(Kind.SILENT_OVERLAP), found.count(Kind.SILENT_OVERLAP, excused=True)) == (0, 1)


@pytest.mark.parametrize(
    ("start", "stop", "excuse"),
    [
        (2.95, 3, Fault.FAILOVER),  # it came later
        (0.1, 0.8, Fault.FAILOVER),  # it was over
        (2.5, 2.95, Fault.EVICTION),  # not of those that this backend excepts
        (2.5, 2.95, Fault.STOPPED_WAITER),  # of those that delay, and no more
        (2.5, 2.95, Fault.CLOCK_SET_BACK),  # of those that make tokens fall, and no more
    ],
)
def test_an_overlap_with_another_fault_is_not(start: float, stop: float, excuse: Fault) -> None:
    found = verdict(run(OVERLAP, fault(start, stop, OUTAGE, "a server", excuse)), FORGETFUL)
    assert [finding.excused for finding in found.findings] == [None]
    assert not found.ok


def test_a_holder_that_is_not_told_of_its_loss_even_when_all_is_well_again_is_not_excused() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0"), sure(9, "w0.0"), *leaves(10, "w0.0")]
    second = [wants(2, "w1.0"), got(2, "w1.0"), sure(9, "w1.0"), *leaves(10, "w1.0")]
    log = run(first, second, fault(1.5, 2, OUTAGE, "a server", Fault.FAILOVER))
    assert kinds(log, FORGETFUL) == {Kind.SILENT_OVERLAP}


def test_tokens_that_begin_anew_after_an_excepted_fault_are_excused_however_late_they_are_seen() -> None:
    log = run(
        holds("w0.0", 1, 1, 2, token=8),
        fault(3, 4, OUTAGE, "a server", Fault.FAILOVER),
        holds("w0.0", 2, 40, 41, token=7),
    )
    assert [finding.excused for finding in findings(log, FORGETFUL)] == [Fault.FAILOVER]
    assert kinds(log, FAIR) == {Kind.TOKEN_FELL}


def test_a_leader_that_does_not_know_that_it_is_none_excuses_no_token() -> None:
    cut = fault(3, 4, "leader cut off", "member 2", Fault.STALE_LEADER)
    assert kinds(run(holds("w0.0", 1, 1, 2, token=8), cut, holds("w0.0", 2, 5, 6, token=7)), FORGETFUL) == {
        Kind.TOKEN_FELL
    }


# The whole


def test_a_log_without_a_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match="STARTED"):
        judge([wants(1, "w0.0")], FAIR)


def test_a_run_in_which_nothing_was_granted_proves_nothing() -> None:
    log = [event for event in run(fault(1, 90)) if event.key is None]
    assert kinds(log) == {Kind.BROKEN_RUN}


def test_the_order_of_the_events_does_not_matter() -> None:
    log = CASES[Kind.SILENT_OVERLAP][0]
    assert judge(log[::-1], FAIR).count(Kind.SILENT_OVERLAP) == 1


def test_figures() -> None:
    log = run(
        holds("w0.0", 1, 1, 3, token=1),
        [wants(2, "w1.0"), got(3.5, "w1.0", token=2), *leaves(4, "w1.0")],
        [wants(5, "w1.0", 2), then(6, "w1.0", What.CANCELLED, 2)],
        holds("w0.0", 5, 8, 9, token=3),
        took(1.5, "w0.0", 1, 0, token=1),
        fault(20, 21, "cancellation", "w0 w1"),
    )
    figures = judge(log, FAIR).figures
    assert (figures.attempts, figures.grants, figures.cancelled, figures.busy, figures.writes) == (5, 4, 1, 0, 1)
    assert (figures.handover_median, figures.handover_p99, figures.longest_wait) == (0.5, 0.5, 1.5)
    assert (figures.fairness, figures.recovery, figures.seconds) == (2.0, None, 100.0)
    assert figures.faults == {"cancellation": 1}
    assert judge(log, FAIR).plan == PLAN
