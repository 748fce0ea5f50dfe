"""What is late is found by the checker of the torture kit, unless somebody was hurt who could have delayed it."""

from __future__ import annotations

import dataclasses

import pytest

from distlock.testing.torture._checker import Kind, judge
from distlock.testing.torture._events import What
from distlock.testing.torture._liveness import OP_TIMEOUT

from .torture_logs import (
    FAIR,
    GRACE,
    ORPHANED,
    RECOVERED,
    SOON,
    TTL,
    UNFAIR,
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
    then,
    wants,
)


def test_a_lock_that_is_not_given_while_the_store_is_hurt_is_no_orphan() -> None:
    served = [got(9 + ORPHANED, "w1.0"), *leaves(15, "w1.0")]
    assert findings(run(holds("w0.0", 1, 1, 2), wants(1, "w1.0"), fault(2, 9), served)) == ()


def test_a_lock_that_is_not_given_when_the_store_has_healed_is_an_orphan() -> None:
    log = run(holds("w0.0", 1, 1, 2), wants(1, "w1.0", timeout=30), fault(2, 9), then(30, "w1.0", What.BUSY))
    assert kinds(log) == {Kind.ORPHAN}


def test_a_time_in_which_nobody_wants_a_lock_does_not_count() -> None:
    tries = [[wants(t, "w1.0", t, timeout=0.7), then(t + 0.7, "w1.0", What.BUSY, t)] for t in (3, 10)]
    assert findings(run(holds("w0.0", 1, 1, 2), *tries)) == ()


def test_attempts_in_turn_count_as_one_wish() -> None:
    tries = [[wants(t, "w1.0", t, timeout=1), then(t + 0.9, "w1.0", What.BUSY, t)] for t in range(3, 8)]
    assert kinds(run(holds("w0.0", 1, 1, 2), *tries)) == {Kind.ORPHAN}


def test_a_lock_that_is_never_given_at_all_is_an_orphan() -> None:
    assert kinds(run(wants(1, "w0.0"), then(11, "w0.0", What.BUSY))) == {Kind.ORPHAN}


def test_a_holder_that_lost_its_lock_leaves_an_orphan_a_ttl_later() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0"), then(2, "w0.0", What.LOST), *leaves(2, "w0.0", how="lost")]
    nearly = [wants(1, "w1.0"), got(2 + RECOVERED - 0.1, "w1.0"), *leaves(7, "w1.0")]
    assert findings(run(first, nearly)) == ()
    wrong = [wants(1, "w1.0"), got(2 + RECOVERED + 0.1, "w1.0"), *leaves(7, "w1.0")]
    assert kinds(run(first, wrong)) == {Kind.ORPHAN}


def test_a_lock_is_free_from_the_loss_on_however_late_the_body_ends() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0"), then(2, "w0.0", What.LOST), *leaves(20, "w0.0", how="lost")]
    assert kinds(run(first, wants(1, "w1.0", timeout=30), got(20, "w1.0"), leaves(21, "w1.0"))) == {Kind.ORPHAN}


def test_a_lock_that_was_lost_is_not_handed_on() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0"), then(2, "w0.0", What.LOST), *leaves(2, "w0.0")]
    assert findings(run(first, wants(1, "w1.0"), got(2 + SOON + 0.1, "w1.0"), leaves(7, "w1.0"))) == ()


def test_one_that_never_leaves_hides_no_orphan() -> None:
    first, second = [wants(1, "w0.0"), got(1, "w0.0")], holds("w1.0", 1, 3, 4)
    log = run(first, second, wants(3, "w2.0", timeout=30), then(30, "w2.0", What.BUSY))
    assert kinds(log) == {Kind.HANG, Kind.ORPHAN}


def test_one_that_says_late_that_it_had_it_frees_no_lock_of_the_next() -> None:
    late = [wants(0.5, "w0.0"), got(5, "w0.0", until=0.9), *leaves(5, "w0.0", how="lost")]
    log = run(late, holds("w1.0", 1, 1, 10), wants(4, "w2.0"), got(10.1, "w2.0"), leaves(11, "w2.0"))
    assert findings(log) == ()


@pytest.mark.parametrize(("late", "wrong"), [(-0.1, set()), (0.1, {Kind.ORPHAN})])
def test_when_a_process_goes_on_there_is_the_time_in_which_the_dead_are_noticed(late: float, wrong: set[Kind]) -> None:
    served = [got(9 + RECOVERED + late, "w1.0"), *leaves(15, "w1.0")]
    stop = fault(2, 9, "SIGSTOP of a worker", "w1")
    assert kinds(run(holds("w0.0", 1, 1, 2), wants(1, "w1.0", timeout=30), stop, served)) == wrong


@pytest.mark.parametrize(("late", "wrong"), [(-0.1, set()), (0.1, {Kind.ORPHAN})])
def test_an_answer_that_was_lost_is_waited_for_when_the_store_has_healed(late: float, wrong: set[Kind]) -> None:
    served = [got(9 + RECOVERED + OP_TIMEOUT + late, "w1.0"), *leaves(25, "w1.0")]
    assert kinds(run(holds("w0.0", 1, 1, 2), wants(1, "w1.0", timeout=30), fault(2, 9), served)) == wrong


def test_cancellation_excuses_no_lost_wake_up() -> None:
    late = [*holds("w0.0", 1, 1, 2), wants(1, "w1.0"), *holds("w1.0", 1, 2 + SOON + 0.1, 4)]
    assert kinds(run(late, fault(1, 4, "cancellation", "w0 w1"))) == {Kind.LOST_WAKEUP}
    assert kinds(run(late, fault(1, 4, "SIGSTOP of a worker", "w1"))) == set()


