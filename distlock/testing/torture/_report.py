"""A verdict, for people and for programs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ._plan import Plan
from ._verdict import Figures, Finding, Kind, Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ("as_json", "repeat", "table")

SHOWN = 5
"""Findings of each kind whose proof is printed; all of them are in the JSON."""


def repeat(plan: Plan) -> str:
    """The command that runs this plan again, with the same faults at the same moments."""
    options: dict[str, object] = {
        "for": f"{plan.seconds:.12g}",
        "seed": plan.seed,
        "workers": plan.workers,
        "actors": plan.actors,
        "colours": ",".join(plan.colours),
        "keys": plan.keys,
        "ttl": f"{plan.ttl:g}",
        "overlong": f"{plan.overlong:g}",
        "grace": f"{plan.grace:g}",
    }
    if plan.timeout is not None:
        options["timeout"] = f"{plan.timeout:g}"
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return shlex.join(["distlock", "torture", plan.url, *words])


def as_json(verdict: Verdict, again: str | None = None) -> dict[str, Any]:
    """All of it, as values that JSON has: infinity is null. ``again``: the command, if `repeat` does not know all."""
    figures = {name: _finite(value) for name, value in asdict(verdict.figures).items()}
    return {
        "ok": verdict.ok,
        "backend": verdict.guarantees.backend,
        "plan": asdict(verdict.plan),
        "figures": figures,
        "violations": {kind.name.lower(): verdict.count(kind) for kind in Kind},
        "excused": {kind.name.lower(): verdict.count(kind, excused=True) for kind in Kind},
        "findings": [_finding(finding) for finding in verdict.findings],
        "repeat": again or repeat(verdict.plan),
    }


def table(verdict: Verdict, again: str | None = None) -> RenderableType:
    """What was run, what came of it, and what proves it. Needs rich, and to be printed
    with ``crop=False``. ``again`` as for `as_json`."""
    from rich.console import Group
    from rich.text import Text

    wrong = [finding for finding in verdict.findings if not finding.excused]
    excused = [finding for finding in verdict.findings if finding.excused]
    parts: list[RenderableType] = [_figures(verdict), _violations(verdict)]
    if excused:
        parts.append(_excused(excused))
    if wrong:
        lines = [*_proofs(wrong), f"seed {verdict.plan.seed}; again: {again or repeat(verdict.plan)}"]
        # Whole lines, to be copied, and to be found in the logs.
        parts += [Text(line, "dim" if line.startswith(" ") else "", no_wrap=True, overflow="ignore") for line in lines]
    parts.append(_last_line(verdict, len(wrong), len(excused)))
    return Group(*parts)


def _figures(verdict: Verdict) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    plan, figures = verdict.plan, verdict.figures
    size = f"{plan.workers} processes of {plan.actors} actors, {plan.keys} keys, ttl {plan.ttl:g} s, seed {plan.seed}"
    title = f"{escape(verdict.guarantees.backend)}: {escape(plan.url)}\n{size}"
    shown = Table(title=title, title_justify="left", show_header=False)
    shown.add_column()
    shown.add_column(justify="right")
    for name, value in _rows(figures):
        shown.add_row(name, escape(value))
    return shown


def _rows(figures: Figures) -> Iterator[tuple[str, str]]:
    yield "seconds", f"{figures.seconds:.1f}"
    yield "attempts", f"{figures.attempts}"
    yield "grants", f"{figures.grants} ({figures.grants_per_s:.1f} a second)"
    yield "busy, failed, cancelled", f"{figures.busy}, {figures.failed}, {figures.cancelled}"
    yield "told of a loss", f"{figures.lost}"
    yield "writes taken, refused", f"{figures.writes}, {figures.refused}"
    yield "hand-over, median and p99", f"{_seconds(figures.handover_median)}, {_seconds(figures.handover_p99)}"
    yield "longest wait", _seconds(figures.longest_wait)
    yield "most grants of an actor, by fewest", "–" if figures.fairness is None else f"{figures.fairness:.2f}"
    yield "recovery after kill -9, at most", _seconds(figures.recovery)
    for number, (fault, times) in enumerate(figures.faults.items()):
        yield ("" if number else "faults"), f"{times} × {fault}"


def _violations(verdict: Verdict) -> RenderableType:
    from rich.table import Table

    shown = Table(title="violations", title_justify="left", show_header=False)
    shown.add_column()
    shown.add_column(justify="right")
    shown.add_column()
    for kind in Kind:
        count = verdict.count(kind)
        colour = "bold red" if count else "green"
        shown.add_row(_words(kind), f"[{colour}]{count}[/]", kind.value, style=None if count else "dim")
    return shown


def _excused(findings: Sequence[Finding]) -> RenderableType:
    from rich.table import Table

    shown = Table(title="excused: what the backend says it cannot promise", title_justify="left", show_header=False)
    counts: dict[tuple[Kind, str], int] = {}
    for finding in findings:
        assert finding.excused is not None
        where = finding.kind, f"{finding.excused.name}: {finding.excused.value}"
        counts[where] = counts.get(where, 0) + 1
    for (kind, fault), count in counts.items():
        shown.add_row(_words(kind), f"[yellow]{count}[/]", fault)
    return shown


def _proofs(findings: Sequence[Finding]) -> Iterator[str]:
    for kind in Kind:
        of_kind = [finding for finding in findings if finding.kind is kind]
        for finding in of_kind[:SHOWN]:
            yield f"{_words(kind)}: {finding.text}"
            yield from (f"    {event.text()}" for event in finding.proof)
        if len(of_kind) > SHOWN:
            yield f"{_words(kind)}: {len(of_kind) - SHOWN} more"


def _last_line(verdict: Verdict, wrong: int, excused: int) -> RenderableType:
    from rich.text import Text

    also = f", {excused} excused" if excused else ""
    if verdict.ok:
        return Text(f"✓ nothing wrong in {verdict.figures.grants} grants{also}", style="bold green")
    return Text(f"✗ {wrong} violations in {verdict.figures.grants} grants{also}", style="bold red")


def _words(kind: Kind) -> str:
    return kind.name.lower().replace("_", " ")


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f} s"


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind.name.lower(),
        "text": finding.text,
        "excused": finding.excused.name if finding.excused else None,
        "proof": [event.text() for event in finding.proof],
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
