"""What every backend has to do, whatever its store."""

from .answering import Answering
from .cancelling import Cancelling
from .holding import Holding
from .losing import Losing
from .once import OnceConformance
from .processes import Processes
from .proving import Proving
from .waiting import Waiting

__all__ = ("Conformance", "OnceConformance")


class Conformance(Holding, Waiting, Losing, Answering, Cancelling, Proving, Processes):
    """Subclass it, with a fixture ``store`` that gives a `distlock.testing.Store`."""
