"""Keys, fingerprints, records and terms of work that is done once."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import logging
import math
import os
import random
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

import distlock
from distlock import IdempotencyMismatch, InProgress, LockLost, Manager, ReplayedError, ResultUnavailable
from distlock._once.keys import call_key
from distlock._once.records import FINGERPRINT, Operation, Outcome, pack, read
from distlock._once.terms import Terms
from distlock.idempotency import JSON, canonical, fingerprint_of

ROOT = Path(__file__).parent.parent


class Coin(enum.Enum):
    HEADS = 1
    TAILS = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int


@dataclasses.dataclass(frozen=True)
class Pair:
    x: int
    y: int


class Model:
    """As pydantic's are, from the outside."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def model_dump(self) -> dict[str, Any]:
        return dict(self._fields)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.dates(),
    st.times(),
    st.datetimes(),
    st.timedeltas(),
    st.sampled_from([*Coin, *Level]),
    st.builds(Point, st.integers(), st.integers()),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(), inner, max_size=4),
        st.dictionaries(st.integers(), inner, max_size=4),
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES), st.randoms(use_true_random=False))
def test_the_order_of_a_dict_does_not_matter(value: dict[str, Any], chance: random.Random) -> None:
    """aws-powertools/powertools-lambda-python#639: the same request in another order was taken for another one."""
    items = list(value.items())
    chance.shuffle(items)
    assert canonical(dict(items)) == canonical(value)
    assert fingerprint_of(dict(items)) == fingerprint_of(value)


@given(st.sets(st.one_of(st.text(), st.integers(), st.binary())), st.randoms(use_true_random=False))
def test_the_order_of_a_set_does_not_matter(value: set[Any], chance: random.Random) -> None:
    items = list(value)
    chance.shuffle(items)
    assert canonical(set(items)) == canonical(value) == canonical(frozenset(items))


@given(VALUES, VALUES)
def test_values_that_differ_have_other_fingerprints(one: Any, other: Any) -> None:
    if _told_apart(one) != _told_apart(other):
        assert canonical(one) != canonical(other)
        assert fingerprint_of(one) != fingerprint_of(other)


def _told_apart(value: Any) -> Any:
    """What has to differ for the canonical forms to differ: the values with their types, as repr gives them."""
    if isinstance(value, dict):
        return "dict", sorted(repr((_told_apart(name), _told_apart(each))) for name, each in value.items())
    if isinstance(value, list):
        return "list", [_told_apart(each) for each in value]
    return type(value).__name__, repr(value)


KINDS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 1.5, "", "1", "True", "null", b"", b"1", [], [1], {}, {"1": 1}, {1: 1}, {b"1": 1}),
    *({1}, {"1"}, set(), {"!set": ["1"]}, {"!bytes": "MQ=="}, {"!!bytes": "MQ=="}, {"!dict": []}, {"": 1}),
    *(decimal.Decimal("1"), decimal.Decimal("1.0"), decimal.Decimal("1.50"), {"!Decimal": "1"}),
    *(uuid.UUID(int=1), str(uuid.UUID(int=1)), datetime.date(2024, 1, 1), "2024-01-01", datetime.time(0, 0)),
    *(datetime.datetime.fromisoformat(text) for text in ("2024-01-01", "2024-01-01T00:00:00+00:00")),
    *(datetime.timedelta(1), "1 day, 0:00:00", Coin.HEADS, Coin.TAILS, Level.LOW, "HEADS"),
    *(Point(1, 2), Pair(1, 2), {"x": 1, "y": 2}, Model(x=1, y=2), [["x", 1], ["y", 2]]),
)


def test_kinds_are_told_apart() -> None:
    """ "1", b"1", 1 and True are four things; so is an amount of 1 and one of 1.0, where they are `Decimal`."""
    forms: dict[str, Any] = {}
    for value in KINDS:
        form = canonical(value)
        assert form not in forms, f"{value!r} and {forms[form]!r} are the same"
        forms[form] = value


