"""Microbenchmarks: suites of cases, fair timing, and the providers that they compare.

compare({"ours": f, "theirs": g}, *inputs)      times your own functions beside each other
collect(run(load_suite("quick", "cpu")))        warpwright against PyTorch, eager and compiled
@kernel("rms_norm")                             puts a kernel of your own beside them

`warpwright bench` is the command line of all this.
"""

from warpwright.bench import operators as _operators  # noqa: F401  (fills OPERATORS)
from warpwright.bench.case import OPERATORS, PROVIDERS, Case, Draw, Operator, Provider, halve, operator
from warpwright.bench.providers import DEFAULT_PROVIDERS, kernel, load_kernel
from warpwright.bench.rows import Ceiling, Results, Row, read_results, to_csv, to_markdown, write_record
from warpwright.bench.runner import collect, compare, run, steps
from warpwright.bench.suite import load_suite, select, suites
from warpwright.bench.timing import Candidate, Timing, measure

__all__ = [
    "DEFAULT_PROVIDERS",
    "OPERATORS",
    "PROVIDERS",
    "Candidate",
    "Case",
    "Ceiling",
    "Draw",
    "Operator",
    "Provider",
    "Results",
    "Row",
    "Timing",
    "collect",
    "compare",
    "halve",
    "kernel",
    "load_kernel",
    "load_suite",
    "measure",
    "operator",
    "read_results",
    "run",
    "select",
    "steps",
    "suites",
    "to_csv",
    "to_markdown",
    "write_record",
]
