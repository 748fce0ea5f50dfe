"""Redis Cluster: locks that lie in slots, and are followed wherever those move."""

from ._backend import ClusterBackend

__all__ = ("ClusterBackend",)
