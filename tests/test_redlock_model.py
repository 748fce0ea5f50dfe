"""The decisions of Redlock under every order of messages, and the scripts under every order of requests."""

from __future__ import annotations

import random
from typing import Any

import pytest

from distlock.backends.base import Claim
from distlock.backends.redis._scripts import Script
from distlock.backends.redis.redlock import _votes, open_url
from distlock.backends.redis.redlock._votes import Ballot, Refusal, Verdict, Vote
from distlock.backends.redis.redlock._wire import found_at

from .redis_tools import Probe
from .redlock_model import ModelNode, Violation, World
from .servers import RedisServer

RUNS = 1500
STEPS = 250


@pytest.mark.parametrize("nodes", [3, 5])
def test_no_two_leases_overlap_and_tokens_rise(nodes: int) -> None:
    grants = sum(World(seed, nodes, clients=2 + seed % 2).run(STEPS).grants for seed in range(RUNS))
    assert grants > RUNS  # it was about something


@pytest.mark.parametrize(
    "wrong",
    [
        {"seals_anything": True},
        {"seals_too_low": True},
        {"writes_back": False},
        {"counts_from_before": False},
        {"majority": -1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_the_model_catches(wrong: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """A seal without the vote, or below what the node accepts; no write-back; a lease that counts from the reply; a
    majority off by one."""
    if "majority" in wrong:
        wrong = {}
        monkeypatch.setattr(_votes, "majority", lambda count: count // 2)

    def explore() -> None:
        for seed in range(40 * RUNS):
            World(seed, 3, clients=2 + seed % 2, **wrong).run(2 * STEPS)

    with pytest.raises(Violation):
        explore()


def test_the_scripts_do_what_the_model_does(redis_server: RedisServer) -> None:
    """Random requests of three claims to one node and to the model of one."""
    dice, probe, model = random.Random(7), Probe(redis_server), ModelNode(wall=0)
    backend = open_url("redlock://a,b,c", namespace="default", op_timeout=5.0)
    requests = backend._requests
    claims = [Claim(f"c{n}", "k", 60.0, wait=False) for n in range(3)]
    for _ in range(600):
        claim, attempt = dice.choice(claims), dice.randrange(3)
        if claim.id in model.tombs:
            probe.ask("DEL", probe.name("k", f":x:{claim.id}"))
            model.tombs.discard(claim.id)
        kind = dice.randrange(5)
        if kind == 0:
            said = reply_to(redis_server, requests.vote(claim, 0, attempt), "redlock_vote")
            free = model.lock is None
            model.wall = said[1] if free else 0  # the time is the server's
            expected = model.vote(0.0, claim.id, attempt, claim.ttl)
            if isinstance(expected, Vote):
                assert said == [1 + expected.sealed, expected.token]
            else:
                assert isinstance(expected, Refusal)
                found = found_at("k", said[3], said[1], said[2])
                assert (found.claim, found.sealed) == (expected.claim, expected.sealed)
        elif kind == 1:
            token = (model.lock.token if model.lock else 10**15) + dice.choice([-1, 0, 1, 10**9])
            said = reply_to(redis_server, requests.seal(claim, 0, attempt, token), "redlock_seal")
            assert said == model.seal(0.0, claim.id, attempt, token)
        elif kind == 2:
            said = reply_to(redis_server, requests.undo(claim, 0, attempt), "redlock_end")
            assert said == model.end(0.0, claim.id, attempt, False)
        elif kind == 3:
            late = dice.random() < 0.5
            said = reply_to(redis_server, requests.end(claim, 0, in_flight=late), "redlock_end")
            assert said == model.end(0.0, claim.id, None, late)
        else:
            said = reply_to(redis_server, requests.renew([(claim, 60.0)], 0), "redlock_renew")
            assert said == [model.renew(0.0, claim.id, 60.0)]
        clock = probe.ask("GET", probe.clock)
        assert int(clock or 0) == model.clock
    backend.close()


def reply_to(server: RedisServer, frame: bytes, script: str) -> Any:
    """By the words of the request, the script whole."""
    words = frame.split(b"\r\n")[2::2]
    return server.command("EVAL", Script(script)._eval.split(b"\r\n", 3)[3][:-2], *words[2:])


def test_a_vote_that_comes_late_is_not_needed() -> None:
    ballot = Ballot(5)
    for node in (0, 3):
        ballot.hear(node, Vote(node + 1))
        assert ballot.voting(final=False) is Verdict.OPEN
    ballot.hear(4, Vote(3))
    assert ballot.voting(final=False) is Verdict.SEAL
    assert ballot.seal() == {0, 1, 2, 3, 4}  # those whose votes may still be on their way, too
    assert ballot.token == 4


def test_too_low_a_token_is_raised() -> None:
    ballot = Ballot(3)
    ballot.hear(0, Vote(5))
    ballot.hear(1, Vote(6))
    ballot.seal()
    ballot.hear_seal(0, 0)
    ballot.hear_seal(1, -1)
    assert ballot.sealing(final=False) is Verdict.OPEN
    ballot.hear_seal(2, 11)
    assert ballot.sealing(final=False) is Verdict.SEAL
    assert ballot.seal() == {0, 2}
    assert ballot.token == 11


def test_taken_is_told_from_split_and_from_unreached() -> None:
    cases: list[tuple[list[Vote | Refusal | None], Verdict]] = [
        ([Refusal("a", True), Refusal("a", False), None], Verdict.TAKEN),
        ([Refusal("a", True), Vote(1), None], Verdict.TAKEN),  # the third may be the holder's
        ([Refusal("a", True), Vote(1), Refusal("b", False)], Verdict.SPLIT),  # one node's seal is no lease
        ([Refusal("a", False), Vote(1), Refusal("b", False)], Verdict.SPLIT),
        ([Refusal("a", True), None, None], Verdict.UNREACHED),
        ([Vote(1), None, None], Verdict.UNREACHED),
    ]
    for answers, verdict in cases:
        ballot = Ballot(3)
        for node, answer in enumerate(answers):
            ballot.hear(node, answer)
        assert ballot.voting(final=True) is verdict


def test_a_majority_is_free_when_enough_leases_have_ended() -> None:
    ballot = Ballot(5)
    ballot.hear(0, Vote(1))
    for node, seconds in enumerate([9.0, 3.0, 7.0, 5.0], 1):
        ballot.hear(node, Refusal("a", True, seconds))
    assert ballot.free_in == 5.0