def test_who_was_stopped_may_be_late_and_others_may_not() -> None:
    late = [*holds("w0.0", 1, 1, 20), wants(1, "w1.0"), then(19, "w1.0", What.BUSY)]
    assert findings(run(late, fault(10, 19, "SIGSTOP of a worker", "w1"))) == ()
    assert kinds(run(late, fault(10, 19, "SIGSTOP of a worker", "w2"))) == {Kind.LATE_TIMEOUT}


def test_who_asks_a_store_that_does_not_answer_may_be_late_by_one_request() -> None:
    late = [*holds("w0.0", 1, 1, 20), wants(1, "w1.0")]
    assert findings(run(late, then(16, "w1.0", What.BUSY), fault(10, 16))) == ()
    assert kinds(run(late, then(18, "w1.0", What.BUSY), fault(10, 16))) == {Kind.LATE_TIMEOUT}


def test_a_command_with_a_word_like_the_name_of_a_worker_strikes_the_store() -> None:
    late = [*holds("w0.0", 1, 1, 20), wants(1, "w1.0"), then(18, "w1.0", What.BUSY)]
    assert kinds(run(late, fault(10, 16, "pause", "docker pause w1"))) == {Kind.LATE_TIMEOUT}
    slow = [*holds("w0.0", 1, 1, 2), wants(1, "w1.0"), *holds("w1.0", 1, 2 + SOON + 0.1, 4)]
    assert findings(run(slow, fault(1, 4, "a machine is cancelled", "delete vm w1"))) == ()


def test_a_request_may_be_the_one_that_finds_out_what_a_fault_has_left_of_its_connection() -> None:
    late = [*holds("w0.0", 1, 1, 20), wants(3, "w1.0", timeout=0), then(8, "w1.0", What.BUSY)]
    assert findings(run(late, fault(0.5, 2))) == ()
    assert kinds(run(late)) == {Kind.LATE_TIMEOUT}


def test_a_grant_that_comes_after_the_timeout_is_late() -> None:
    log = run(holds("w0.0", 1, 1, 20), wants(1, "w1.0"), got(20, "w1.0"), leaves(21, "w1.0"))
    assert kinds(log) == {Kind.LATE_TIMEOUT}


def test_overtaking_after_a_fault_may_be_what_came_of_it() -> None:
    assert findings(run(barging(20), fault(0.5, 3, "SIGSTOP of a worker", "w2"))) == ()


def test_overtaking_is_for_locks_that_are_not_fair() -> None:
    assert findings(run(barging(20)), UNFAIR) == ()


def test_one_that_is_never_served_starves_even_where_nobody_is_fair() -> None:
    grants = [event for n in range(130) for event in holds("w1.0", n, 1 + n / 8, 1.1 + n / 8)]
    tries = [[wants(t, "w0.0", t, timeout=2), then(t + 2, "w0.0", What.BUSY, t)] for t in (1, 4, 7, 10)]
    assert findings(run(grants, *tries), UNFAIR) == ()
    tries += [[wants(13, "w0.0", 13), then(17, "w0.0", What.BUSY, 13)]]
    assert kinds(run(grants, *tries), UNFAIR) == {Kind.STARVATION}
    assert findings(run(grants, *tries, holds("w0.0", 20, 20, 21)), UNFAIR) == ()


# Who died, and how long that took


@pytest.mark.parametrize(("notices", "bound"), [("ttl", TTL + 1), ("session", TTL + 3), ("at once", 0.1)])
def test_a_dead_holder_is_noticed_as_the_backend_says(notices: str, bound: float) -> None:
    guarantees = dataclasses.replace(FAIR, dead_holder=notices)

    def log(late: float) -> Log:
        end = [got(1.5 + bound + GRACE + late, "w1.0"), *leaves(20, "w1.0")]
        return run(wants(1, "w0.0"), got(1, "w0.0"), killed("w0", 1.5, 1.6), wants(1, "w1.0", timeout=30), end)

    assert Kind.SLOW_RECOVERY in kinds(log(0.1), guarantees)
    found = judge(log(-0.1), guarantees)
    assert found.findings == ()
    assert found.figures.recovery == pytest.approx(bound + GRACE - 0.1)


def test_the_heir_of_a_killed_process_has_a_name_of_its_own() -> None:
    log = run(
        process("w0", 0, None),
        wants(1, "w0.0"),
        killed("w0", 1.5, 1.6),
        process("w3", 2, 50),
        holds("w3.0", 1, 3, 4),
        fault(5, 6, "kill -9 of a worker", "w3"),
    )
    assert findings(log) == ()


def test_recovery_is_not_measured_while_the_store_is_hurt() -> None:
    first = [wants(1, "w0.0"), got(1, "w0.0"), *killed("w0", 1.5, 1.6)]
    assert findings(run(first, fault(2, 9), wants(1, "w1.0"), got(9.5, "w1.0"), leaves(10, "w1.0"))) == ()


def test_a_process_that_was_stopped_was_not_killed() -> None:
    log = run(process("w0", 0, None), wants(1, "w0.0"), got(1, "w0.0"), fault(2, 3, "SIGSTOP of a worker", "w0"))
    assert kinds(log) == {Kind.HANG}


def test_a_process_that_ends_in_order_was_not_killed() -> None:
    log = run(process("w0", 0, 50), wants(1, "w0.0", timeout=None), killed("w0", 1.5, 60))
    assert kinds(log) == {Kind.HANG, Kind.ORPHAN}
