"""A torture kit: processes contend for locks while a nemesis hurts them, and a checker judges what they wrote down."""

from ._checker import Finding, Verdict, judge
from ._client_faults import CLIENT_FAULTS
from ._events import Event, Log, What, read_logs
from ._faults import Arena, Hurt, Victim
from ._party import Held, Party
from ._plan import Plan
from ._run import torture
from ._verdict import Kind

__all__ = (
    "CLIENT_FAULTS",
    "Arena",
    "Event",
    "Finding",
    "Held",
    "Hurt",
    "Kind",
    "Log",
    "Party",
    "Plan",
    "Verdict",
    "Victim",
    "What",
    "judge",
    "read_logs",
    "torture",
)
