"""Redis Cluster: locks that lie in slots, and are followed wherever those move."""

from ._backend import ClusterBackend
from ._results import ClusterResults

__all__ = ("ClusterBackend", "ClusterResults")
