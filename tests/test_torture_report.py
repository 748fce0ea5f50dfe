"""What the checker says, a person reads at a glance and a program reads as JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from typing import Any

from rich.console import Console

from distlock import Fault, Guarantees
from distlock.testing.torture._checker import Kind, judge
from distlock.testing.torture._report import SHOWN, as_json, repeat, table

from .torture_logs import FAIR, PLAN, Log, fault, got, holds, leaves, run, wants

FORGETFUL = dataclasses.replace(FAIR, excepted=frozenset({Fault.FAILOVER}))
OVERLAP = [*holds("w0.0", 1, 1, 3, token=1), wants(1, "w1.0"), got(2.9, "w1.0", token=2), *leaves(3, "w1.0")]
EXCUSED = run(OVERLAP, fault(2, 2.5, "failover", "a server", Fault.FAILOVER))


def shown(log: Log, guarantees: Guarantees = FAIR, **more: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=300).print(table(judge(log, guarantees), **more))
    return out.getvalue()


def test_all_is_well_at_a_glance() -> None:
    text = shown(run(holds("w0.0", 1, 1, 3)))
    assert "✓ nothing wrong in 2 grants" in text
    assert all(kind.value in text for kind in Kind)
    assert "again:" not in text


def test_a_violation_comes_with_its_lines_its_seed_and_its_command() -> None:
    text = shown(run(OVERLAP))
    assert "✗ 1 violations in 3 grants" in text
    assert all(event.text() in text for event in OVERLAP if event.what.value in ("got", "leaves"))
    assert f"seed {PLAN.seed}; again: {repeat(PLAN)}" in text


def test_who_knows_the_command_better_says_it() -> None:
    assert "again: the same once more" in shown(run(OVERLAP), again="the same once more")
    assert as_json(judge(run(OVERLAP), FAIR), "the same once more")["repeat"] == "the same once more"


def test_what_is_excused_has_a_section_of_its_own() -> None:
    text = shown(EXCUSED, FORGETFUL)
    assert "excused" in text
    assert Fault.FAILOVER.value in text
    assert "✓ nothing wrong in 3 grants, 1 excused" in text
    assert "excused" not in shown(run(OVERLAP), FORGETFUL)


def test_many_of_a_kind_are_counted() -> None:
    text = shown(run(*(holds("w0.0", n, n, n + 0.5, token=7) for n in range(1, SHOWN + 4))))
    assert f"token repeated: {2} more" in text


def test_brackets_in_an_address_are_no_markup() -> None:
    plan = dataclasses.replace(PLAN, url="redis://[fe80::1]:6379")
    assert "redis://[fe80::1]:6379" in shown(run(plan=plan))


def test_json_says_all_of_it() -> None:
    data = json.loads(json.dumps(as_json(judge(EXCUSED, FORGETFUL)), allow_nan=False))
    assert data["ok"] is True
    assert data["violations"]["silent_overlap"] == 0
    assert data["excused"]["silent_overlap"] == 1
    assert data["findings"][0]["excused"] == "FAILOVER"
    assert OVERLAP[1].text() in data["findings"][0]["proof"]
    assert data["figures"]["grants"] == 3
    assert data["plan"]["seed"] == PLAN.seed


def test_what_json_cannot_say_is_null() -> None:
    log = run(holds("w0.0", 1, 1, 2), wants(1, "w1.0"), holds("w0.0", 2, 2, 3))
    verdict = judge(log, FAIR)
    assert verdict.figures.fairness == math.inf
    assert as_json(verdict)["figures"]["fairness"] is None


def test_the_command_repeats_the_plan() -> None:
    plan = dataclasses.replace(PLAN, seed=42, colours=("trio",), url="redis://me@h/0?x=1&y=2")
    assert "--seed 42" in repeat(plan)
    assert "--colours trio" in repeat(plan)
    assert "'redis://me@h/0?x=1&y=2'" in repeat(plan)
