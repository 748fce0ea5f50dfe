"""The timeline shows all that the log tells, where it belongs, and nothing that it does not."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
from hypothesis import given, strategies as st

from distlock import Fault
from distlock.backends.redis import RedisBackend
from distlock.testing.torture._drawing import BASE, Drawing, Flag, Lane, Span, rows_of, steps_for, strip
from distlock.testing.torture._events import Event, What
from distlock.testing.torture._holdings import gather
from distlock.testing.torture._plan import Plan
from distlock.testing.torture._story import Try, seats_of, tries_of
from distlock.testing.torture._timeline import timeline
from distlock.testing.torture._verdict import Figures, Finding, Kind, Verdict

from .torture_stories import START, Made, made

SVG = "{http://www.w3.org/2000/svg}"
PLAN = Plan("redis://localhost", seed=7, seconds=24, work=0.5)


def verdict(*findings: Finding) -> Verdict:
    return Verdict(PLAN, RedisBackend.guarantees, findings, Figures(longest_wait=1.5))


def found(text: str, proof: tuple[Event, ...] = (), excused: Fault | None = None) -> Finding:
    return Finding(Kind.SILENT_OVERLAP, text, proof, excused)


@pytest.fixture(scope="module")
def log() -> list[Event]:
    """Of everything a little."""
    return made(PLAN)


def drawn(events: Sequence[Event], *findings: Finding) -> ET.Element:
    """The drawing of a page, which is well-formed XML."""
    page = timeline(events, verdict(*findings), "a run")
    plot = re.search(r'<svg class="plot".*</svg>(?=</div></div></div>)', page, re.DOTALL)
    assert plot is not None
    return ET.fromstring(plot[0].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))  # noqa: S314 - ours


def titled(drawing: ET.Element) -> Iterator[tuple[str, ET.Element]]:
    """All that can be pointed at, with what it says of itself."""
    for element in drawing.iter():
        title = element.find(f"{SVG}title")
        if title is not None:
            yield str(title.text), element


def span_of(element: ET.Element) -> Span:
    x, width = (float(element.attrib[name].rstrip("%")) / 100 for name in ("x", "width"))
    return x, x + width


def strips(drawing: ET.Element, kind: str) -> list[Span]:
    """The spans of all strips of a class, as shares, in order."""
    found = [svg for svg in drawing.iter(f"{SVG}svg") if kind in svg.attrib.get("class", "").split()]
    return sorted(span for svg in found if "rough" not in svg.attrib["class"] for span in decoded(svg))


def decoded(svg: ET.Element) -> Iterator[Span]:
    steps, place = int(svg.attrib["viewBox"].split()[2]), 0
    for gap, length in re.findall(r"m(\d+) 0h(\d+)", str(svg[0].attrib["d"])):
        yield (place + int(gap)) / steps, (place + int(gap) + int(length)) / steps
        place += int(gap) + int(length)


def share(t: float) -> float:
    return (t - START) / PLAN.seconds


def grants(events: Iterable[Event]) -> list[Try]:
    return [attempt for attempt in tries_of(gather(events)) if attempt.got is not None]


def test_every_grant_is_drawn_from_its_beginning_to_its_end(log: list[Event]) -> None:
    """Twice: in the lane of its key and in that of its actor."""
    pieces = list(titled(drawn(log)))
    seen = 0
    for attempt in grants(log):
        got, over = attempt.got or 0.0, attempt.over
        begins = f"{attempt.who} held {attempt.key} from {got - START:.3f} to {over - START:.3f} s"
        places = [span_of(element[1]) for title, element in pieces if title.startswith(begins)]
        if over - got > 0.01:
            assert places == [pytest.approx((share(got), share(min(over, attempt.until))), abs=1e-5)] * 2
            seen += 1
    assert seen > 50


def test_what_is_drawn_as_held_was_held(log: list[Event]) -> None:
    drawing, pixel = drawn(log), 1 / BASE / 64
    for number, key in enumerate(("key-0", "key-1")):
        spans = [(share(a.got or 0), share(min(a.over, a.until))) for a in grants(log) if a.key == key]
        seen = strips(drawing, f"k{number}")
        assert sum(end - begin for begin, end in seen) > 1.9 * sum(end - begin for begin, end in spans)
        assert all(any(a - 2 * pixel <= begin and end <= b + 0.02 for a, b in merged(spans)) for begin, end in seen)


def merged(spans: Sequence[Span], near: float = 1e-3) -> list[Span]:
    whole: list[Span] = []
    for begin, end in sorted(spans):
        if whole and begin <= whole[-1][1] + near:
            whole[-1] = whole[-1][0], max(end, whole[-1][1])
        else:
            whole.append((begin, end))
    return whole


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.1)).map(lambda pair: (pair[0], min(1.0, sum(pair))))))
def test_a_strip_covers_what_it_is_given_and_no_more_than_a_step_beside_it(spans: list[Span]) -> None:
    steps = 1000
    svg = strip(spans, "any", Lane(0, 1), steps)
    covered = list(decoded(ET.fromstring(svg))) if svg else []  # noqa: S314 - ours
    assert covered == sorted(covered)
    for begin, end in spans:
        assert any(a <= begin + 1 / steps and end <= b + 1 / steps for a, b in covered)
    for a, b in covered:
        assert all(any(s - 1 / steps <= x <= e + 1 / steps for s, e in spans) for x in (a, b))
    union = merged(spans, 1 / steps)
    assert sum(b - a for a, b in covered) <= sum(e - s for s, e in union) + 2 * len(spans) / steps


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)).map(lambda pair: (float(pair[0]), float(sum(pair))))))
def test_what_overlaps_stands_in_different_rows(spans: list[Span]) -> None:
    spans.sort()
    rows = rows_of(spans)
    for number, (begin, _) in enumerate(spans):
        before = [spans[i] for i in range(number) if rows[i] == rows[number]]
        assert all(end <= begin for _, end in before)
    assert max(rows, default=0) < max(len(spans), 1)


def test_every_fault_is_a_band_with_its_name_and_its_victim(log: list[Event]) -> None:
    bands = {
        title.partition(",")[0]: element
        for title, element in titled(drawn(log))
        if "blow" in element.attrib.get("class", "")
    }
    troubles = gather(log).troubles
    assert len(troubles) == 6
    for trouble in troubles:
        on = "" if trouble.on in trouble.fault else f": {trouble.on}"
        band = bands[f"{trouble.fault}{on}" + ("; excepted: EMPTY_RESTART" if trouble.excused else "")]
        rectangles = [element for element in band if "width" in element.attrib]
        place = pytest.approx((share(trouble.since), share(trouble.until)), abs=1e-5)
        assert [span_of(rectangle) for rectangle in rectangles] == [place] * len(rectangles)
        assert sum("victim" in rectangle.attrib["class"] for rectangle in rectangles) == len(trouble.workers)
        kind = "excused" if trouble.excused else "fault"
        assert all(kind in rectangle.attrib["class"].split() for rectangle in rectangles)


def test_only_what_the_backend_excepts_looks_excused() -> None:
    run = Made(PLAN)
    run.cut(1, 2, excused=(Fault.FOREIGN_MACHINE.name,))
    assert "excused band" not in ET.tostring(drawn(run.run()), encoding="unicode")


def test_who_takes_the_place_of_the_dead_sits_in_its_lanes() -> None:
    run = Made(PLAN)
    run.kill("w0", 3.0, 5.0)
    drawing = drawn(run.run())
    history = gather(run.events)
    assert [[life.process for life in seat] for seat in seats_of(history)] == [["w0", "w3"], ["w1"], ["w2"]]
    (rest,) = [span_of(rect) for rect in drawing.iter(f"{SVG}rect") if rect.attrib.get("class") == "rest"]
    assert rest == pytest.approx((share(START + 3), share(START + 5)), abs=1e-5)
    assert {attempt.over for attempt in tries_of(history) if attempt.how == "died"} == {START + 3}
    assert "†" in "".join(drawing.itertext())


def test_what_a_stopped_holder_believes_is_not_drawn_as_held() -> None:
    run = Made(PLAN)
    run.stop("w0", 3.0, 3.0 + 2 * PLAN.ttl)
    run.stop("w1", 3.0, 3.0 + 2 * PLAN.ttl)
    run.stop("w2", 3.0, 3.0 + 2 * PLAN.ttl)
    drawing = drawn(run.run())
    late = [attempt for attempt in grants(run.events) if attempt.lost]
    unproven = [span_of(rect) for rect in drawing.iter(f"{SVG}rect") if rect.attrib.get("class") == "unproven"]
    expected = [(share(attempt.until), share(attempt.lost or 0.0)) for attempt in late]
    assert len(late) == 2
    assert sorted(unproven) == [pytest.approx(span, abs=1e-5) for span in sorted(expected * 2)]
    crosses = [use for use in drawing.iter(f"{SVG}use") if use.attrib["href"] == "#cross"]
    assert len(crosses) == 4


def test_the_proof_that_a_dead_holder_left_is_drawn_lighter() -> None:
    run = Made(PLAN)
    for worker in ("w0", "w1", "w2"):
        run.kill(worker, 3.0, 6.0)
    drawing = drawn(run.run())
    dead = [attempt for attempt in grants(run.events) if attempt.how == "died"]
    tails = [span_of(rect) for rect in drawing.iter(f"{SVG}rect") if rect.attrib.get("class") == "tail"]
    assert len(dead) == 2
    expected = [(share(START + 3), share(attempt.until)) for attempt in dead]
    assert sorted(tails) == [pytest.approx(span, abs=1e-5) for span in sorted(expected * 2)]


def test_a_finding_leads_to_its_place_and_back(log: list[Event]) -> None:
    proof = tuple(event for event in log if event.what is What.GOT)[:2]
    findings = found("two in key-0", proof), found("forgiven", proof, Fault.EMPTY_RESTART)
    page = timeline(log, verdict(*findings), "a run")
    for number, kind in ((1, "mark"), (2, "mark pardoned")):
        assert f'<a id="m{number}" class="{kind}" href="#f{number}">' in page
        assert f'<li id="f{number}"' in page
        assert f'href="#m{number}">at {proof[1].t - START:.3f} s</a>' in page
    rings = list(drawn(log, *findings).iter(f"{SVG}circle"))
    assert [float(ring.attrib["cx"].rstrip("%")) / 100 for ring in rings[:2]] == [
        pytest.approx(share(event.t), abs=1e-5) for event in proof
    ]
    assert [text for text in ("1 violation<", "1 excused", "excused by EMPTY_RESTART") if text not in page] == []


def test_a_finding_stands_where_the_second_of_two_was_given_the_lock(log: list[Event]) -> None:
    """And not where the first of them noticed, which may be long after."""
    first, second = [event for event in log if event.what is What.GOT][:2]
    late = next(event for event in log if event.what is What.LOST)
    assert Flag(1, "two", (first, second, late), pardoned=False).t == second.t
    assert Flag(1, "one", (first, late), pardoned=False).t == late.t


def test_a_page_says_that_nothing_was_found(log: list[Event]) -> None:
    page = timeline(log, verdict(), "a run")
    assert [text for text in ("no violation", "<p>Nothing.</p>") if text not in page] == []


EVIL = "</title><script>alert(1)</script>\"'&"


def test_text_of_others_stays_text() -> None:
    """Of keys, errors, faults, victims, findings, figures and the title."""
    events = [
        Event(0.0, "run", What.STARTED, None, {"plan": {**asdict(PLAN), "url": EVIL}}),
        Event(0.1, "w0", What.BEGINS, None, {"pid": EVIL, "colour": EVIL}),
        Event(0.2, "nemesis", What.STRIKES, None, {"fault": EVIL, "on": EVIL, "excused": []}),
        Event(0.3, f"w0.{EVIL}", What.WANTS, EVIL, {"try": 1}),
        Event(0.4, f"w0.{EVIL}", What.GOT, EVIL, {"try": 1, "token": 5, "until": 2.0}),
        Event(0.9, f"w0.{EVIL}", What.LEFT, EVIL, {"try": 1, "how": EVIL}),
        Event(1.0, f"w1.{EVIL}", What.WANTS, EVIL, {"try": 1}),
        Event(1.5, f"w1.{EVIL}", What.FAILED, EVIL, {"try": 1, "error": EVIL}),
    ]
    finding = found(EVIL, tuple(events))
    page = timeline(events, verdict(finding), EVIL)
    assert "alert(1)</script>" not in page.replace("&lt;/script&gt;", "")
    assert drawn(events, finding) is not None
    assert Tags(page).count["script"] == 1


class Tags(HTMLParser):
    """How often each tag is opened; fails if one is not closed in its turn, or an id is given twice."""

    VOID = frozenset({"meta", "input"})
    OPTIONAL = frozenset({"html", "body"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.feed(page)
        self.close()
        assert set(self.open) <= self.OPTIONAL

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        name = dict(attrs).get("id")
        assert name is None or name not in self.ids
        self.ids |= {name} if name else set()
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_whole_and_needs_no_network(log: list[Event]) -> None:
    page = timeline(log, verdict(found("x")), "a run")
    tags = Tags(page)
    assert tags.count["svg"] > 20
    assert not re.search(r"https?://|url\(|@import|\bsrc=|<link|<img", page)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= tags.ids


def test_a_long_log_of_many_grants_makes_a_page_that_can_be_sent() -> None:
    events = made(Plan("redis://localhost", seed=7, seconds=60, work=0.008))
    page = timeline(events, verdict(), "a long run")
    assert sum(event.what is What.GOT for event in events) > 20_000
    assert len(page.encode()) < 3_000_000


def test_what_is_too_much_is_drawn_more_coarsely() -> None:
    assert steps_for([2000] * 14) == 64 * BASE
    assert steps_for([10**6] * 14) < 64 * BASE
    assert steps_for([10**6] * 1000) == BASE


def test_a_thousand_who_wait_have_lanes_of_their_own() -> None:
    plan = Plan("redis://localhost", seed=7, seconds=4, workers=4, actors=250, work=0.05)
    events = made(plan, faults=False)
    drawing = Drawing(gather(events), START)
    assert drawing.svg().count('class="strip wait"') == 1000
    assert len(timeline(events, verdict(), "a crowd").encode()) < 3_000_000


def test_a_run_in_which_nothing_happened_makes_a_page() -> None:
    started = Event(0.0, "run", What.STARTED, None, {"plan": asdict(PLAN)})
    assert "<p>Nothing.</p>" in timeline([started], verdict(), "nothing")
