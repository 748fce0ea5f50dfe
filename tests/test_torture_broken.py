"""Real runs of the torture kit over broken backends: each is caught for what is wrong with it, the correct one is not.

A run is so made that the catch is certain: what is wrong happens at every turn, or for far longer than a slow machine
could hide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distlock.testing.torture import CLIENT_FAULTS, Hurt, Plan, Verdict, torture
from distlock.testing.torture._checker import Kind

from .broken_backends import left_in

PARTY = "tests.broken_backends:"
PATIENT = 30.0
"""Seconds of grace for what must not be taken for slow."""
FORKS = [hurt for hurt in CLIENT_FAULTS if "fork" in hurt.name]
CANCELLATION = [hurt for hurt in CLIENT_FAULTS if "cancel" in hurt.name]


def fight(folder: Path, backend: str, party: str = "Broken", hurts: Sequence[Hurt] = (), **wishes: Any) -> Verdict:
    """A run of about a second, of one process with six actors that want one lock."""
    left = folder / "left"
    plan: dict[str, Any] = {
        "seconds": 0.5,
        "workers": 1,
        "actors": 6,
        "colours": ("sync",),
        "keys": 1,
        "ttl": 0.5,
        "timeout": 20.0,
        "work": 0.005,
        "grace": PATIENT,
    }
    options = {"backend": backend, "left": str(left)}
    plan = {**plan, **wishes, "party": PARTY + party, "options": options}
    return torture(Plan("memory://", **plan), folder / "logs", hurts, left=lambda: left_in(left))


def found(verdict: Verdict) -> set[Kind]:
    return {finding.kind for finding in verdict.findings}


@pytest.mark.parametrize("colour", ["sync", "asyncio", "trio"])
def test_the_correct_one_passes(tmp_path: Path, colour: str) -> None:
    hurts = [*FORKS, *CANCELLATION] if colour != "sync" else FORKS
    verdict = fight(tmp_path, "Sound", hurts=hurts, colours=(colour,), overlong=0.05)
    assert verdict.findings == ()
    assert verdict.figures.grants > 0


OVERLONG = {"overlong": 1.0, "seconds": 2.0, "actors": 3}
LONG = {"work": 1.5, "seconds": 2.0, "actors": 3}
QUICK: dict[str, Any] = {"grace": 0.2}
CAUGHT: list[tuple[str, Kind, dict[str, Any]]] = [
    ("NoOwnerCheck", Kind.SILENT_OVERLAP, {"work": 0.4, "timeout": 0.02}),
    ("CountsFromReply", Kind.SILENT_OVERLAP, OVERLONG),
    ("CountsTooMuch", Kind.SILENT_OVERLAP, OVERLONG),
    ("ForgetsRenewals", Kind.SILENT_OVERLAP, LONG),
    ("ExpiresByTheGrant", Kind.SILENT_OVERLAP, LONG),
    ("RepeatsTokens", Kind.TOKEN_REPEATED, {}),
    ("FallingTokens", Kind.TOKEN_FELL, {}),
    ("WakesLate", Kind.LOST_WAKEUP, {"actors": 2, "ttl": 1.5, **QUICK}),
    ("NeverHandsOver", Kind.LOST_WAKEUP, QUICK),
    ("NeverWithdraws", Kind.ORPHAN, {"work": 0.1, "timeout": 0.05, "seconds": 2.0, **QUICK}),
    ("Revives", Kind.ORPHAN, {"work": 0.5, "seconds": 4.0, "timeout": 4.0, **QUICK}),
    ("LastComeFirstServed", Kind.STARVATION, {"seconds": 2.0, "grace": 0.05}),
    ("Forgetful", Kind.STORE_LEAK, {}),
    ("Dawdles", Kind.LATE_TIMEOUT, {"timeout": 0.0, **QUICK}),
    ("Hangs", Kind.HANG, {"timeout": 0.5, "op_timeout": 0.2, **QUICK}),
    ("Fails", Kind.UNPROVOKED, {}),
]


@pytest.mark.parametrize(("backend", "kind", "wishes"), CAUGHT, ids=[f"{name}-{kind.name}" for name, kind, _ in CAUGHT])
def test_a_broken_one_is_caught(tmp_path: Path, backend: str, kind: Kind, wishes: dict[str, Any]) -> None:
    # What is handed over late passes for an orphan where the machine is slow, too.
    assert found(fight(tmp_path, backend, **wishes)) & ({kind, Kind.ORPHAN} if kind is Kind.LOST_WAKEUP else {kind})


def test_a_lock_that_is_never_free_again_is_caught_while_it_is_wanted_and_at_the_end(tmp_path: Path) -> None:
    assert {Kind.ORPHAN, Kind.NOT_FREE} <= found(fight(tmp_path, "NeverReleases", timeout=2.0, **QUICK))


def test_no_lock_at_all_is_caught_by_what_it_does_to_the_data(tmp_path: Path) -> None:
    verdict = fight(tmp_path, "Sound", "NoLock", work=0.05)
    assert {Kind.SILENT_OVERLAP, Kind.LOST_UPDATE, Kind.STALE_WRITE} <= found(verdict)
