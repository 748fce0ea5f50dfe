"""Chance, for those that met once and are not to meet again.

Not the numbers of `random` itself: a program that seeds those, or forks after it drew from them, would have all of its
processes come back at the same moment, which is what they are drawn against.
"""

from random import SystemRandom

__all__ = ("DICE",)

DICE = SystemRandom()
