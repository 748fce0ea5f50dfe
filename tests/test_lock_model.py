"""The whole lock under everything that may happen, in any order: the real library on simulated threads, time, network.

See docs/proof.md. ``DISTLOCK_TEST_MODEL_EXAMPLES`` is the number of histories of each test, which are others each time
then; what fails is shortened, and printed with the line that repeats it.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest

from distlock.testing.clock import _swapped

from .clocks import WallClock
from .lock_model.broken import BROKEN
from .lock_model.machine import explore
from .lock_model.properties import Violation
from .lock_model.real import Real
from .lock_model.simulated import simulated
from .lock_model.stories import LATE_TRY, LATE_VOTE, STORIES, Story, tell
from .servers import RedisServer

pytestmark = [pytest.mark.may_block, pytest.mark.timeout(1800)]  # a whole exploration is one test


@pytest.mark.parametrize(("nodes", "few"), [(1, 300), (3, 100), (5, 50)])
def test_every_invariant_holds_in_every_history(nodes: int, few: int) -> None:
    machine = explore(few, nodes=nodes)
    assert machine.grants > machine.histories / 4  # it was about something


def test_a_history_repeats_to_the_last_event() -> None:
    first, second = (explore(20, nodes=3, derandomized=True) for _ in range(2))
    assert (first.steps, first.grants) == (second.steps, second.grants)


def test_every_invariant_holds_by_the_scripts_on_a_real_server() -> None:
    clock = WallClock()
    clock.stop()
    with RedisServer(clock=clock) as server:
        machine = explore(30, store=staticmethod(partial(Real, server, clock)))
    assert machine.grants > machine.histories / 4


@pytest.mark.parametrize("story", STORIES, ids=lambda story: f"{story.wrong}, {story.nodes}")
def test_the_model_catches(story: Story) -> None:
    """The way to be wrong, by the invariant that it breaks; and nothing in the same history if nothing is wrong."""
    with simulated():
        tell(story, wrong=False)
        with ExitStack() as swaps:
            for swap in BROKEN.get(story.wrong, ()):
                swaps.enter_context(_swapped(*swap))
            with pytest.raises(Violation, match=f"^{story.broken}"):
                tell(story, wrong=True)


def test_a_try_that_found_the_lock_taken_does_not_get_it_later() -> None:
    """Found by the model: its first request was still on its way, and the second had been answered."""
    with simulated():
        tell(LATE_TRY, wrong=False)


def test_a_vote_that_comes_after_the_release_comes_to_nothing() -> None:
    """Found by the model: the connection had broken on which a node was asked for it, in the midst of the round."""
    with simulated():
        tell(LATE_VOTE, wrong=False)