def test_what_json_does_not_tell_apart_is_the_same() -> None:
    """A request that came over the wire as JSON has no other types: a tuple is a list, a bytearray bytes."""
    assert canonical((1, 2)) == canonical([1, 2])
    assert canonical(bytearray(b"x")) == canonical(b"x")
    assert canonical(frozenset({1})) == canonical({1})
    assert canonical(1) != canonical(1.0) == "1.0"  # these two it does


@pytest.mark.parametrize("value", [object(), lambda: None, Point, iter([]), {"a": [object()]}, {object()}, 1j])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="no canonical form"):
        canonical(value)


CHILD = """
import dataclasses, datetime, decimal, enum
from distlock._once.keys import call_key, fingerprint_of
value = {"set": {"a", "b", "c", 1, (1, 2), b"x"}, "dict": {1: "x", "y": None, (2, 3): 4.5},
         "more": [decimal.Decimal("1.10"), datetime.date(2024, 1, 1), frozenset({frozenset({"q", "r", "s"})})]}
def pay(a, b): ...
print(fingerprint_of(value), call_key(pay, {"b": value, "a": {"z", "y", "x"}}))
"""


def test_every_process_has_the_same_keys() -> None:
    """Whatever the seed of its hashes, on which the order of sets depends."""
    seen = set()
    for seed in ("0", "1", "2", "random"):
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(done.stdout)
    assert len(seen) == 1


def test_the_form_of_a_key_stays_what_it_is() -> None:
    """Records outlive the version of distlock that wrote them: another digest would have the work done twice."""
    assert canonical({"b": [1, None], "a": b"x"}) == '{"a":{"!bytes":"eA=="},"b":[1,null]}'
    assert fingerprint_of({"b": [1, None], "a": b"x"}) == "ffe6d9d915d2a14ce5b19d7e80e76922"
    assert call_key(_pay, {"n": 1}) == f"tests.test_once_keys._pay:{fingerprint_of({'n': 1})}"


def _pay(n: int) -> int:
    return n


# Keys of decorated calls


@pytest.fixture
def locks() -> Iterator[Manager]:
    with distlock.connect("memory://") as manager:
        yield manager


class First:
    @staticmethod
    def pay(n: int) -> str:
        return f"first {n}"


class Second:
    @staticmethod
    def pay(n: int) -> str:
        return f"second {n}"


def test_two_functions_of_one_name_do_not_share_results(locks: Manager) -> None:
    """aws-powertools/powertools-lambda-python#1535."""
    idempotent = locks.idempotent(ttl=60)
    first, second = idempotent(First.pay), idempotent(Second.pay)
    elsewhere: dict[str, Any] = {"__name__": "another.module"}
    exec("def _pay(n): return 'elsewhere'", elsewhere)  # noqa: S102 - the one way to be of a module that is not there
    assert (first(1), second(1)) == ("first 1", "second 1")
    assert (idempotent(_pay)(1), idempotent(elsewhere["_pay"])(1)) == (1, "elsewhere")
    assert len(locks.results.list()) == 4


CALLS: list[tuple[int, int]] = []


def plain_add(a: int, b: int = 2) -> int:
    CALLS.append((a, b))
    return a + b


def test_a_call_is_the_same_however_its_arguments_are_given(locks: Manager) -> None:
    calls = CALLS
    calls.clear()
    add = locks.idempotent(ttl=60)(plain_add)
    assert [add(1), add(1, 2), add(a=1), add(b=2, a=1)] == [3] * 4
    assert calls == [(1, 2)]
    assert add(2, 1) == 3
    assert len(calls) == 2


RUNS: list[int] = []


def plain_ship(order: dict[str, Any]) -> int:
    RUNS.append(len(RUNS))
    order["shipped"] = True
    order["lines"].append("postage")
    return len(RUNS)


