"""The log of a run as one page for people: who held what when, what struck them, and what was found.

All that is drawn stands at a share of the whole width, so that zooming is nothing but a wider drawing, and no program
runs in the page but for a few lines that keep its middle in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template

from ._drawing import BASE, ZOOMS, Drawing, Flag
from ._events import Event, What
from ._holdings import gather
from ._verdict import Figures, Finding, Verdict

__all__ = ("timeline",)

LISTED = 200
"""Findings that are drawn and told."""
LINES = 16
"""Of the log, to prove a finding."""


def timeline(events: Sequence[Event], verdict: Verdict, title: str) -> str:
    """A page of HTML that needs nothing else. Seconds count from the event STARTED; `ValueError` if there is none."""
    history = gather(events)
    flags = [
        Flag(number, f"{_name(found)}: {found.text}", tuple(found.proof), found.excused is not None)
        for number, found in enumerate(verdict.findings[:LISTED], 1)
    ]
    started = next(event.t for event in events if event.what is What.STARTED)
    drawing = Drawing(history, started, flags, verdict.guarantees.excepted)
    body = [
        f"<h1>{escape(title)}</h1>",
        *_head(verdict, drawing),
        *_zooms(drawing),
        *_found(verdict, flags, drawing),
        *_faults(drawing),
        *_figures(verdict.figures),
    ]
    page = Template((Path(__file__).parent / "timeline.html").read_text(encoding="utf-8"))
    return page.substitute(title=escape(title), base=BASE, body="\n".join(body))


def _head(verdict: Verdict, drawing: Drawing) -> Iterator[str]:
    excused = sum(found.excused is not None for found in verdict.findings)
    good = "no violation" if verdict.ok else _count(len(verdict.findings) - excused, "violation")
    yield f'<p><span class="verdict {"good" if verdict.ok else "bad"}">{good}</span>'
    if excused:
        yield f'<a href="#found">{excused} excused</a> · '
    history = drawing.history
    counts = [
        _count(sum(attempt.got is not None for attempt in drawing.tries), "grant"),
        _count(len(history.troubles), "fault"),
        f"{sum(attempt.lost is not None for attempt in drawing.tries)} told of a loss",
        f"{sum(life.killed is not None for life in history.lives)} killed",
        f"{drawing.scale.seconds:.1f} s",
    ]
    yield f"{' · '.join(counts)}</p>"
    plan = asdict(history.plan)
    facts = [f"{name} {plan[name]}" for name in ("url", "seed", "workers", "actors", "keys", "ttl", "timeout")]
    yield f'<p class="soft">{escape(", ".join(facts))}</p>'


LEGEND = (
    ('<rect class="bar k0" width="26" height="12"/>', "holds, in the colour of the key"),
    ('<rect class="unproven k0" x="1" y="1" width="24" height="10"/>', "believes to, unproven"),
    ('<rect class="tail k0" width="26" height="12"/>', "gone before its proof ended"),
    ('<rect class="wait bar" y="5" width="26" height="2"/>', "waits"),
    ('<rect class="giving k0" y="5" width="26" height="2"/>', "gives up"),
    ('<path class="failed" d="M13 0v12"/>', "an error, or cancelled"),
    ('<use href="#cross" x="13" y="6"/>', "told of the loss"),
    ('<text class="dagger" x="13" y="12">†</text>', "died"),
    ('<use href="#diamond" x="13" y="6"/>', "late write refused"),
    ('<rect class="fault" opacity=".35" width="26" height="12"/>', "fault"),
    ('<rect class="excused" opacity=".4" width="26" height="12"/>', "fault that the backend excepts"),
    ('<rect class="flag" x="4" width="18" height="12" rx="3"/>', "found: see below"),
)
SHAPES = """<svg width="0" height="0" style="position:absolute"><defs>
<g id="cross"><path class="halo" d="M-5-5 5 5M5-5-5 5"/><path class="cross" d="M-5-5 5 5M5-5-5 5"/></g>
<path id="diamond" class="refused" d="M0-5 5 0 0 5-5 0z"/></defs></svg>"""


def _zooms(drawing: Drawing) -> Iterator[str]:
    """The drawing under its legend, and what makes it wider."""
    yield SHAPES
    yield '<div class="legend">'
    yield from (f'<span><svg width="26" height="12">{shape}</svg>{text}</span>' for shape, text in LEGEND)
    yield "</div><div>"
    yield from (
        f'<input type="radio" name="zoom" id="z{zoom}"{" checked" if zoom == 1 else ""} aria-label="{zoom} times">'
        for zoom in ZOOMS
    )
    labels = "".join(f'<label for="z{zoom}">{zoom}×</label>' for zoom in ZOOMS)
    yield f'<div class="zooms">{labels}</div>'
    yield f"{drawing.svg()}</div>"


def _found(verdict: Verdict, flags: Sequence[Flag], drawing: Drawing) -> Iterator[str]:
    yield '<h2 id="found">Found</h2>'
    if not flags:
        yield "<p>Nothing.</p>"
        return
    yield '<ol class="findings">'
    for flag, found in zip(flags, verdict.findings, strict=False):
        excused = f" · excused by {found.excused.name}" if found.excused is not None else ""
        t = min(flag.t, drawing.history.ended) - drawing.scale.began
        yield f'<li id="f{flag.number}" class="{"pardoned" if flag.pardoned else "wrong"}">'
        yield f"<b>{flag.number}. {escape(_name(found))}</b>: {escape(found.text)} "
        yield f'<a class="soft" href="#m{flag.number}">at {t:.3f} s</a><span class="soft">{excused}</span>'
        if flag.proof:
            lines = [f"{event.t - drawing.scale.began:10.3f}  {event.text()}" for event in flag.proof[:LINES]]
            more = len(flag.proof) - LINES
            text = escape("\n".join([*lines, f"… {more} more"] if more > 0 else lines))
            yield f"<details><summary>the lines that prove it</summary><pre>{text}</pre></details>"
        yield "</li>"
    yield "</ol>"
    if len(verdict.findings) > len(flags):
        yield f"<p>And {len(verdict.findings) - len(flags)} more.</p>"


def _faults(drawing: Drawing) -> Iterator[str]:
    history = drawing.history
    if history.troubles:
        yield '<h2>Faults</h2><div class="wide"><table><tr><th>s</th><th>what, whom</th><th>for</th></tr>'
        for trouble in history.troubles:
            seconds = min(trouble.until, history.ended) - trouble.since
            yield f'<tr><td class="n">{trouble.since - drawing.scale.began:.3f}</td>'
            yield f'<td>{escape(drawing.told(trouble))}</td><td class="n">{seconds:.2f} s</td></tr>'
        yield "</table></div>"


def _figures(figures: Figures) -> Iterator[str]:
    yield '<h2>Figures</h2><div class="wide"><table>'
    for name, value in asdict(figures).items():
        if isinstance(value, (int, float)):
            text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
            yield f'<tr><td>{name.replace("_", " ")}</td><td class="n">{text}</td></tr>'
    yield "</table></div>"


def _name(found: Finding) -> str:
    return found.kind.name.replace("_", " ").lower()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
