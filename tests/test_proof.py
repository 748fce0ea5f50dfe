"""Each backend under what can happen to it, one fault after the other: nothing goes wrong that is not excepted.

A short form of ``python -m tests.proof``: a few of the faults have their turn, the same each time.
``DISTLOCK_TEST_PROOF_SECONDS`` and ``DISTLOCK_TEST_PROOF_SEED`` make it longer, so that all of them have, and another
one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from distlock.testing.torture import CLIENT_FAULTS, torture

from .arenas import ARENAS, FAULTS, SLOW, Ground, why_not
from .proof import plan_of

SECONDS = float(os.environ.get("DISTLOCK_TEST_PROOF_SECONDS", "8"))
SEED = int(os.environ.get("DISTLOCK_TEST_PROOF_SEED", "1"))
LONG = SECONDS >= 60

# What other tests on the machine would suffer from, and what takes too long for a short run.
LEFT_OUT = frozenset() if LONG else SLOW | {"starved of processor time"}
# The machine of a test may stand still for seconds: that much later than promised is no proof of anything.
PACE = {} if LONG else {"ttl": 0.6, "grace": 15.0}

pytestmark = pytest.mark.timeout(SECONDS + 900)


@pytest.fixture(scope="module", params=ARENAS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ground(backend: str) -> Iterator[Ground]:
    with ARENAS[backend]() as ground:
        yield ground


def test_nothing_goes_wrong_that_is_not_excepted(ground, tmp_path):
    hurts = [hurt for hurt in (*CLIENT_FAULTS, *ground.hurts) if hurt.name not in LEFT_OUT]
    plan = plan_of(ground, seconds=SECONDS, seed=SEED, **PACE)
    verdict = torture(plan, tmp_path / "logs", hurts, left=ground.left)
    assert [finding for finding in verdict.findings if finding.excused is None] == []
    assert verdict.figures.grants > 0


def test_every_fault_happens_or_there_is_a_reason_why_not(backend, ground):
    made = {hurt.name for hurt in ground.hurts}
    assert made == {fault for fault in FAULTS if why_not(backend, fault) is None}