def test_a_body_that_changes_its_arguments_does_not_change_the_key(locks: Manager) -> None:
    """aws-powertools/powertools-lambda-python#1090."""
    RUNS.clear()
    ship = locks.idempotent(ttl=60, fingerprint=lambda order: order)(plain_ship)
    assert [ship({"id": 1, "lines": []}) for _ in range(2)] == [1, 1]

    @locks.idempotent("fixed", ttl=60, fingerprint=lambda order: order)
    def empty(order: dict[str, Any]) -> None:
        order.clear()

    empty({"id": 1})
    empty({"id": 1})
    with pytest.raises(IdempotencyMismatch):
        empty({"id": 2})


def test_a_template_is_filled_in_and_its_braces_are_as_in_format(locks: Manager) -> None:
    @locks.idempotent("pay:{order[id]}:{{literal}}:{n!r}", ttl=60)
    def pay(order: dict[str, Any], n: str = "x") -> str:
        return "paid"

    pay({"id": 7})
    assert [each.key for each in locks.results.list()] == ["pay:7:{literal}:'x'"]
    with locks.once("pay:{order}", ttl=60) as work:  # a key is no template
        work.complete()
    assert locks.results.get("pay:{order}") is not None


def test_a_function_whose_name_is_long_has_a_key_of_its_own() -> None:
    names = ["x" * 500, "x" * 499 + "y", "ä" * 300]
    keys = set()
    for name in names:
        function: Any = type(name, (), {"__qualname__": name, "__module__": "m"})
        keys.add(call_key(function, {}))
    assert len(keys) == 3
    assert all(len(key.encode()) <= 512 for key in keys)


# Records

JSONS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=10,
)
OUTCOMES = st.one_of(
    st.builds(Outcome, payload=st.binary()),
    st.builds(Outcome, problem=st.text(min_size=1)),
    st.builds(Outcome, error=st.fixed_dictionaries({"type": st.text(), "message": st.text()})),
)
ABOUT = '{"h":"web-3","p":42,"w":"MainThread","s":"a.py:1","m":{"request":"r1"}}'


@given(OUTCOMES, st.one_of(st.none(), st.text(min_size=1)), st.integers(1, 2**63), st.floats(0, 1e6))
def test_a_record_says_what_was_packed(outcome: Outcome, fingerprint: str | None, token: int, took: float) -> None:
    operation = read("k", pack(outcome, ABOUT, fingerprint, token, took), 5.0)
    assert operation.outcome == outcome
    assert operation.state == ("failed" if outcome.error is not None else "completed")
    assert (operation.fingerprint, operation.token, operation.took) == (fingerprint, token, took)
    assert (operation.by.host, operation.by.pid, operation.by.metadata) == ("web-3", 42, {"request": "r1"})
    assert (operation.key, operation.expires_in) == ("k", 5.0)


@given(st.binary())
def test_a_record_of_someone_else_is_no_result(data: bytes) -> None:
    operation = read("k", data, None)
    with pytest.raises(ResultUnavailable, match="cannot be read"):
        operation.result(JSON, "memory://")


@given(st.builds(Outcome, payload=st.binary()), st.floats(0, 1))
def test_a_torn_record_is_no_other_result(outcome: Outcome, part: float) -> None:
    """Torn in its head, it is known to be torn; behind that, stores and serializers have to know."""
    whole = pack(outcome, ABOUT, None, 1, 0.0)
    torn = read("k", whole[: int(part * whole.index(b"\n"))], None)
    assert torn.outcome.payload is None
    with pytest.raises(ResultUnavailable):
        torn.result(JSON, "memory://")


@pytest.mark.parametrize(
    "head",
    [
        {"v": 2},
        {"v": 1},
        {"v": 1, "a": {}, "t": 1, "at": 0},
        [1],
        1,
        "v",
        {"v": 1, "a": {}, "t": 1, "at": 0, "took": 0, "e": {}},
        {"v": 1, "a": {}, "t": 1, "at": 0, "took": 0, "e": "no"},
    ],
)
def test_a_head_of_another_shape_is_no_result(head: Any) -> None:
    operation = read("k", json.dumps(head).encode() + b"\n1", None)
    with pytest.raises((ResultUnavailable, ReplayedError)):
        operation.result(JSON, "memory://")
    assert isinstance(operation, Operation)


