"""Of several threads one does the work, and a turn that was lost in Ctrl-C is nobody's."""

from __future__ import annotations

import threading

from distlock._clock import now
from distlock.backends.etcd._turns import Turn, Turns


def test_a_turn_is_one_call_s_until_it_leaves():
    turns, mine, yours = Turns(), Turn(), Turn()
    assert turns.take("k", mine, 0.0)
    assert not turns.take("k", yours, now() + 0.01)
    assert turns.take("other", yours, 0.0)
    turns.leave("k", mine)
    assert turns.take("k", yours, 0.0)


def test_who_leaves_without_a_turn_takes_nobody_s():
    turns, mine, yours = Turns(), Turn(), Turn()
    assert turns.take("k", mine, 0.0)
    turns.leave("k", yours)
    assert not turns.take("k", yours, 0.0)


def test_the_turn_of_a_call_that_was_broken_off_is_the_next_one_s_at_once():
    turns, lost = Turns(), [Turn()]
    assert turns.take("k", lost[0], 0.0)
    waiting, entered = threading.Event(), threading.Event()

    def wait() -> None:
        waiting.set()
        turn = Turn()
        if turns.take("k", turn, now() + 60):
            entered.set()

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    lost.clear()
    assert entered.wait(20)
    thread.join()


def test_settling_waits_for_those_at_it():
    turns, mine = Turns(), Turn()
    assert turns.take("k", mine, 0.0)
    started = now()
    turns.settle(started + 0.05)
    assert now() >= started + 0.05
    timer = threading.Timer(0.02, lambda: turns.leave("k", mine))
    timer.start()
    turns.settle(now() + 60)
    assert turns.take("k", Turn(), 0.0)
    timer.join()
