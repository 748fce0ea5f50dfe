"""The timeline as SVG. Whatever stands in it stands at a share of its width, so that a wider drawing is zoomed in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import inf

from ..._types import Fault
from ._events import Event, What
from ._holdings import History, Trouble
from ._story import Try, colour_of, seats_of, tries_of

__all__ = ("BASE", "ZOOMS", "Drawing", "Flag")

BASE = 900
"""How many pixels wide the drawing is at least."""
ZOOMS = (1, 4, 16, 64)
MOST = 250_000
"""Spans that are drawn in all. If there are more, they are merged where they are less than a pixel apart, or a few."""
SHOWN = 1500
"""Attempts that can be pointed at: those that met with something, and the longest."""
COLOURS = 8
NAMES = 104  # pixels of the column of names
ROW = 17  # and those of a row of names of faults
LETTER = 6.3
SINGLE = 3  # pixels of a lone span in the whole, at most
FLAG = 20
TICKS = [number * 10.0**power for power in range(-4, 6) for number in (1, 2, 5)]

Span = tuple[float, float]


@dataclass(frozen=True)
class Flag:
    """Something that was found, and the lines that prove it."""

    number: int
    text: str
    proof: tuple[Event, ...]
    pardoned: bool

    @property
    def t(self) -> float:
        """Where it belongs: with the later one of two who were given a lock, else with the last of its lines."""
        grants = [event.t for event in self.proof if event.what is What.GOT]
        return max(grants if len(grants) > 1 else (event.t for event in self.proof), default=inf)


@dataclass(frozen=True)
class Lane:
    """Where somebody's row is."""

    y: float
    height: float

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


class Scale:
    """Moments as shares of the width."""

    def __init__(self, began: float, ended: float) -> None:
        self.began = began
        self.seconds = max(ended - began, 0.001)

    def share(self, t: float) -> float:
        return min(1.0, max(0.0, (t - self.began) / self.seconds))

    def at(self, t: float) -> str:
        return f"{100 * self.share(t):.4f}%"

    def box(self, span: Span, y: float, height: float) -> str:
        """The attributes of a rectangle."""
        width = 100 * (self.share(span[1]) - self.share(span[0]))
        return f'x="{self.at(span[0])}" width="{width:.4f}%" y="{y:g}" height="{height:g}"'


def digits(token: int | None) -> str:
    """The end of a long token is what tells it from the next."""
    return "" if token is None else str(token) if token < 10**6 else f"…{token % 10**4:04}"


