"""Microbenchmarks: fair timing, suites of cases, and the providers they compare.

compare({"ours": f, "theirs": g}, *inputs)   times your own functions beside each other
run(suite("quick"))                          warpwright against PyTorch, eager and compiled
"""

from warpwright.bench.cases import SUITES, Case, suite
from warpwright.bench.runner import PROVIDERS, Row, Rows, compare, run
from warpwright.bench.timing import Timing, measure

__all__ = ["PROVIDERS", "SUITES", "Case", "Row", "Rows", "Timing", "compare", "measure", "run", "suite"]
