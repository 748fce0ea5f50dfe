"""Compares backends and topologies on the servers at hand: ``distlock bench``."""

from ._plan import PREFIX, Plan
from ._run import Cell, Failure, Outcome, bench
from ._stores import KeysInUse
from ._workloads import WORKLOADS

__all__ = ("PREFIX", "WORKLOADS", "Cell", "Failure", "KeysInUse", "Outcome", "Plan", "bench")
