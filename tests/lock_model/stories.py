"""The shortest histories that show a way to be wrong: most were found by the machine, which shortened them."""

from __future__ import annotations

from typing import NamedTuple

from .machine import LockMachine, Wish

__all__ = ("LATE_TRY", "LATE_VOTE", "STORIES", "Story", "tell")

SHORT = Wish("k", 1.0, None, renew=True)
LONG = Wish("k", 3.0, None, renew=True)
LAPSING = SHORT._replace(renew=False)


Step = tuple[str, dict[str, object]]


class Story(NamedTuple):
    """What happens, rule by rule, and which invariant is broken by who is wrong."""

    wrong: str
    broken: str
    steps: list[Step]
    nodes: int = 1


def ask(place: int, wish: Wish = SHORT, *, soon: bool = False) -> Step:
    return "acquire", {"place": place, "wish": wish, "soon": soon}


def wait(seconds: float) -> Step:
    return "pass_time", {"seconds": seconds}


def lose(kind: str, late: float, *, place: int = 0, nodes: int = 1) -> Step:
    return "lose", {"place": place, "nodes": nodes, "fate": (kind, late)}


def extend(ttl: float) -> Step:
    return "extend", {"n": 0, "ttl": ttl}


RELEASE: Step = ("release", {"n": 0})
LATE: list[Step] = [lose("late", 0.9), ask(0, LONG), wait(0.1), RELEASE, wait(2.0), ask(1), wait(1.0)]
SLOW: Step = ("cut", {"place": 0, "nodes": 31, "kind": "slow"})
EDGE: Step = ("pass_to_the_edge", {"n": 0, "beyond": -0.001, "there": True})
AGAIN: Step = ("repeat", {"node": 0, "n": 2})

TRY = Wish("k", 10.0, 0.0, renew=True)
LATE_TRY = Story(
    "",
    "no orphan",
    [
        *(ask(1, LONG), ask(0, TRY), lose("late", 0.4), ask(0, TRY), RELEASE),
        *(wait(1.001), wait(1.001), ask(2), wait(1.001)),
    ],
)
"""Of one that does not wait, the first request is late and the second answered: busy. Then the lock comes free."""
LATE_VOTE = Story(
    "",
    "no orphan",
    [("hurt_server", {"kind": "freeze", "node": 0}), lose("late", 0.9, place=2, nodes=2), ask(2, LONG)],
    nodes=3,
)
"""A connection breaks on which a vote was asked for, which comes late: when the lock was had and given back."""

STORIES = [
    Story("no tombstone", "no orphan", LATE),
    Story("releases anyone's", "early loss", [ask(0), ask(0), ("cancel", {"n": 0}), wait(0.1)]),
    Story(
        "revives",
        "never revived",
        [ask(0), extend(2.0), wait(0.02), RELEASE, wait(0.02), AGAIN],
    ),
    Story("not provisional", "a hand-over moves on", [ask(0, SHORT), ask(1, LONG), RELEASE, wait(0.1)]),
    Story("shortens", "early loss", [ask(0), extend(10.0), extend(2.0), ask(0)]),
    Story(
        "head only",
        "a release hands over",
        [ask(0), ask(1), ask(2), ("stop", {"place": 1, "kind": "kill"}), wait(0.1), RELEASE, wait(0.1)],
    ),
    Story(
        "barging",
        "first come, first served",
        [ask(0), ask(1, LONG), ("stop", {"place": 0, "kind": "power"}), EDGE, ask(2)],
    ),
    Story("keeps it", "a release hands over", [ask(0), ask(1), RELEASE, wait(0.1)]),
    Story("no high-water", "never revived", [ask(0), ("hurt_server", {"node": 0, "kind": "clock"}), ask(1)]),
    Story("counts from the reply", "early loss", [SLOW, ask(0), wait(1.001)]),
    Story("counts from the reply", "early loss", [SLOW, ask(0), wait(1.001)], 3),
    Story("no margin for drift", "early loss", [ask(0)]),
    Story("no margin for drift", "early loss", [ask(0)], 5),
    Story(
        "what has ended is renewed",
        "never revived",
        [ask(0, LAPSING), wait(0.34), SLOW, extend(10.0), wait(3.5)],
    ),
    Story("nobody is told", "loss is told", [ask(0, LAPSING), wait(3.5)]),
    Story(
        "what got no answer is not withdrawn",
        "no orphan",
        [lose("slow", 0.9), ask(0, LONG._replace(timeout=0.3)), wait(2.5), ask(1), wait(1.001)],
    ),
    Story("a timeout does not withdraw", "no orphan", [ask(0), ask(1, Wish("k", 10.0, 0.3, True)), wait(3.5)]),
    Story("less than a majority", "tokens rise", [ask(0, soon=True), lose("slow", 0.01), ask(0)], 3),
    Story("no second round", "tokens rise", [ask(0), lose("slow", 0.4, nodes=3), ask(0)], 3),
]


def tell(story: Story, *, wrong: bool) -> None:
    """Lets it happen, to the end."""
    kind: type[LockMachine] = type(
        "Told", (LockMachine,), {"nodes": story.nodes, "wrong": frozenset([story.wrong]) if wrong else frozenset()}
    )
    machine = kind()
    try:
        for rule, more in story.steps:
            getattr(machine, rule)(**more)
    finally:
        machine.teardown()