def natural(name: str) -> list[tuple[int, str]]:
    """w2 before w10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def rows_of(spans: Sequence[Span]) -> list[int]:
    """In which row each of them finds room, if those in a row must not overlap. They are in order."""
    ends: list[float] = []
    rows = []
    for began, ended in spans:
        row = next((number for number, end in enumerate(ends) if end <= began), len(ends))
        ends[row:] = [ended, *ends[row + 1 :]]
        rows.append(row)
    return rows


def strip(spans: Iterable[Span], kind: str, lane: Lane, steps: int, longest: float = inf) -> str:
    """Spans of shares, as one line that is as wide as the lane is high. Those that touch at ``steps`` are merged."""
    merged: list[list[int]] = []
    for began, ended in sorted(spans):
        start, end = int(began * steps), max(int(began * steps) + 1, round(ended * steps))
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    merged = [span for span in merged if span[1] - span[0] <= longest]
    line = "".join(f"m{after[0] - before[1]} 0h{after[1] - after[0]}" for before, after in pairwise([[0, 0], *merged]))
    return stretched(f'<path d="M0 .5{line}"/>', f"strip {kind}", lane, steps) if merged else ""


def ticks(moments: Iterable[float], kind: str, lane: Lane, steps: int) -> str:
    """Fine vertical lines; one where there are many."""
    places = sorted({int(moment * steps) for moment in moments})
    line = "".join(f"M{place} 0v1" for place in places)
    return stretched(f'<path class="{kind}" d="{line}"/>', "", lane, steps) if places else ""


def stretched(inner: str, kind: str, lane: Lane, steps: int) -> str:
    place = f'y="{lane.y:g}" width="100%" height="{lane.height:g}"'
    return f'<svg class="{kind}" {place} viewBox="0 0 {steps} 1" preserveAspectRatio="none">{inner}</svg>'


def steps_for(lanes: Iterable[int]) -> int:
    """How finely to draw lanes of so many attempts."""
    lanes = list(lanes)
    fine = (BASE * zoom for zoom in (64, 32, 16, 8, 4, 2))
    return next((steps for steps in fine if sum(min(3 * lane, steps) for lane in lanes) <= MOST), BASE)


class Drawing:
    """The lanes of a story: on top one for each key, with all who held it; below one for each actor."""

    def __init__(
        self, history: History, started: float, flags: Sequence[Flag] = (), excepted: frozenset[Fault] = frozenset()
    ) -> None:
        """Time counts from ``started``; ``excepted`` is what the backend excepts."""
        self.history = history
        self.flags = flags
        self.tries = tries_of(history)
        self.keys = sorted({attempt.key for attempt in self.tries}, key=natural)
        self.scale = Scale(started, history.ended)
        self._excepted = excepted
        self._colours = {key: f"k{number % COLOURS}" for number, key in enumerate(self.keys)}
        self._actors: dict[str, list[Try]] = defaultdict(list)
        self._holders: dict[str, list[Try]] = {key: [] for key in self.keys}
        for attempt in self.tries:
            self._actors[attempt.who].append(attempt)
            if attempt.got is not None:
                self._holders[attempt.key].append(attempt)
        for holders in self._holders.values():
            holders.sort(key=lambda attempt: (attempt.got, attempt.over))
        self._rows = {
            key: rows_of([(attempt.got or 0.0, attempt.over) for attempt in found])
            for key, found in self._holders.items()
        }
        self._steps = steps_for(map(len, [*self._actors.values(), *self._holders.values()]))
        self._seats = sorted(seats_of(history), key=lambda seat: natural(seat[0].process))
        self._lay_out()

    # Where all is

    def _lay_out(self) -> None:
        self._faults = self._fault_rows()
        self._axis = ROW * (1 + max((row for row, _ in self._faults), default=-1)) + 20
        self._top = self._axis + 8 + (20 if self.flags else 0)
        y = float(self._top)
        self._key_lanes: dict[str, Lane] = {}
        for key in self.keys:
            self._key_lanes[key] = Lane(y, 10 + 20 * (1 + max(self._rows[key], default=0)))
            y += self._key_lanes[key].height
        self._actor_lanes: dict[str, Lane] = {}
        self._groups: dict[str, Lane] = {}
        lives = {life.process: number for number, seat in enumerate(self._seats) for life in seat}
        members: list[dict[str, list[str]]] = [defaultdict(list) for _ in self._seats]
        for who in sorted(self._actors, key=natural):
            members[lives[who.partition(".")[0]]][who.partition(".")[2]].append(who)
        self._thick = max(3.0, min(18.0, 720 / max(1, sum(map(len, members)))))
        for seat, actors in zip(self._seats, members, strict=True):
            y += 14
            for number, name in enumerate(sorted(actors, key=natural)):
                for who in actors[name]:
                    self._actor_lanes[who] = Lane(y + number * self._thick, self._thick)
            group = Lane(y, max(20.0, self._thick * len(actors)))
            self._groups.update({life.process: group for life in seat})
            y += group.height
        self._bottom = int(y) + 8
        self._height = self._bottom + 24

    def _fault_rows(self) -> list[tuple[int, str]]:
        """For each name of a fault the row in which there is room for it, and where it is: at the beginning of its
        band, or before the end, where it would not fit."""
        free: list[float] = []
        places = []
        for trouble in self.history.troubles:
            width = LETTER * len(caption(trouble)) + 12
            since, until = (self.scale.share(t) * BASE for t in (trouble.since, trouble.until))
            fits = since + width <= BASE
            x = since if fits else until - width
            row = next((row for row, end in enumerate(free) if end <= x), len(free))
            free[row:] = [x + width, *free[row + 1 :]]
            end = f'x="{self.scale.at(trouble.until)}" dx="-3" text-anchor="end"'
            places.append((row, f'x="{self.scale.at(trouble.since)}" dx="3"' if fits else end))
        return places

    # What is drawn

    def svg(self) -> str:
        """Names on the left, which stay, and the lanes, which can be scrolled."""
        lanes = [
            *self._grid(),
            *self._rests(),
            *self._bands(),
            *(part for key in self.keys for part in self._key(key)),
            *(part for who in self._actors for part in self._actor(who)),
            *self._pointed(),
            *self._deaths(),
            *self._flags(),
        ]
        plot = f'<svg class="plot" height="{self._height:g}" role="img" aria-label="Who held what when">'
        names = f'<svg class="names" width="{NAMES}" height="{self._height:g}">'
        return "\n".join(
            [
                '<div class="frame">',
                names,
                *self._names(),
                '</svg><div class="scroll" tabindex="0"><div class="sheet">',
                plot,
                *filter(None, lanes),
                "</svg></div></div></div>",
            ]
        )

    def _names(self) -> Iterator[str]:
        if self.history.troubles:
            yield f'<text x="10" y="{ROW - 4}" class="s">faults</text>'
        yield f'<text x="10" y="{self._axis}" class="s">seconds</text>'
        if self.flags:
            yield f'<text x="10" y="{self._top - 8}" class="s">found</text>'
        for key, lane in self._key_lanes.items():
            name = key if len(key) < 13 else f"{key[:6]}…{key[-5:]}"
            count = f"{len(self._holders[key])} grants"
            yield f'<g class="{self._colours[key]}"><title>{escape(key)}: {count}</title>'
            yield f'<rect class="bar" x="10" y="{lane.y + 10:g}" width="10" height="10" rx="2"/>'
            yield f'<text class="b" x="26" y="{lane.y + 19:g}">{escape(name)}</text></g>'
        for seat in self._seats:
            lane, names = self._groups[seat[0].process], ", ".join(life.process for life in seat)
            yield f'<line class="grid" x2="100%" y1="{lane.y - 7:g}" y2="{lane.y - 7:g}"/>'
            yield f'<g><title>{escape(names)}</title><text class="b" x="10" y="{lane.y + 14:g}">'
            yield f'{escape(seat[0].process)}</text><text class="s" x="10" y="{lane.y + 29:g}">'
            yield f"{escape(colour_of(seat[0]) if lane.height > 34 else '')}</text></g>"
        if self._thick >= 11:
            for name, y in sorted({(who.partition(".")[2], lane.middle) for who, lane in self._actor_lanes.items()}):
                yield f'<text class="t" style="text-anchor:end" x="{NAMES - 8}" y="{y + 4:g}">{escape(name)}</text>'

    def _grid(self) -> Iterator[str]:
        seen: set[int] = set()
        step = 0.0
        for zoom in ZOOMS:
            pixel = self.scale.seconds / (BASE * zoom)
            fits = [tick for tick in TICKS if tick >= 56 * pixel and (not step or is_whole(step / tick))]
            step = min(fits, default=step)
            for number in range(int(self.scale.seconds / step + 1e-9) + 1):
                place = round(number * step * 10**4)
                if place not in seen:
                    seen.add(place)
                    yield self._tick(number * step, f"{number * step:.6g}", zoom)
        if self.history.stops is not None:
            x = self.scale.at(self.history.stops.t)
            yield f'<line class="stops" x1="{x}" x2="{x}" y1="{self._top}" y2="{self._bottom}"/>'

    def _tick(self, seconds: float, text: str, zoom: int) -> str:
        x = self.scale.at(self.scale.began + seconds)
        kind = "" if zoom == 1 else f' class="l{zoom}"'
        label = "".join(f'<text class="t" x="{x}" y="{y}">{text}</text>' for y in (self._axis, self._height - 8))
        line = f'<line class="grid" x1="{x}" x2="{x}" y1="{self._axis + 5}" y2="{self._bottom}"/>'
        return f"<g{kind}>{line}{label}</g>"

    def _rests(self) -> Iterator[str]:
        """Between the death of a process and the beginning of its successor nobody is there."""
        for seat in self._seats:
            lane = self._groups[seat[0].process]
            yield f'<line class="grid" x2="100%" y1="{lane.y - 7:g}" y2="{lane.y - 7:g}"/>'
            for life, heir in zip(seat, [*seat[1:], None], strict=True):
                begun = heir.begins.t if heir and heir.begins else self.history.ended
                if life.killed:
                    yield f'<rect class="rest" {self.scale.box((life.died, begun), lane.y, lane.height)}/>'
                if heir:
                    yield f'<text class="s" x="{self.scale.at(begun)}" y="{lane.y - 1:g}">{escape(heir.process)}</text>'

    def _bands(self) -> Iterator[str]:
        for trouble, (row, place) in zip(self.history.troubles, self._faults, strict=True):
            kind = "excused" if self._excepted & trouble.excused else "fault"
            span = trouble.since, min(trouble.until, self.history.ended)
            y = row * ROW
            seconds = f"{span[0] - self.scale.began:.3f} to {span[1] - self.scale.began:.3f} s"
            yield f'<g class="blow"><title>{escape(self.told(trouble))}, {seconds}</title>'
            yield f'<rect class="{kind} band" {self.scale.box(span, y, self._bottom - y)}/>'
            for lane in {self._groups[worker] for worker in trouble.workers if worker in self._groups}:
                yield f'<rect class="{kind} victim" {self.scale.box(span, lane.y, lane.height)}/>'
            yield f'<rect class="{kind} cap" {self.scale.box(span, self._axis + 5, 3)}/>'
            yield f'<text class="{kind}" {place} y="{y + 13}">{escape(caption(trouble))}</text></g>'

    def told(self, trouble: Trouble) -> str:
        """All about a fault but for its time."""
        excepted = ", ".join(sorted(fault.name for fault in trouble.excused & self._excepted))
        return f"{caption(trouble)}; excepted: {excepted}" if excepted else caption(trouble)

    def _key(self, key: str) -> Iterator[str]:
        """Its holders, in two shades by turns."""
        colour = self._colours[key]
        for row in range(1 + max(self._rows[key], default=0)):
            found = [attempt for attempt, its in zip(self._holders[key], self._rows[key], strict=True) if its == row]
            lane = self._key_row(key, row)
            yield from self._held(found[::2], colour, lane)
            yield from self._held(found[1::2], f"odd {colour}", lane)

    def _key_row(self, key: str, row: int) -> Lane:
        return Lane(self._key_lanes[key].y + 5 + 20 * row, 18)

    def _actor(self, who: str) -> Iterator[str]:
        lane = self._actor_lanes[who]
        found = self._actors[who]
        thin = Lane(lane.middle - 1, 2) if lane.height > 8 else Lane(lane.middle - 0.3, 0.6)
        waits = [(attempt.wants, attempt.over if attempt.got is None else attempt.got) for attempt in found]
        yield strip(self._shares(waits), "wait", thin, self._steps)
        for key in self.keys:
            holding = [attempt for attempt in found if attempt.key == key and attempt.got is not None]
            giving = [(attempt.over, attempt.left) for attempt in holding if attempt.left is not None]
            yield strip(self._shares(giving), self._colours[key], thin, self._steps)
            yield from self._held(holding, self._colours[key], self._bar(who))
        failed = [self.scale.share(attempt.over) for attempt in found if attempt.got is None and attempt.how != "busy"]
        yield ticks(failed, "failed", Lane(lane.middle - 4, 8), self._steps)

    def _bar(self, who: str) -> Lane:
        lane = self._actor_lanes[who]
        gap = 2.0 if lane.height > 8 else 0.5
        return Lane(lane.y + gap, lane.height - 2 * gap)

    def _held(self, attempts: Sequence[Try], kind: str, lane: Lane) -> Iterator[str]:
        """All of them finely; and lone short ones more widely behind that, so that they are seen in the whole."""
        spans = list(self._shares(attempt.proven for attempt in attempts))
        yield strip(spans, f"rough {kind}", lane, BASE, SINGLE)
        yield strip(spans, kind, lane, self._steps)

    def _shares(self, spans: Iterable[tuple[float | None, float | None]]) -> Iterator[Span]:
        for began, ended in spans:
            if began is not None and ended is not None and ended >= self.scale.began:
                yield self.scale.share(began), self.scale.share(ended)

    # What can be pointed at

    def _pointed(self) -> Iterator[str]:
        cited = {(event.who, event.more.get("try")) for flag in self.flags for event in flag.proof}
        rows = {id(a): row for key in self.keys for a, row in zip(self._holders[key], self._rows[key], strict=True)}

        def weight(attempt: Try) -> tuple[bool, float]:
            met = attempt.met or (attempt.who, attempt.number) in cited
            return met, attempt.over - (attempt.got or attempt.wants)

        least = 6 * self.scale.seconds / self._steps
        for attempt in sorted(self.tries, key=weight, reverse=True)[:SHOWN]:
            if weight(attempt) > (False, least):
                bar = self._bar(attempt.who)
                yield from self._piece(attempt, bar, digits(attempt.token), is_actor=True)
                if attempt.got is not None:
                    tag = f"{attempt.who} {digits(attempt.token)}".strip()
                    yield from self._piece(attempt, self._key_row(attempt.key, rows[id(attempt)]), tag, is_actor=False)

    def _piece(self, attempt: Try, lane: Lane, tag: str, *, is_actor: bool) -> Iterator[str]:
        """One attempt in one lane: what stands over the strips, with a word about it."""
        yield f'<g class="{self._colours[attempt.key]}"><title>{escape(words(attempt, self.scale.began))}</title>'
        if attempt.got is None:
            wait = attempt.wants, attempt.over
            yield f'<rect fill="transparent" {self.scale.box(wait, lane.y, lane.height)}/>'
        else:
            yield f'<rect fill="transparent" {self.scale.box(attempt.proven, lane.y, lane.height)}/>'
            yield from self._edges(attempt, lane)
            yield self._tag(attempt, lane, tag)
            yield from self._met(attempt, lane, is_actor=is_actor)
        yield "</g>"

    def _edges(self, attempt: Try, lane: Lane) -> Iterator[str]:
        """What it believed beyond the proof, and what was proven beyond its end."""
        over = attempt.over
        if attempt.until < over:
            beyond = max(attempt.until, attempt.got or 0.0), over
            yield f'<rect class="unproven" {self.scale.box(beyond, lane.y + 1, lane.height - 2)}/>'
        elif attempt.lost is None and attempt.how != "released" and over < self.history.ended:
            yield f'<rect class="tail" {self.scale.box((over, attempt.until), lane.y, lane.height)}/>'

    def _tag(self, attempt: Try, lane: Lane, tag: str) -> str:
        """Shown from that zoom on at which there is room for it."""
        began, ended = map(self.scale.share, attempt.proven)
        room = (ended - began) * BASE
        zoom = next((zoom for zoom in ZOOMS if room * zoom > LETTER * len(tag) + 6), None)
        if not tag or zoom is None or lane.height < 12:
            return ""
        return f'<text class="tag l{zoom}" x="{100 * began:.4f}%" dx="3" y="{lane.middle + 4:g}">{escape(tag)}</text>'

    def _met(self, attempt: Try, lane: Lane, *, is_actor: bool) -> Iterator[str]:
        if attempt.lost is not None:
            yield f'<use href="#cross" x="{self.scale.at(attempt.lost)}" y="{lane.middle:g}"/>'
        if not is_actor and attempt.how == "died":
            yield f'<text class="dagger" x="{self.scale.at(attempt.over)}" y="{lane.middle + 6:g}">†</text>'
        for moment in attempt.refused if is_actor else ():
            yield f'<use href="#diamond" x="{self.scale.at(moment)}" y="{lane.middle:g}"/>'

    def _deaths(self) -> Iterator[str]:
        for life in self.history.lives:
            if life.killed:
                lane, x = self._groups[life.process], self.scale.at(life.died)
                pid = f", pid {life.begins.more.get('pid')}," if life.begins else ""
                seconds = f"{life.died - self.scale.began:.3f}"
                yield f"<g><title>{escape(f'{life.process}{pid}')} died at {seconds} s</title>"
                yield f'<line class="cross" x1="{x}" x2="{x}" y1="{lane.y:g}" y2="{lane.y + lane.height:g}"/>'
                yield f'<text class="dagger" x="{x}" y="{lane.middle + 6:g}">†</text></g>'

    def _flags(self) -> Iterator[str]:
        """Side by side, where many are of one moment; where there is no room for it, a flag is left out."""
        free = 0.0
        for flag in sorted(self.flags, key=lambda flag: (flag.t, flag.number)):
            t = min(flag.t, self.history.ended)
            x = self.scale.at(t)
            aside = max(0.0, free - self.scale.share(t) * BASE)
            kind = "mark pardoned" if flag.pardoned else "mark"
            yield f'<a id="m{flag.number}" class="{kind}" href="#f{flag.number}">'
            yield f"<title>{flag.number}. {escape(flag.text)} ({t - self.scale.began:.3f} s)</title>"
            yield f'<line class="finding" x1="{x}" x2="{x}" y1="{self._top - 4:g}" y2="{self._bottom:g}"/>'
            for event in flag.proof:
                yield from self._ring(event)
            if aside < 3 * FLAG:
                free = self.scale.share(t) * BASE + aside + FLAG
                yield f'<svg x="{x}" y="{self._top - 19:g}" overflow="visible"><g transform="translate({aside:g})">'
                yield '<rect class="flag" x="-9" width="18" height="15" rx="3"/>'
                yield f'<text class="flagged" y="11">{flag.number}</text></g></svg>'
            yield "</a>"

    def _ring(self, event: Event) -> Iterator[str]:
        lane = self._actor_lanes.get(event.who)
        if lane is not None:
            yield f'<circle class="ring" cx="{self.scale.at(event.t)}" cy="{lane.middle:g}" r="5"/>'


def is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-9


def caption(trouble: Trouble) -> str:
    """The name over a band."""
    return trouble.fault if not trouble.on or trouble.on in trouble.fault else f"{trouble.fault}: {trouble.on}"


def words(attempt: Try, began: float) -> str:
    """All about an attempt."""
    over = attempt.over
    if attempt.got is None:
        span = f"waited for {attempt.key} from {attempt.wants - began:.3f} to {over - began:.3f} s"
        return f"{attempt.who} {span}: {attempt.how}"
    token = "" if attempt.token is None else f", token {attempt.token}"
    span = f"from {attempt.got - began:.3f} to {over - began:.3f} s"
    until = "" if attempt.until == inf else f", proven until {attempt.until - began:.3f} s"
    waited = f"waited {attempt.got - attempt.wants:.3f} s"
    return f"{attempt.who} held {attempt.key} {span}{token}{until}; {waited}; {attempt.how}"
