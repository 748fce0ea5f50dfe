"""A whole run: processes contend, the nemesis hurts them, all is gathered and judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from ... import ConfigurationError, Guarantees
from ..._core.drive import drive
from ..._open import without_secrets
from ._actor import not_free
from ._checker import Verdict, judge
from ._client_faults import CLIENT_FAULTS
from ._events import Log, What, read_logs
from ._faults import Hurt
from ._nemesis import Nemesis
from ._party import party_of
from ._plan import Plan
from ._team import Team, register_process

__all__ = ("guarantees_of", "torture")


def torture(
    plan: Plan,
    folder: Path,
    hurts: Sequence[Hurt] = CLIENT_FAULTS,
    *,
    tell: Callable[[str], None] | None = None,
    left: Callable[[], Sequence[str]] | None = None,
) -> Verdict:
    """Runs ``plan`` with all logs in ``folder``, which must have none yet, and judges what was logged.

    It lasts ``plan.seconds``, two ttls, and the time to start, replace and end processes. ``tell`` hears what goes on,
    from another thread too; ``left`` says at the end what the store has kept of locks that are free. Ctrl-C ends
    the run early, and what has happened by then is judged; a second one is a `KeyboardInterrupt`.

    Raises what connecting to the store raises, and `ChildProcessError` if a worker cannot start.
    """
    tell = tell or _nothing
    guarantees = guarantees_of(plan)
    hurts = [hurt for hurt in hurts if hurt.fits(plan, guarantees)]
    if guarantees.scope == "process" and plan.workers > 1:
        raise ConfigurationError(f"the locks of {guarantees.backend} are those of one process: let one worker do")
    folder.mkdir(parents=True, exist_ok=True)
    if next(folder.glob("*.jsonl"), None) is not None:
        raise ConfigurationError(f"there are logs of another run in {folder}")
    with (
        Log(folder / "run.jsonl") as log,
        register_process(folder) as register,
        Team(plan, folder, register) as team,
    ):
        found = _fight(team, Nemesis(team, hurts, log, tell), log, tell)
        tell("looking for what is left")
        if guarantees.scope != "process":  # else the worker has looked
            found["not free"] = _not_free(plan)
        found["left in the store"] = list(left()) if left is not None else []
        log.say("run", What.FINAL, found={kind: texts for kind, texts in found.items() if texts})
    return judge(read_logs(folder), guarantees)


def guarantees_of(plan: Plan) -> Guarantees:
    """What the party of a plan is judged by. Asks the store once."""
    party = party_of(plan, "sync")
    try:
        drive(party.open())
        return party.guarantees
    finally:
        drive(party.close())


def _fight(team: Team, nemesis: Nemesis, log: Log, tell: Callable[[str], None]) -> dict[str, list[str]]:
    """From the start to the end of the workers. What was found to be wrong, other than by the checker."""
    plan = team.plan
    tell("starting")
    team.start()
    try:
        log.say("run", What.STARTED, plan=asdict(replace(plan, url=without_secrets(plan.url))))
        tell("peace")
        time.sleep(plan.ttl)
        nemesis.start()
        nemesis.join()
        tell("peace")
        time.sleep(plan.ttl)
    except KeyboardInterrupt:
        tell("interrupted")
    nemesis.stop()
    if nemesis.ident is not None:
        nemesis.join()
    log.say("run", What.STOPS)
    tell("stopping")
    found = team.stop()
    found["faults that could not be made"] = nemesis.failed
    return found


def _not_free(plan: Plan) -> list[str]:
    """Asked by a client that has no history."""
    party = party_of(plan, "sync")
    try:
        drive(party.open())
        return drive(not_free(party, plan))
    except Exception as error:  # noqa: BLE001 - the store is gone, and all locks with it
        return [f"all: {type(error).__name__}: {error}"]
    finally:
        with suppress(Exception):
            drive(party.close())


def _nothing(text: str) -> None:
    pass