@given(JSONS)
def test_json_gives_back_what_it_was_given(value: Any) -> None:
    assert JSON.loads(JSON.dumps(value)) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: "a"}, {"a": [{None: 1}]}, ({"a": {(1,): 2}},), {1, 2}, b"x"])
def test_what_would_come_back_as_something_else_is_not_kept(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        JSON.dumps(value)


# Terms


@pytest.mark.parametrize(
    "terms",
    [
        *({"ttl": ttl} for ttl in (0, -1, math.nan, math.inf, True, "60", None, 1e12)),
        *({"timeout": timeout} for timeout in (-1, math.nan, math.inf, "1", False)),
        *({"lease": lease} for lease in (0, -1, math.nan, math.inf, True, "30")),
        *({"limit": limit} for limit in (-1, 1.5, True, "1")),
        *({"store_errors": errors} for errors in (BaseException, KeyboardInterrupt, (ValueError, 1), "ValueError")),
        *({"metadata": metadata} for metadata in ({"a": 1}, {1: "a"}, ["a"], {"a": "x" * 10_000})),
    ],
)
def test_terms_that_cannot_be_are_refused_before_any_request(terms: dict[str, Any]) -> None:
    with distlock.connect("redis://127.0.0.1:1") as nowhere, pytest.raises(ValueError, match=next(iter(terms))):
        nowhere.once("k", **{"ttl": 60, **terms})
    with pytest.raises(ValueError, match=next(iter(terms))):
        Terms(**{"ttl": 60, **terms})


def test_a_fingerprint_without_a_canonical_form_is_refused_before_any_request(locks: Manager) -> None:
    with pytest.raises(TypeError, match="no canonical form"):
        locks.once("k", ttl=60, fingerprint=object())


def test_a_fingerprint_is_not_shown_as_it_was_given(locks: Manager) -> None:
    """It may be a card's number."""
    terms = Terms(60, fingerprint={"card": "4111 1111"})
    assert terms.fingerprint == fingerprint_of({"card": "4111 1111"})
    metadata = terms.options().metadata
    assert metadata is not None
    assert "4111" not in metadata[FINGERPRINT]


# The log


def test_each_decision_is_one_record_of_the_log(locks: Manager, caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[str]:
        decisions = [record.distlock["decision"] for record in caplog.records if record.name == "distlock.idempotency"]  # type: ignore[attr-defined]
        caplog.clear()
        return decisions

    caplog.set_level(logging.INFO, logger="distlock.idempotency")
    with locks.once("k", ttl=60, fingerprint=1, metadata={"request": "r1"}) as work:
        (record,) = caplog.records
        parts = record.distlock  # type: ignore[attr-defined]
        assert parts == {
            "decision": "claimed",
            "key": "k",
            "backend": "memory://default",
            "token": work.lease.token,
            "metadata": {"request": "r1"},
        }
        assert told() == ["claimed"]
        with pytest.raises(InProgress):
            locks.once("k", ttl=60, timeout=0).__enter__()
        assert told() == ["in progress"]
        with pytest.raises(IdempotencyMismatch):
            locks.once("k", ttl=60, fingerprint=2).__enter__()
        assert told() == ["mismatch"]
        work.complete("x")
        assert told() == ["completed"]
    with locks.once("k", ttl=60):
        pass
    assert told() == ["replayed"]
    _leave(locks, "failed", ValueError("no"), store_errors=ValueError)
    assert told() == ["claimed", "failed"]
    _leave(locks, "released", ValueError("no"))
    assert told() == ["claimed", "released"]
    _supersede(locks)
    assert told() == ["claimed", "superseded"]


def _leave(locks: Manager, key: str, error: Exception, **terms: Any) -> None:
    with pytest.raises(type(error)), locks.once(key, ttl=60, **terms):
        raise error


def _supersede(locks: Manager) -> None:
    def work() -> None:
        with locks.once("superseded", ttl=60) as work:
            locks.results_manager().force_release("superseded", token=work.lease.token)
            work.complete()

    with pytest.raises(LockLost):
        work()
