"""What distlock costs, as ratios to the least that the same work could cost here: ``python -m benchmarks``.

The method is described in ``docs/benchmarks.md``.
"""
